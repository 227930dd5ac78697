"""Laws that every divergence obeys, whatever the logits, and the limits that join them."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distill_jax.losses.divergences import DIVERGENCES, token_divergence
from tests.losses.test_divergences import distribution, logits, parameters_of

V = 6
quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
numbers = st.floats(-8, 8)
excluding = st.one_of(numbers, st.just(-np.inf))
rows = lambda elements: arrays("float64", V, elements=elements)
every = pytest.mark.parametrize("name", DIVERGENCES)


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with jax.enable_x64(True):
        yield


@partial(jax.jit, static_argnums=0)
def value(name, z, t):
    return token_divergence(name, z, t, **parameters_of(name))


@every
@quick
@given(z=rows(numbers), t=rows(numbers))
def test_zero_only_at_equality(name, z, t):
    # Far enough from each other for float64 to tell a square of the distance from 0.
    distance = np.abs(distribution(z) - distribution(t)).sum()
    assert value(name, z, t) >= -1e-12
    assert distance < 1e-3 or value(name, z, t) > 1e-9
    np.testing.assert_allclose(value(name, z, z), 0, atol=1e-12)


@every
@quick
@given(
    z=rows(excluding),
    t=rows(excluding),
    left=numbers,
    right=numbers,
    order=st.permutations(range(V)),
)
def test_neither_shifts_nor_the_order_of_the_vocabulary_matter(name, z, t, left, right, order):
    z[0], t[-1] = max(z[0], 0), max(t[-1], 0)
    order = np.array(order)
    expected = value(name, z, t)
    assert np.isfinite(expected)
    near = partial(np.testing.assert_allclose, desired=expected, rtol=1e-9, atol=1e-12)
    near(value(name, z[order], t[order]))
    near(value(name, z + left, t + right))


@quick
@given(z=rows(numbers), t=rows(numbers))
def test_adaptive_kl_lies_between_the_two_that_it_weighs(z, t):
    ends = sorted(float(value(name, z, t)) for name in ("forward_kl", "reverse_kl"))
    assert ends[0] - 1e-12 <= value("adaptive_kl", z, t) <= ends[1] + 1e-12


LIMITS = [
    ("jsd", {"beta": 1e-7}, 1e7, "forward_kl", 1e-4),
    ("jsd", {"beta": 1 - 1e-7}, 1e7, "reverse_kl", 1e-4),
    ("skew_forward_kl", {"alpha": 0.0}, 1, "forward_kl", 1e-12),
    ("skew_forward_kl", {"alpha": 1e-9}, 1, "forward_kl", 1e-6),
    ("skew_reverse_kl", {"alpha": 0.0}, 1, "reverse_kl", 1e-12),
    ("skew_reverse_kl", {"alpha": 1e-9}, 1, "reverse_kl", 1e-6),
    ("alpha_beta", {"a": 1, "b": 0}, 1, "forward_kl", 1e-12),
    ("alpha_beta", {"a": 1, "b": 1e-3}, 1, "forward_kl", 1e-2),
    ("alpha_beta", {"a": 0, "b": 1}, 1, "reverse_kl", 1e-12),
    ("alpha_beta", {"a": 1e-3, "b": 1}, 1, "reverse_kl", 1e-2),
    ("taid", {"t": 1.0}, 1, "forward_kl", 1e-12),
    ("taid", {"t": 1 - 1e-9}, 1, "forward_kl", 1e-6),
    ("entropy_aware", {"entropy": math.inf}, 1, "reverse_kl", 1e-12),
]


@pytest.mark.parametrize(("name", "parameters", "scale", "limit", "rtol"), LIMITS)
def test_limits(name, parameters, scale, limit, rtol):
    z, t = logits(1), logits(2)
    result = scale * token_divergence(name, z, t, **parameters)
    np.testing.assert_allclose(result, value(limit, z, t), rtol=rtol)


def test_what_the_definitions_promise():
    z, t = logits(1), logits(2)
    q, p = distribution(z), distribution(t)
    at = lambda name, **parameters: token_divergence(name, z, t, **parameters)
    assert np.all(at("skew_forward_kl", alpha=0.1) <= -np.log(0.1))
    assert np.all(at("skew_reverse_kl", alpha=0.1) <= -np.log(0.1))
    np.testing.assert_allclose(at("jsd", beta=0.3), token_divergence("jsd", t, z, beta=0.7))
    hellinger = np.sum((np.sqrt(q) - np.sqrt(p)) ** 2, -1) / 2
    np.testing.assert_allclose(at("alpha_beta", a=0.5, b=0.5), 4 * hellinger)
    np.testing.assert_allclose(
        at("entropy_aware", entropy=0.0), at("forward_kl") + at("reverse_kl")
    )
    np.testing.assert_allclose(at("taid", t=0.0), 0, atol=1e-12)


def test_the_gradient_of_taid_is_the_students_distance_from_the_detached_target():
    z, t = jnp.asarray(logits(1)), jnp.asarray(logits(2))
    gradient = jax.jit(
        lambda z, share: jax.grad(lambda z: token_divergence("taid", z, t, t=share).sum())(z)
    )
    for share in (0.0, 0.4, 1.0):
        target = distribution(np.asarray((1 - share) * z + share * t))
        expected = distribution(np.asarray(z)) - target
        np.testing.assert_allclose(gradient(z, share), expected, atol=1e-12)
