"""Laws of the divergences, held for every entry of the registry against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses.divergences import DIVERGENCES, token_divergence
from distill_jax.types import UserError

PARAMETERS = {
    "jsd": {"beta": 0.3},
    "skew_forward_kl": {"alpha": 0.1},
    "skew_reverse_kl": {"alpha": 0.1},
}
V = 17


def logits(seed, scale=2.0, shape=(4, V)):
    return np.random.default_rng(seed).normal(size=shape) * scale


def distribution(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def oracle(name, q, p):
    kl = lambda a, b: np.sum(a * np.log(a / b), -1)
    m = 0.3 * p + 0.7 * q
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: 0.3 * kl(p, m) + 0.7 * kl(q, m),
        "skew_forward_kl": lambda: kl(p, 0.1 * p + 0.9 * q),
        "skew_reverse_kl": lambda: kl(q, 0.9 * p + 0.1 * q),
        "total_variation": lambda: np.abs(p - q).sum(-1) / 2,
    }[name]()


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


every = pytest.mark.parametrize("name", DIVERGENCES)


def value(name, z, t, **more):
    return token_divergence(name, z, t, **PARAMETERS.get(name, {}), **more)


@every
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equals_numpy_times_temperature_squared(name, temperature):
    z, t = logits(1), logits(2)
    expected = temperature**2 * oracle(
        name, distribution(z / temperature), distribution(t / temperature)
    )
    np.testing.assert_allclose(value(name, z, t, temperature=temperature), expected, rtol=1e-10)


@every
def test_zero_exactly_at_equality_and_positive_elsewhere(name):
    z, t = logits(1), logits(2)
    np.testing.assert_allclose(value(name, z, z), 0, atol=1e-12)
    np.testing.assert_allclose(value(name, z + 3.0, z), 0, atol=1e-12)
    assert np.all(value(name, z, t) > 1e-3)


@every
def test_a_joint_permutation_of_the_vocabulary_changes_nothing(name):
    z, t = logits(1), logits(2)
    order = np.random.default_rng(0).permutation(V)
    np.testing.assert_allclose(value(name, z[:, order], t[:, order]), value(name, z, t), rtol=1e-12)


@every
def test_gradient_equals_finite_differences(name):
    z, t = jnp.asarray(logits(1, shape=(V,))), jnp.asarray(logits(2, shape=(V,)))
    gradient = jax.grad(lambda z: value(name, z, t))(z)
    step = 1e-5
    for v in range(V):
        e = step * jnp.eye(V)[v]
        numeric = (value(name, z + e, t) - value(name, z - e, t)) / (2 * step)
        np.testing.assert_allclose(gradient[v], numeric, atol=1e-8)


@every
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_excluded_entries_and_extreme_logits_stay_finite(name, side):
    z, t = logits(1, 1e4), logits(2, 1e4)
    if side != "teacher":
        z[:, :5] = -np.inf
    if side != "student":
        t[:, :5] = -np.inf
    result, gradient = jax.value_and_grad(lambda z: value(name, z, jnp.asarray(t)).sum())(
        jnp.asarray(z)
    )
    assert np.isfinite(result)
    assert np.all(np.isfinite(gradient))


def test_known_gradients():
    z, t = jnp.asarray(logits(1, shape=(V,))), jnp.asarray(logits(2, shape=(V,)))
    q, p = distribution(np.asarray(z)), distribution(np.asarray(t))
    forward = jax.grad(lambda z: value("forward_kl", z, t))(z)
    np.testing.assert_allclose(forward, q - p, atol=1e-12)
    ratio = np.log(q / p)
    reverse = jax.grad(lambda z: value("reverse_kl", z, t))(z)
    np.testing.assert_allclose(reverse, q * (ratio - np.sum(q * ratio)), atol=1e-12)
    warm = jax.grad(lambda z: value("forward_kl", z, t, temperature=1e5))(z)
    np.testing.assert_allclose(warm, ((z - z.mean()) - (t - t.mean())) / V, rtol=1e-3, atol=1e-6)


def test_beta_weighs_the_teacher():
    """The limits of GKD's convention: jsd/beta is forward KL, jsd/(1-beta) is reverse KL."""
    z, t = logits(1), logits(2)
    small = 1e-7
    forward = token_divergence("jsd", z, t, beta=small) / small
    np.testing.assert_allclose(forward, value("forward_kl", z, t), rtol=1e-4)
    reverse = token_divergence("jsd", z, t, beta=1 - small) / small
    np.testing.assert_allclose(reverse, value("reverse_kl", z, t), rtol=1e-4)


def test_skewed_kl_without_skew_is_kl():
    z, t = logits(1), logits(2)
    for skewed, plain in [("skew_forward_kl", "forward_kl"), ("skew_reverse_kl", "reverse_kl")]:
        result = token_divergence(skewed, z, t, alpha=0.0)
        np.testing.assert_allclose(result, value(plain, z, t), rtol=1e-12)
    assert np.all(token_divergence("skew_forward_kl", z, t, alpha=0.1) <= -np.log(0.1))


@pytest.mark.parametrize(
    ("name", "parameters", "remedy"),
    [
        ("jsd", {"beta": 0.0}, "forward_kl"),
        ("jsd", {"beta": 1.0}, "reverse_kl"),
        ("skew_forward_kl", {"alpha": 1.0}, "alpha"),
        ("skew_reverse_kl", {"alpha": -0.1}, "alpha"),
    ],
)
def test_meaningless_parameters_name_the_remedy(name, parameters, remedy):
    with pytest.raises(UserError, match=remedy):
        token_divergence(name, logits(1), logits(2), **parameters)
