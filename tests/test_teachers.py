"""Laws of what teaches: mixtures, the running average, parts, caches, and schedules in the step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.losses import partial_targets
from distill_jax.losses.terms import CROSS_ENTROPY, Term, make_plan
from distill_jax.objective import (
    cached_teacher,
    live_teacher,
    mixed_teachers,
    objective,
    partial_teacher,
    teacher_targets,
)
from distill_jax.step import init_state, make_train_step
from tests import tiny

KEY = jax.random.key(0)
FORWARD = (Term("forward_kl", 1.0),)


@pytest.fixture(scope="module")
def models():
    student, one, other = tiny.model(), tiny.model(width=24, blocks=3), tiny.model(width=32)
    return student, one, other, tiny.params(student, 1), tiny.params(one, 2), tiny.params(other, 3)


def value(models, teach, params, batch=None, terms=FORWARD):
    batch = jax.tree.map(jnp.asarray, batch or tiny.batch())
    of = partial(objective, student=models[0], teach=teach, block_tokens=8, terms=terms)
    return of(models[3], params, batch, KEY, float(batch.weight_BT.sum()))


@pytest.mark.parametrize("space", ["probability", "logits"])
def test_a_mixture_of_a_teacher_with_itself_is_the_teacher(models, space):
    single, _ = value(models, live_teacher(models[1]), (models[4],))
    teach = mixed_teachers((models[1], models[1]), (0.25, 0.75), space)
    double, _ = value(models, teach, (models[4], models[4]))
    np.testing.assert_allclose(double, single, rtol=1e-5)


def test_the_two_spaces_of_a_mixture_differ_and_weights_choose(models):
    pair, params = models[1:3], (models[4], models[5])
    losses = {
        space: float(value(models, mixed_teachers(pair, (0.5, 0.5), space), params)[0])
        for space in ("probability", "logits")
    }
    assert abs(losses["probability"] - losses["logits"]) > 1e-3
    nearly, _ = value(models, mixed_teachers(pair, (1 - 1e-7, 1e-7), "probability"), params)
    alone, _ = value(models, live_teacher(models[1]), (models[4],))
    np.testing.assert_allclose(nearly, alone, rtol=1e-4)


def stored(models, batch):
    """Targets of a batch as a cache would give them, by kind, with what cached_teacher needs."""
    full = teacher_targets(models[1], models[4], batch)
    k = models[1].config.vocab
    top = partial_targets.top_k(full, k, temperatures=(1.0,), policy="tail_bucket", block_tokens=8)
    head = (full.unembed.weight_DV, full.unembed.bias_V)
    return {
        "hidden": ({"hidden": full.hidden_BTD}, (head,)),
        "top_k": ({"ids": top.ids_BTE, "logits": top.logits_BTE, "rest": top.rest_BTM}, ()),
    }


@pytest.mark.parametrize("kind", ["hidden", "top_k"])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "taid"])
def test_stored_targets_give_the_live_loss(models, kind, name):
    batch = jax.tree.map(jnp.asarray, tiny.batch())
    targets, params = stored(models, batch)[kind]
    teach = cached_teacher(
        kind, head=(None, 1.0), temperatures=(1.0,), policy="tail_bucket", vocab=tiny.VOCAB
    )
    terms = (Term(name, 1.0),)
    live, _ = value(models, live_teacher(models[1]), (models[4],), batch, terms)
    again, _ = value(models, teach, params, batch._replace(targets=targets), terms)
    np.testing.assert_allclose(again, live, rtol=2e-5)


def steps(models, plan, teach, params, count, *, state=None, optimizer=None, **more):
    optimizer = optimizer or optax.sgd(0.1)
    loss = partial(objective, student=models[0], teach=teach, block_tokens=8)
    options = {"microbatches": 1, "average_decay": 0.9} | more
    step = make_train_step(loss, optimizer, plan, **options)
    if state is None:
        start = jax.tree.map(jnp.array, models[3])
        average = teach is not None and len(params) == 0
        state = init_state(start, optimizer, plan, keep_average=average)
    seen = []
    for i in range(int(state.step), int(state.step) + count):
        state, metrics = step(state, params, tiny.batch(seed=i), KEY)
        seen.append({k: np.asarray(v) for k, v in metrics.items() if not isinstance(v, tuple)})
    return state, seen


def test_draws_do_not_depend_on_micro_batches(models):
    def part(targets, batch, key):
        uniform = partial_targets.uniforms(key, batch.tokens_BT, batch.segment_BT, 9)
        return partial_targets.sampled(targets, uniform, block_tokens=8)

    teach = partial_teacher(live_teacher(models[1]), part)
    run = partial(steps, models, make_plan(FORWARD, 1), teach, (models[4],), 2)
    (whole, seen), (split, other) = run(), run(microbatches=4)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(split.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    assert float(seen[0]["loss"]) != float(seen[1]["loss"])
    np.testing.assert_allclose(seen[1]["loss"], other[1]["loss"], rtol=1e-5)


def test_the_students_average_teaches_and_follows(models):
    plan = make_plan((Term("forward_kl", 1.0), Term(CROSS_ENTROPY, 1.0)), 1)
    state, seen = steps(models, plan, live_teacher(models[0]), (), 1)
    assert abs(float(seen[0]["loss"])) > 1.0  # the labels'
    for average, before, after in zip(
        *map(jax.tree.leaves, (state.average, models[3], state.params)), strict=True
    ):
        np.testing.assert_allclose(average, 0.9 * before + 0.1 * after, rtol=1e-5, atol=1e-7)
    alone, _ = steps(models, make_plan((Term(CROSS_ENTROPY, 1.0),), 1), None, (), 1)
    # At the first step the average is the student itself, so only the labels move it.
    for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert alone.average is None


def test_taid_moves_in_the_state_and_a_resumed_run_goes_on_with_it(models):
    plan = make_plan(
        (Term("taid", 1.0, 1.0, (("t", 0.4),)),), 6, {}, {"taid": {"momentum": 0.9, "rate": 0.3}}
    )
    run = partial(steps, models, plan, live_teacher(models[1]), (models[4],))
    whole, seen = run(6)
    half, first = run(3)
    rest, second = run(3, state=jax.tree.map(jnp.array, half))
    assert [float(m["loss"]) for m in seen] == [float(m["loss"]) for m in first + second]
    assert float(whole.adaptive["taid"]["t"]) == float(rest.adaptive["taid"]["t"]) == 1.0
    moved = [float(m["taid_t"]) for m in seen]
    assert moved == sorted(moved)
    assert moved[0] == pytest.approx(0.4)
    assert moved[-1] > 0.8


def test_a_refused_update_leaves_schedule_and_average_as_they_were(models):
    plan = make_plan(
        (Term("taid", 1.0, 1.0, (("t", 0.4),)),), 6, {}, {"taid": {"momentum": 0.9, "rate": 0.3}}
    )
    bad = jax.tree.map(lambda x: x * jnp.nan, models[4])
    good, _ = steps(models, plan, live_teacher(models[1]), (models[4],), 2)
    kept = jax.tree.map(np.asarray, good.adaptive)
    after, _ = steps(models, plan, live_teacher(models[1]), (bad,), 1, state=good)
    assert int(after.skipped) == 1
    assert jax.tree.map(float, after.adaptive) == jax.tree.map(float, kept)


def test_a_weight_of_a_schedule_is_the_weight_in_the_step(models):
    terms = (Term("forward_kl", 1.0),)
    moving = make_plan(terms, 3, {"forward_kl": "linear:0"}, {})
    run = partial(steps, models, teach=live_teacher(models[1]), params=(models[4],), count=1)
    state = lambda step: init_state(
        jax.tree.map(jnp.array, models[3]), optax.sgd(0.1), moving
    )._replace(step=jnp.int32(step))
    losses = [float(run(plan=moving, state=state(i))[1][0]["loss"]) for i in (1, 2)]
    fixed = float(run(plan=make_plan(terms, 3), state=state(1))[1][0]["loss"])
    assert losses[0] == pytest.approx(fixed / 2, rel=1e-6)
    assert losses[1] == 0.0
