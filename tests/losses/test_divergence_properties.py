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

from distill_jax.losses.divergences import (
    DIVERGENCES,
    check_parameters,
    divergence,
    log_probabilities,
    token_divergence,
)
from distill_jax.types import UserError
from tests.losses.test_divergences import (
    ORACLES,
    distribution,
    logits,
    parameters_of,
    value_and_gradients,
)

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


def value(name, z, t):
    return value_and_gradients(name, z, t)[0]


@every
@quick
@given(z=rows(numbers), t=rows(numbers))
def test_zero_with_its_gradients_at_equality_and_only_there(name, z, t):
    # Far enough from each other for float64 to tell a square of the distance from 0.
    distance = np.abs(distribution(z) - distribution(t)).sum()
    assert value(name, z, t) >= -1e-12
    assert distance < 1e-3 or value(name, z, t) > 1e-9
    for zero in value_and_gradients(name, z, z):
        np.testing.assert_allclose(zero, 0, atol=1e-12)


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


def extremes():
    """Rows of student and teacher logits; in the last three, both sides are equal."""
    z, t = logits(1, 1e4, (9,)), logits(2, 1e4, (9,))
    low, high = np.where(np.arange(9) < 4, -np.inf, z), np.where(np.arange(9) < 4, z, -np.inf)
    one, uniform = np.where(np.arange(9) == 3, 0.0, -np.inf), np.zeros(9)
    pairs = [
        (z, t),
        (low, t),
        (z, low),
        (low, low / 2),
        (low, high),
        (one, uniform),
        (uniform, one),
        (one, np.roll(one, 1)),
        (low, low),
        (one, one),
        (z, z),
    ]
    return tuple(np.stack(side) for side in zip(*pairs, strict=True))


@every
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_logits_stay_finite(name, dtype):
    for z, t in (extremes(), (np.ones((3, 1)), np.zeros((3, 1)))):
        results = value_and_gradients(name, z.astype(dtype), t.astype(dtype))
        assert np.all(results[0] >= -1e-6)
        for result in results:
            assert result.dtype == dtype
            assert np.all(np.isfinite(result))
            np.testing.assert_allclose(result[-3:], 0, atol=1e-6)


def test_infinite_divergences_are_huge():
    one, uniform = jnp.array([0.0, -np.inf]), jnp.zeros(2)
    assert token_divergence("forward_kl", one, uniform) > 1e29
    assert token_divergence("reverse_kl", uniform, one) > 1e29
    np.testing.assert_allclose(token_divergence("reverse_kl", one, uniform), math.log(2))


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


@pytest.mark.parametrize(
    ("name", "parameters", "remedy"),
    [
        ("jsd", {"beta": 0.0}, "forward_kl"),
        ("jsd", {"beta": -1.0}, "forward_kl"),
        ("jsd", {"beta": 1.0}, "reverse_kl"),
        ("skew_forward_kl", {"alpha": 1.0}, "alpha"),
        ("skew_reverse_kl", {"alpha": -0.1}, "alpha"),
        ("alpha_beta", {"a": -0.1, "b": 0.5}, "0 or at least 0.001"),
        ("alpha_beta", {"a": 0.5, "b": 1e-5}, "0 or at least 0.001"),
        ("alpha_beta", {"a": 0.0, "b": 0.0}, "not 0 for both"),
        ("alpha_beta", {"a": math.inf, "b": 1.0}, "0.2 and 0.7"),
        ("adaptive_kl", {"mu": -0.1}, "0.5"),
        ("adaptive_kl", {"mu": 1.0}, "forward_kl"),
        ("taid", {"t": 1.5}, "0 to 1"),
        ("taid", {"t": np.float32(-0.5)}, "0 to 1"),
        ("entropy_aware", {"entropy": -1.0}, "0 or more"),
        *((name, {key: math.nan}, "use") for name in ORACLES for key in parameters_of(name)),
    ],
)
def test_meaningless_parameters_name_the_remedy(name, parameters, remedy):
    with pytest.raises(UserError, match=remedy) as error:
        check_parameters(name, parameters)
    assert "\n" not in str(error.value)


@every
def test_defaults_mean_something_and_are_taken_where_none_are_given(name):
    kind = DIVERGENCES[name]
    assert (kind.phi is None) != (kind.row is None)
    check_parameters(name, kind.parameters)
    log_q, log_p = log_probabilities(logits(1)), log_probabilities(logits(2))
    expected = divergence(name, log_q, log_p, **kind.parameters)
    np.testing.assert_array_equal(token_divergence(name, logits(1), logits(2)), expected)
