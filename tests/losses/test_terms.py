"""Weights that follow the step, and TAID's target that follows the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses.divergences import divergence, log_probabilities
from distill_jax.losses.terms import SHAPES, Term, make_plan, make_weight
from distill_jax.types import Mean, UserError

TAID = {"taid": {"momentum": 0.99, "rate": 5e-4}}
EXAMPLES = {
    "constant": "constant", "linear": "linear:0.2", "cosine": "cosine:0.2",
    "steps": "steps:3=0.5,7=0.2",
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_schedule_starts_at_its_weight_and_ends_at_its_last(shape):
    weight = make_weight("jsd", EXAMPLES[shape], 0.8, 11)
    assert float(weight(0)) == pytest.approx(0.8)
    assert float(weight(10)) == pytest.approx(0.8 if shape == "constant" else 0.2)
    assert float(weight(500)) == float(weight(10))


def test_shapes_in_between():
    at = lambda text, step: float(make_weight("jsd", text, 1.0, 11)(step))
    assert at("linear:0", 5) == pytest.approx(0.5)
    assert at("cosine:0", 5) == pytest.approx(0.5)
    assert at("cosine:0", 2) == pytest.approx((1 + np.cos(np.pi / 5)) / 2)
    assert [at("steps:3=0.5,7=0.1", s) for s in (2, 3, 6, 7)] == pytest.approx([1, 0.5, 0.5, 0.1])


@pytest.mark.parametrize("text", ["linear", "cosine:x", "steps:3", "ramp:1", "linear:-1", ""])
def test_a_text_that_is_no_schedule_names_the_key(text):
    with pytest.raises(UserError, match=r"config\.terms\.jsd\.schedule.*linear:0\.1"):
        make_weight("jsd", text, 1.0, 10)


def test_a_plan_moves_weights_and_a_fixed_one_does_not():
    terms = (Term("forward_kl", 1.0), Term("cross_entropy", 0.0))
    plan = make_plan(terms, 3, {"cross_entropy": "linear:1.0"}, {})
    weights = [[float(t.weight) for t in plan.at(step, {})] for step in range(3)]
    np.testing.assert_allclose(weights, [[1, 0], [1, 0.5], [1, 1]])
    assert [float(t.weight) for t in make_plan(terms, 3).at(2, {})] == [1, 0]


def test_what_a_schedule_moves_is_data_and_all_else_is_fixed_when_traced():
    traced = []

    @jax.jit
    def value(term, log_q, log_p):
        traced.append(term.name)
        return term.weight * divergence(term.name, log_q, log_p, **term.arguments)

    log_q, log_p = (log_probabilities(jnp.array(z)) for z in ([0.0, 1, 2], [2.0, 0, 1]))
    for weight, t in ((1.0, 0.4), (0.5, 0.7)):
        found = value(Term("taid", weight, moving={"t": t}), log_q, log_p)
        plain = value(Term("taid", weight, parameters=(("t", t),)), log_q, log_p)
        expected = weight * divergence("taid", log_q, log_p, t=t)
        np.testing.assert_allclose([found, plain], [expected, expected], rtol=1e-6)
    assert len(traced) == 3  # one moving, two plain
    value(Term("taid", 1.0, temperature=2.0, moving={"t": 0.4}), log_q, log_p)
    assert len(traced) == 4


def taid_oracle(losses, start, steps, momentum=0.99, rate=5e-4):
    """2501.16937, algorithm 1, in float64."""
    t, m, before, seen = start, 0.0, None, []
    for step, loss in enumerate(losses):
        if before is not None:
            m = momentum * m + (1 - momentum) * (before - loss) / (before + 1e-15)
            line = start + (1 - start) * (step + 1) / steps
            t = min(1.0, max(line, t + rate / (1 + np.exp(-m)) * (1 - t)))
        before = loss
        seen.append(t)
    return seen


def test_taid_follows_the_loss_and_reaches_the_teacher():
    plan = make_plan((Term("taid", 1.0, 1.0, (("t", 0.4),)),), 8, {}, TAID)
    states, seen, losses = plan.init(), [], [3.0, 2.0, 1.9, 2.1, 1.0, 0.9, 0.8, 0.7]
    for step, loss in enumerate(losses):
        used = plan.at(step, states)[0].arguments["t"]
        assert float(used) == pytest.approx(seen[-1] if seen else 0.4)
        states = plan.follow(step, states, {"taid": Mean(jnp.float32(4 * loss), jnp.float32(4))})
        seen.append(float(states["taid"]["t"]))
    np.testing.assert_allclose(seen, taid_oracle(losses, 0.4, 8), rtol=1e-6)
    assert seen[-1] == 1.0
    assert seen == sorted(seen)


def test_a_step_without_tokens_changes_nothing():
    plan = make_plan((Term("taid", 1.0, 1.0, (("t", 0.4),)),), 8, {}, TAID)
    states = plan.follow(0, plan.init(), {"taid": Mean(jnp.float32(2), jnp.float32(1))})
    after = plan.follow(1, states, {"taid": Mean(jnp.float32(0), jnp.float32(0))})
    assert {k: float(v) for k, v in after["taid"].items()} == {
        k: float(v) for k, v in states["taid"].items()
    }
