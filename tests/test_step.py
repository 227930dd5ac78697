"""Laws of the objective and the jitted step on tiny models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.losses.divergences import DIVERGENCES
from distill_jax.losses.terms import CROSS_ENTROPY, Term, make_plan
from distill_jax.objective import live_teacher, objective
from distill_jax.step import init_state, make_train_step
from tests import tiny
from tests.losses.test_divergences import PARAMETERS

NAMES = [*DIVERGENCES, CROSS_ENTROPY]


@pytest.fixture(scope="module")
def pair():
    student, teacher = tiny.model(), tiny.model(width=24, blocks=3)
    return student, teacher, tiny.params(student, 1), tiny.params(teacher, 2)


def terms(name="forward_kl"):
    return (Term(name, 1.0, 1.0, tuple(PARAMETERS.get(name, {}).items())),)


KEY = jax.random.key(0)


def loss_of(pair):
    student, teacher, *_ = pair
    teach = teacher and live_teacher(teacher)
    return partial(objective, student=student, teach=teach, block_tokens=8)


def plan(name="forward_kl"):
    return make_plan(terms(name), 1)


def one_step(pair, batch, *, microbatches=1, name="forward_kl", optimizer=None):
    optimizer = optimizer or optax.sgd(1.0)
    step = make_train_step(loss_of(pair), optimizer, plan(name), microbatches=microbatches)
    state = init_state(jax.tree.map(jnp.array, pair[2]), optimizer, plan(name))
    return step(state, (pair[3],), batch, KEY)


def difference(a, b):
    return max(
        float(jnp.max(jnp.abs(x - y)))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_any_split_of_a_batch_gives_the_same_update(pair, name):
    """Micro-batches hold different numbers of counted tokens, and 1 still equals 4."""
    whole, metrics = one_step(pair, tiny.batch(), name=name)
    split, split_metrics = one_step(pair, tiny.batch(), name=name, microbatches=4)
    assert difference(whole.params, split.params) < 2e-6
    np.testing.assert_allclose(metrics["loss"], split_metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["nll"].total, split_metrics["nll"].total, rtol=1e-5)


def test_loss_is_the_mean_over_counted_tokens(pair):
    batch = tiny.batch()
    _, metrics = one_step(pair, batch)
    np.testing.assert_allclose(metrics["forward_kl"].count, batch.weight_BT.sum())
    mean = metrics["forward_kl"].total / metrics["forward_kl"].count
    np.testing.assert_allclose(metrics["loss"], mean, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_masked_positions_have_exactly_no_influence(pair, name):
    batch = tiny.batch()
    r = np.random.default_rng(9)
    anything = r.integers(0, tiny.VOCAB, batch.tokens_BT.shape).astype(np.int32)
    padding = batch.segment_BT == 0
    changed = batch._replace(
        tokens_BT=np.where(padding, anything, batch.tokens_BT),
        labels_BT=np.where(batch.weight_BT == 0, anything, batch.labels_BT),
    )
    first, _ = one_step(pair, batch, name=name)
    second, _ = one_step(pair, changed, name=name)
    assert difference(first.params, second.params) == 0.0


def test_the_teachers_gradient_is_exactly_zero(pair):
    batch = jax.tree.map(jnp.asarray, tiny.batch())
    loss = lambda t: loss_of(pair)(pair[2], (t,), batch, KEY, 10.0, terms=terms())[0]
    gradient = jax.grad(loss)(pair[3])
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(gradient))


def test_a_student_equal_to_its_teacher_does_not_move():
    model = tiny.model()
    params = tiny.params(model)
    same = (model, model, params, params)
    state, metrics = one_step(same, tiny.batch())
    assert float(metrics["loss"]) < 1e-6
    assert difference(state.params, params) < 1e-6


def test_copying_the_input_is_not_rewarded():
    """A student that says its input again has a large loss on the labels: inputs are shifted."""
    model = tiny.model(width=64)
    params = jax.tree.map(jnp.zeros_like, tiny.params(model))
    embedding = 8.0 * jax.random.normal(jax.random.key(0), params["embedding"].shape)
    params |= {"embedding": embedding, "final_norm": jnp.ones_like(params["final_norm"])}
    batch = tiny.batch()
    _, metrics = one_step((model, None, params, None), batch, name=CROSS_ENTROPY)
    copied = batch._replace(labels_BT=batch.tokens_BT)
    _, unshifted = one_step((model, None, params, None), copied, name=CROSS_ENTROPY)
    assert float(unshifted["loss"]) < 0.01
    assert float(metrics["loss"]) > 10.0


def test_updates_that_are_not_finite_are_refused_however_many(pair):
    bad = jax.tree.map(jnp.array, pair[3])
    bad["embedding"] = bad["embedding"].at[:].set(jnp.nan)
    optimizer = optax.adam(1e-2)
    step = make_train_step(loss_of(pair), optimizer, plan(), microbatches=1)
    state = init_state(jax.tree.map(jnp.array, pair[2]), optimizer, plan())
    for _ in range(8):
        state, metrics = step(state, (bad,), tiny.batch(), KEY)
    assert difference(state.params, pair[2]) == 0.0
    assert (int(state.step), int(state.skipped), int(metrics["skipped_in_a_row"])) == (8, 8, 8)
    state, metrics = step(state, (pair[3],), tiny.batch(), KEY)
    assert int(metrics["skipped_in_a_row"]) == 0
    assert difference(state.params, pair[2]) > 0.0
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(state.params))


def test_an_all_masked_batch_changes_nothing(pair):
    batch = tiny.batch()
    empty = batch._replace(weight_BT=np.zeros_like(batch.weight_BT))
    state, metrics = one_step(pair, empty)
    assert float(metrics["loss"]) == 0.0
    assert difference(state.params, pair[2]) == 0.0


def test_the_teacher_is_an_argument_and_not_in_the_program(pair):
    """Constants in the lowered program stay small: parameters closed over would be baked in."""
    step = make_train_step(loss_of(pair), optax.sgd(1.0), plan(), microbatches=1)
    state = init_state(pair[2], optax.sgd(1.0), plan())
    text = step.lower(state, (pair[3],), tiny.batch(), KEY).as_text()
    size = pair[3]["embedding"].size
    assert 'dense<"0x' not in text or len(text) < 8 * size * 4
    assert text.count("tf.aliasing_output") + text.count("jax.buffer_donor") >= len(
        jax.tree.leaves(state.params)
    )
