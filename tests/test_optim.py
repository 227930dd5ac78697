"""Schedules and optimizers, held for every entry of both registries."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.optim import (
    OPTIMIZERS,
    SCHEDULES,
    OptimOptions,
    frozen_parameters,
    is_matrix,
    make_optimizer,
    make_schedule,
)
from distill_jax.types import UserError
from tests import tiny

STEPS, WARMUP, DECAY, PEAK = 100, 10, 30, 0.5


def options(**changed):
    plain = OptimOptions(
        name="adamw", schedule="linear", learning_rate=PEAK, final_fraction=0.1,
        warmup_steps=WARMUP, decay_steps=DECAY, weight_decay=0.0, beta1=0.9, beta2=0.95,
        epsilon=1e-8, clip_norm=0.0, muon_learning_rate=PEAK, muon_momentum=0.95, muon_iterations=5,
        frozen=(),
    )  # fmt: skip
    return plain._replace(**changed)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_rises_from_above_zero_to_its_peak_and_never_above(name):
    rate = make_schedule(options(schedule=name), PEAK, STEPS)
    values = np.array([float(rate(step)) for step in range(STEPS)])
    assert values[0] > 0
    np.testing.assert_allclose(np.diff(values[: WARMUP + 1]), PEAK / (WARMUP + 1), rtol=1e-5)
    np.testing.assert_allclose(values[WARMUP], PEAK, rtol=1e-6)
    assert values.max() <= PEAK * (1 + 1e-6)
    assert np.all(np.diff(values[WARMUP:]) <= 1e-7)
    last = PEAK if name == "constant" else 0.1 * PEAK
    np.testing.assert_allclose(values[-1], last, rtol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup", "decay"), [(1, 0, 1), (2, 0, 2), (9, 8, 1), (9, 3, 6)])
def test_the_shortest_schedules_have_the_peak_and_end_where_they_say(name, steps, warmup, decay):
    chosen = options(schedule=name, warmup_steps=warmup, decay_steps=decay)
    rate = make_schedule(chosen, PEAK, steps)
    np.testing.assert_allclose(float(rate(warmup)), PEAK, rtol=1e-6)
    if steps - warmup > 1 and name != "constant":
        np.testing.assert_allclose(float(rate(steps - 1)), 0.1 * PEAK, rtol=1e-5)


def test_wsd_stays_and_then_falls():
    rate = make_schedule(options(schedule="wsd"), PEAK, STEPS)
    np.testing.assert_allclose(float(rate(STEPS - 1 - DECAY)), PEAK, rtol=1e-6)
    assert float(rate(STEPS - DECAY)) < PEAK
    np.testing.assert_allclose(float(rate(STEPS - 1 - DECAY // 2)), 0.55 * PEAK, rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_lowers_a_quadratic(name):
    params = tiny.params(tiny.model())
    goal = jax.tree.map(jnp.zeros_like, params)
    optimizer = make_optimizer(options(name=name, schedule="constant", clip_norm=1.0), STEPS)
    distance = lambda p: sum(
        jnp.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (p, goal)), strict=True)
    )

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(distance)(params), state, params)
        return optax.apply_updates(params, updates), state

    start, state = distance(params), optimizer.init(params)
    for _ in range(5):
        params, state = step(params, state)
    assert distance(params) < start


@pytest.mark.parametrize(
    ("more", "stack"), [({}, "up"), ({"experts": 3, "experts_per_token": 2}, "expert_up")]
)
def test_muon_orthogonalizes_each_matrix_of_the_stack(more, stack):
    """The update of a stacked matrix has equal singular values; embedding and norms take Adam's."""
    params = tiny.params(tiny.model(**more))
    chosen = options(name="muon", schedule="constant", warmup_steps=0, muon_iterations=12)
    optimizer = make_optimizer(chosen, STEPS)
    gradient = jax.tree.map(lambda x: x + 0.1, params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    stacked = np.asarray(updates["blocks"]["feed_forward"][stack])
    for matrix in stacked.reshape(-1, *stacked.shape[-2:]):
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert singular.max() / singular.min() < 2.0
    # Adam's first step is as large for every number; optax gives it Nesterov's momentum too.
    step = np.abs(np.asarray(updates["embedding"]))
    np.testing.assert_allclose(step, step.mean(), rtol=1e-2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_matrices_decay(name):
    params = tiny.params(tiny.model())
    optimizer = make_optimizer(options(name=name, weight_decay=0.1), STEPS)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    attention = updates["blocks"]["attention"]
    assert float(jnp.abs(attention["query"]).max()) > 0
    assert float(jnp.abs(attention["norm"]).max()) == 0
    assert float(jnp.abs(updates["final_norm"]).max()) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"qkv_bias": True, "query_key_norm": "head"},
        {
            "norm": "layer", "norm_bias": True, "gated": False, "feed_forward_bias": True,
            "qkv_bias": True, "output_bias": True, "learned_positions": True,
        },
    ],
)  # fmt: skip
def test_stacked_norms_and_biases_are_not_matrices(fields):
    params = tiny.params(tiny.model(**fields))
    for path, matrix in jax.tree_util.tree_leaves_with_path(is_matrix(params)):
        leaf = params
        for key in path:
            leaf = leaf[key.key]
        assert matrix == (leaf.ndim - (path[0].key == "blocks") == 2), path
    assert sum(jax.tree.leaves(is_matrix(params))) == 8


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"name": "sgd"}, "adamw, muon"),
        ({"schedule": "cosin"}, "cosine, linear"),
        ({"warmup_steps": STEPS}, "use 0 to 99"),
        ({"schedule": "wsd", "decay_steps": 95}, "1 to 90"),
    ],
)
def test_mistakes_name_the_choices(changed, expected):
    with pytest.raises(UserError, match=expected):
        make_optimizer(options(**changed), STEPS)


def test_one_step_has_no_warm_up():
    with pytest.raises(UserError, match=r"1 of 1 steps: use 0$"):
        make_optimizer(options(warmup_steps=1), 1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_have_no_moments_and_never_move(name):
    params = tiny.params(tiny.model())
    frozen = ("embedding", "blocks/attention/.*")
    chosen = options(name=name, frozen=frozen, weight_decay=0.1)
    optimizer = make_optimizer(chosen, STEPS)
    state = optimizer.init(params)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    stays = frozen_parameters(params, frozen)
    for update, still in zip(jax.tree.leaves(updates), jax.tree.leaves(stays), strict=True):
        assert bool(jnp.all(update == 0)) == still
    sizes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert params["embedding"].shape not in sizes
    assert params["final_norm"].shape in sizes


@pytest.mark.parametrize("pattern", ["embeding", "("])
def test_a_frozen_pattern_must_mean_something(pattern):
    with pytest.raises(UserError, match=r"config.optim.frozen has"):
        frozen_parameters(tiny.params(tiny.model()), (pattern,))
