"""Top-k entries and draws of a teacher: what they are, and what their gradient is in the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses import partial_targets
from distill_jax.losses.divergences import DIVERGENCES, token_divergence
from distill_jax.losses.fused import linear_divergence
from distill_jax.losses.sparse import POLICIES
from distill_jax.losses.terms import Term
from distill_jax.types import Projected, Sampled, Unembed, UserError

B, T, D, V = 2, 5, 6, 50
EYE = Unembed(jnp.eye(V))


def logits(seed, scale=2.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(B, T, V)) * scale, jnp.float32)


def loss(z, targets, name="forward_kl", temperature=1.0):
    total, _ = linear_divergence(
        z, EYE, targets, jnp.zeros((B, T), jnp.int32), jnp.ones((B, T)),
        terms=(Term(name, 1.0, temperature),), block_tokens=4,
    )  # fmt: skip
    return total


def teacher(t):
    return Projected(t, EYE)


def top(t, k, policy, temperatures=(1.0,)):
    return partial_targets.top_k(
        teacher(t), k, temperatures=temperatures, policy=policy, block_tokens=3
    )


def test_top_k_entries_and_the_rest_equal_numpy():
    t = logits(1)
    targets = top(t, 5, "tail_bucket", (1.0, 2.0))
    order = np.argsort(-np.asarray(t), -1)
    np.testing.assert_array_equal(targets.ids_BTE, order[..., :5])
    rest = np.take_along_axis(np.asarray(t, np.float64), order[..., 5:], -1)
    for i, temperature in enumerate((1.0, 2.0)):
        expected = np.log(np.exp(rest / temperature).sum(-1))
        np.testing.assert_allclose(targets.rest_BTM[..., i], expected, rtol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_entries_are_the_full_divergence(name, policy, temperature):
    z, t = logits(1), logits(2)
    full = token_divergence(name, z, t, temperature=temperature).sum()
    targets = top(t, V, policy, (1.0, 2.0))
    if policy == "renormalise" and name in ("reverse_kl", "adaptive_kl", "entropy_aware"):
        with pytest.raises(UserError, match="infinite"):
            loss(z, targets, name, temperature)
        return
    np.testing.assert_allclose(loss(z, targets, name, temperature), full, rtol=2e-5)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "total_variation"])
def test_a_tail_bucket_is_a_lower_bound(name):
    z, t = logits(1), logits(2)
    full = float(token_divergence(name, z, t).sum())
    values = [float(loss(z, top(t, k, "tail_bucket"), name)) for k in (1, 5, 20, V)]
    assert all(value <= full * (1 + 1e-5) for value in values)
    assert values == sorted(values)


def test_the_meanings_of_a_top_5_divergence_differ_and_only_truncation_goes_below_zero():
    z, t = logits(1, 4.0), logits(2, 1.0)
    values = {policy: float(loss(z, top(t, 5, policy))) for policy in POLICIES}
    assert len({round(value, 3) for value in values.values()}) == 3
    assert float(loss(top_heavy(t), top(t, 5, "truncate"))) < 0 <= values["tail_bucket"]


def top_heavy(t):
    """A student that has moved all of its mass into the teacher's top 5."""
    order = jnp.argsort(-t, -1)
    rank = jnp.argsort(order, -1)
    return jnp.where(rank < 5, t, t - 30)


def test_an_unknown_policy_and_temperature_say_what_to_do():
    z, t = logits(1), logits(2)
    with pytest.raises(UserError, match="use one of tail_bucket"):
        loss(z, top(t, 5, "drop"))
    with pytest.raises(UserError, match="make targets for it"):
        loss(z, top(t, 5, "tail_bucket"), temperature=2.0)
    with pytest.raises(UserError, match="draws at temperature 1"):
        loss(z, Sampled(jnp.zeros((B, T, 1), jnp.int32), jnp.ones((B, T, 1)), V), temperature=2.0)


def test_draws_have_the_teachers_frequencies():
    t = logits(3)[:1, :1] * jnp.ones((1, 1, 1))
    uniform = jax.random.uniform(jax.random.key(0), (1, 1, 60_000))
    ids = np.asarray(partial_targets.draw(t, uniform)).ravel()
    p = np.asarray(jax.nn.softmax(t)).ravel()
    found = np.bincount(ids, minlength=V) / len(ids)
    assert np.abs(found - p).max() < 5 * np.sqrt(0.25 / len(ids))


@pytest.mark.parametrize("size", [1, 7, 256, 257, 1000])
def test_draws_of_any_vocabulary_find_the_only_entry_with_mass(size):
    for place in {0, size // 2, size - 1}:
        z = jnp.full((1, size), -200.0).at[0, place].set(0.0)
        uniform = jnp.asarray([[0.0, 0.3, 0.999999, 1 - 2**-24]])
        np.testing.assert_array_equal(partial_targets.draw(z, uniform), place)


def test_distinct_ids_keep_their_counts():
    ids, counts = partial_targets.distinct(jnp.array([[7, 3, 7, 7, 0]]))
    assert {int(i): int(c) for i, c in zip(ids[0], counts[0], strict=True) if i >= 0} == {
        7: 3, 3: 1, 0: 1,
    }  # fmt: skip


def test_draws_depend_on_the_row_and_not_on_its_neighbors():
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 99, (4, 8)), jnp.int32)
    segment, key = jnp.ones_like(tokens), jax.random.key(3)
    whole = partial_targets.uniforms(key, tokens, segment, 5)
    part = partial_targets.uniforms(key, tokens[2:3], segment[2:3], 5)
    np.testing.assert_array_equal(whole[2], part[0])
    assert len({float(x) for x in whole[:, 0, 0]}) == 4


def cosine(a, b):
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_random_sampling_has_the_full_gradient_in_the_mean_and_top_5_has_not():
    """2503.16870. The negative control: renormalised top-5 points elsewhere, however often."""
    z, t = logits(4, 1.0), logits(5, 1.0)
    full = jax.grad(loss)(z, teacher(t))

    @jax.jit
    def one(total, key):
        uniform = jax.random.uniform(key, (B, T, 50))
        targets = partial_targets.sampled(teacher(t), uniform, block_tokens=100)
        return total + jax.grad(loss)(z, targets), None

    total, _ = jax.lax.scan(one, jnp.zeros_like(z), jax.random.split(jax.random.key(0), 3000))
    assert cosine(total, full) > 0.9999
    assert cosine(jax.grad(loss)(z, top(t, 5, "renormalise")), full) < 0.95


def test_gemmas_form_has_the_teachers_proportions_on_the_drawn_entries():
    t = logits(6)
    uniform = jax.random.uniform(jax.random.key(1), (B, T, 20))
    targets = partial_targets.sampled_renormalised(
        teacher(t), uniform, temperatures=(1.0,), block_tokens=4
    )
    held = np.asarray(targets.ids_BTE) >= 0
    picked = np.take_along_axis(np.asarray(t), np.maximum(targets.ids_BTE, 0), -1)
    np.testing.assert_array_equal(np.where(held, targets.logits_BTE, 0), np.where(held, picked, 0))
    mass = np.exp(np.asarray(targets.rest_BTM[..., 0])) + np.where(held, np.exp(picked), 0).sum(-1)
    np.testing.assert_allclose(mass, np.exp(np.asarray(t)).sum(-1), rtol=1e-5)
    assert targets.policy == "renormalise"
