"""Defaults fit a short run; what the user gave does not move. Epochs become steps once."""

import pytest

from configs.base import get_config
from distill_jax.optim import SCHEDULES
from distill_jax.setup.loss import make_recipe
from distill_jax.setup.steps import describe_steps, fit_to_steps, with_steps
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


@pytest.mark.parametrize(
    ("epochs", "rows", "batch", "steps"),
    [(1, 24, 8, 3), (1, 25, 8, 4), (0.1, 30, 1, 3), (2.5, 8, 4, 5), (1e-6, 9, 8, 1), (3, 5, 8, 2)],
)
def test_epochs_become_the_steps_that_read_them(epochs, rows, batch, steps):
    c, lines = fit_to_steps(config(**{"epochs": epochs, "data.batch_size": batch}), get_config())
    assert (c.steps, lines) == (0, ())
    make_recipe(c)  # checks all but what depends on the steps
    derived, lines = with_steps(c, rows)
    given = config(**{"steps": steps, "data.batch_size": batch})
    assert (derived, lines) == fit_to_steps(given, get_config())
    assert with_steps(derived, 99 * rows) == (derived, ())


def test_a_warm_up_of_the_users_own_must_fit_the_epochs():
    c, _ = fit_to_steps(config(**{"epochs": 1, "optim.warmup_steps": 30}), get_config())
    with pytest.raises(UserError, match="warmup_steps is 30 of 5 steps"):
        make_recipe(with_steps(c, 40)[0])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 2.0, "steps": 72}, "config.steps is 72 and config.epochs 2: give one"),
        ({"epochs": 1e300}, "config.steps is .*: use 0 to 2e9"),
    ],
)
def test_epochs_that_say_nothing_clear_are_errors(changes, says):
    with pytest.raises(UserError, match=says):
        with_steps(fit_to_steps(config(**changes), get_config())[0], 2)
    fit_to_steps(config(**changes | {"epochs": 2, "steps": 0}), get_config())


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        (72, "602 steps of 2 rows are one epoch; the run's 72 steps are 0.12 epochs"),
        (602, "602 steps of 2 rows are one epoch; the run's 602 steps are 1 epoch"),
    ],
)
def test_the_start_says_how_far_the_steps_go(steps, says):
    assert describe_steps(config(**{"steps": steps, "data.batch_size": 2}), 1204) == says
