"""Defaults fit a short run; what the user gave does not move."""

import pytest

from configs.base import get_config
from distill_jax.optim import SCHEDULES
from distill_jax.setup.loss import fit_to_steps, make_recipe
from distill_jax.types import UserError


def config(**changes):
    c = get_config()
    c.update_from_flattened_dict(changes)
    return c


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 10, 20, 21, 150, 210, 219, 220, 1000])
def test_any_number_of_steps_runs_with_the_defaults(steps, schedule):
    c = config(**{"steps": steps, "optim.schedule": schedule})
    fitted, lines = fit_to_steps(c, get_config())
    rate = make_recipe(fitted).learning_rate
    assert all(0 < rate(step) <= fitted.optim.learning_rate for step in range(steps))
    changed = [k for k in ("warmup_steps", "decay_steps") if fitted.optim[k] != c.optim[k]]
    assert [line.split()[0] for line in lines] == [f"config.optim.{key}" for key in changed]
    for key, line in zip(changed, lines, strict=True):
        assert f"is {fitted.optim[key]}: its default {c.optim[key]} does not fit {steps}" in line
    assert fit_to_steps(fitted, get_config()) == (fitted, ())


def test_defaults_that_fit_stay():
    c = config(**{"steps": 220, "optim.schedule": "wsd"})
    assert fit_to_steps(c, get_config()) == (c, ())


def test_what_the_user_gave_stays_and_is_an_error():
    c = config(**{"steps": 10, "optim.warmup_steps": 30})
    fitted, lines = fit_to_steps(c, get_config())
    assert (fitted, lines) == (c, ())
    with pytest.raises(UserError, match="warmup_steps is 30 of 10 steps"):
        make_recipe(fitted)
