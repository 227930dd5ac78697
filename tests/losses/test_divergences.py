"""Values and gradients of every divergence against float64 NumPy, and at extreme logits."""

import math
from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses.divergences import (
    DIVERGENCES,
    log_probabilities,
    token_divergence,
)

# Where a test needs other parameters than the defaults; jsd's default could not tell its two sides.
PARAMETERS = {"jsd": {"beta": 0.3}}
V = 17


def logits(seed, scale=2.0, shape=(4, V)):
    return np.random.default_rng(seed).normal(size=shape) * scale


def distribution(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(a, b):
    return np.sum(a * np.log(a / b), -1)


def adaptive_oracle(q, p, fixed, mu):
    order = np.argsort(-p, axis=-1)
    head = np.cumsum(np.take_along_axis(p, order, -1), -1) <= mu
    head[..., 0] = True
    gap = np.take_along_axis(np.abs(p - fixed), order, -1)
    share = np.sum(gap * head, -1) / np.sum(gap, -1)
    return share * kl(p, q) + (1 - share) * kl(q, p)


def taid_oracle(q, p, fixed, t):
    between = fixed ** (1 - t) * p**t
    return kl(between / between.sum(-1, keepdims=True), q)


def alpha_beta_oracle(q, p, fixed, a, b):
    if b == 0:
        return np.sum(p**a * np.log(p**a / q**a) - p**a + q**a, -1) / a**2
    if a == 0:
        return np.sum(q**b * np.log(q**b / p**b) - q**b + p**b, -1) / b**2
    return -np.sum(p**a * q**b - (a * p ** (a + b) + b * q ** (a + b)) / (a + b), -1) / (a * b)


def jsd_oracle(q, p, fixed, beta):
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


# oracle(q, p, q where the definition detaches it, **parameters)
ORACLES = {
    "forward_kl": lambda q, p, fixed: kl(p, q),
    "reverse_kl": lambda q, p, fixed: kl(q, p),
    "jsd": jsd_oracle,
    "skew_forward_kl": lambda q, p, fixed, alpha: kl(p, alpha * p + (1 - alpha) * q),
    "skew_reverse_kl": lambda q, p, fixed, alpha: kl(q, (1 - alpha) * p + alpha * q),
    "total_variation": lambda q, p, fixed: np.abs(p - q).sum(-1) / 2,
    "alpha_beta": alpha_beta_oracle,
    "adaptive_kl": adaptive_oracle,
    "taid": taid_oracle,
    "entropy_aware": lambda q, p, fixed, entropy: (
        kl(q, p) + (-np.sum(p * np.log(p), -1) > entropy) * kl(p, q)
    ),
}
MORE = [
    ("jsd", {"beta": 0.9}),
    ("skew_forward_kl", {"alpha": 0.7}),
    ("skew_reverse_kl", {"alpha": 0.7}),
    *(("alpha_beta", {"a": a, "b": b}) for a, b in [(1, 0), (0, 1), (0.5, 0.5), (0, 0.5), (2, 0)]),
    *(("adaptive_kl", {"mu": mu}) for mu in (0.0, 0.2, 0.9)),
    *(("taid", {"t": t}) for t in (0.1, 0.9)),
    *(("entropy_aware", {"entropy": h}) for h in (0.0, 1.8, 2.2)),
]


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with jax.enable_x64(True):
        yield


def parameters_of(name):
    return dict(DIVERGENCES[name].parameters) | PARAMETERS.get(name, {})


every = pytest.mark.parametrize("name", DIVERGENCES)
known = pytest.mark.parametrize(
    ("name", "parameters"), [*((name, parameters_of(name)) for name in ORACLES), *MORE]
)


jitted = jax.jit(
    token_divergence,
    static_argnames=("name", *{key for name in ORACLES for key in parameters_of(name)}),
)


@partial(jax.jit, static_argnums=0)
def value_and_gradients(name, z, t, temperature=1.0):
    """The value, its gradient through the naive form, and as the fused loss takes it."""
    value = lambda z: token_divergence(name, z, t, temperature=temperature, **parameters_of(name))
    naive = jax.grad(lambda z: value(z).sum())(z)
    return value(z), naive, fused_gradient(name, z, t, temperature, parameters_of(name))


def fused_gradient(name, z, t, temperature, parameters):
    """Never through a softmax: losses/token_loss.py."""
    kind = DIVERGENCES[name]
    log_q, log_p = log_probabilities(z, temperature), log_probabilities(t, temperature)
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    if kind.row is None:
        share = lambda log_q, q: kind.phi(log_q, log_p, q, p, **parameters)
        values, pull = jax.vjp(share, log_q, q)
        from_log, from_q = pull(jnp.ones_like(values))
        joint = from_log + q * from_q
    else:
        values, pull = jax.vjp(lambda log_q: kind.row(log_q, log_p, **parameters), log_q)
        (joint,) = pull(jnp.ones_like(values))
    return temperature * (joint - q * jnp.sum(joint, -1, keepdims=True))


@known
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equals_numpy_times_temperature_squared(name, parameters, temperature):
    z, t = logits(1), logits(2)
    q, p = distribution(z / temperature), distribution(t / temperature)
    result = jitted(name, z, t, temperature=temperature, **parameters)
    expected = temperature**2 * ORACLES[name](q, p, q, **parameters)
    np.testing.assert_allclose(result, expected, rtol=1e-10)


@known
def test_float32_is_close_to_float64(name, parameters):
    for scale in (1.0, 5.0, 20.0):
        z, t = (logits(seed, scale, (8, 500)).astype("float32") for seed in (3, 4))
        q, p = distribution(z.astype("float64")), distribution(t.astype("float64"))
        result = jitted(name, z, t, **parameters)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(
            result, ORACLES[name](q, p, q, **parameters), rtol=1e-5, atol=1e-6
        )


@every
def test_gradient_equals_finite_differences(name):
    temperature, step = 2.0, 1e-5
    z, t = logits(1), logits(2)
    near = z[0] + step * np.concatenate([np.eye(V), -np.eye(V)])
    if name in ORACLES:
        softened = [distribution(x / temperature) for x in (near, t[0], z[0])]
        values = temperature**2 * ORACLES[name](*softened, **parameters_of(name))
    else:
        values = token_divergence(name, near, t[0], temperature=temperature)
    numeric = (values[:V] - values[V:]) / (2 * step)
    for gradient in value_and_gradients(name, z, t, temperature)[1:]:
        np.testing.assert_allclose(gradient[0], numeric, atol=1e-8)


@pytest.mark.parametrize("name", [name for name, kind in DIVERGENCES.items() if kind.phi])
def test_single_shares_equal_finite_differences(name):
    """Entry by entry, as partial targets need them: no error hides in a multiple of q."""
    q, p, step = distribution(logits(1)), distribution(logits(2)), 1e-5
    share = lambda log_q, q: DIVERGENCES[name].phi(log_q, np.log(p), q, p, **parameters_of(name))
    result = jax.jvp(share, (jnp.log(q), jnp.asarray(q)), (jnp.ones_like(q), jnp.asarray(q)))[1]
    at = lambda log_q: share(log_q, np.exp(log_q))
    numeric = (at(np.log(q) + step) - at(np.log(q) - step)) / (2 * step)
    np.testing.assert_allclose(result, numeric, atol=1e-8)


def test_known_gradients():
    z, t = logits(1), logits(2)
    q, p = distribution(z), distribution(t)
    gradient = lambda *arguments: value_and_gradients(*arguments)[1]
    np.testing.assert_allclose(gradient("forward_kl", z, t), q - p, atol=1e-12)
    expected = q * (np.log(q / p) - kl(q, p)[:, None])
    np.testing.assert_allclose(gradient("reverse_kl", z, t), expected, atol=1e-12)
    warm = (z - z.mean(-1, keepdims=True) - t + t.mean(-1, keepdims=True)) / V
    np.testing.assert_allclose(gradient("forward_kl", z, t, 1e5), warm, rtol=1e-3, atol=1e-6)


def test_known_values():
    """By hand, for q = (.2, .8) and p = (.9, .1): directions, weights and T² cannot be swapped."""
    z, t = np.log([0.2, 0.8]), np.log([0.9, 0.1])
    at = lambda name, **more: float(token_divergence(name, z, t, **more))
    assert at("forward_kl") == pytest.approx(1.1457255029306632)
    assert at("reverse_kl") == pytest.approx(1.3627377539886140)
    assert at("jsd", beta=0.1) == pytest.approx(0.10038836160508305)
    assert at("jsd", beta=0.9) == pytest.approx(0.11327129462123613)
    assert at("skew_forward_kl", alpha=0.1) == pytest.approx(0.8847880890779078)
    assert at("skew_reverse_kl", alpha=0.1) == pytest.approx(0.954428965645611)
    assert at("total_variation") == pytest.approx(0.7)
    # At T = 2 the student is (1/3, 2/3) and the teacher (3/4, 1/4).
    warm = 0.75 * math.log(0.75 * 3) + 0.25 * math.log(0.25 * 1.5)
    assert at("forward_kl", temperature=2.0) == pytest.approx(4 * warm)


def test_adaptive_kl_matches_gaps_with_their_entries():
    """The likeliest entry is not the first: a mask in sorted order on gaps as they stand gives 1/2.

    The head is entry 1 alone, its gap .4 of 1.2.
    """
    q, p = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.6, 0.3])
    result = token_divergence("adaptive_kl", np.log(q), np.log(p), mu=0.65)
    np.testing.assert_allclose(result, kl(p, q) / 3 + kl(q, p) * 2 / 3, rtol=1e-12)


@pytest.mark.parametrize("p", [(0.25,) * 4, (0.4, 0.2, 0.2, 0.2), (0.1, 0.4, 0.4, 0.1)])
@pytest.mark.parametrize("mu", [0.0, 0.3, 0.65, 0.95])
def test_adaptive_kl_of_equally_likely_entries_is_the_mean_over_their_orders(p, mu):
    q, p = distribution(logits(5, shape=(4,))), np.array(p)
    orders = [list(order) for order in permutations(range(4))]
    # Stable sorting keeps the order of equals, so that all orders of the vocabulary are tried.
    stable = [
        adaptive_oracle(q[order], p[order] - 1e-12 * np.arange(4), q[order], mu) for order in orders
    ]
    result = jitted("adaptive_kl", np.log(q), np.log(p), mu=mu)
    np.testing.assert_allclose(result, np.mean(stable), rtol=1e-9)
