"""The fused loss equals the naive form that holds all logits, for every divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses.divergences import DIVERGENCES, log_probabilities, token_divergence
from distill_jax.losses.fused import linear_divergence
from distill_jax.losses.terms import CROSS_ENTROPY, Term
from distill_jax.types import Projected, Unembed
from tests.losses.test_divergences import PARAMETERS

B, T, D, TEACHER_D, V = 3, 11, 8, 12, 29
NAMES = [*DIVERGENCES, CROSS_ENTROPY]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def term(name, weight=0.7, temperature=1.0):
    return Term(name, weight, temperature, tuple(PARAMETERS.get(name, {}).items()))


def problem(seed=0, vocab=V, teacher_vocab=V, softcap=None, bias=False, scale=1.0):
    r = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(r.normal(size=shape))
    head = Unembed(normal(D, vocab), normal(vocab) if bias else None, softcap, scale)
    teacher_head = Unembed(normal(TEACHER_D, teacher_vocab), None, softcap, 0.5)
    weight = r.choice([0.0, 1.0, 0.25], size=(B, T))
    weight[0, -1] = 0.0
    labels = jnp.asarray(r.integers(0, min(vocab, teacher_vocab), size=(B, T)))
    return (
        normal(B, T, D),
        head,
        Projected(normal(B, T, TEACHER_D), teacher_head),
        labels,
        jnp.asarray(weight),
    )


def naive_logits(hidden, head):
    z = hidden @ head.weight_DV
    z = (z if head.bias_V is None else z + head.bias_V) * head.scale
    return z if head.softcap is None else head.softcap * jnp.tanh(z / head.softcap)


def naive(hidden, head, targets, labels, weight, terms):
    z, t = naive_logits(hidden, head), naive_logits(targets.hidden_BTD, targets.unembed)
    common = min(z.shape[-1], t.shape[-1])
    z, t = z[..., :common], t[..., :common]
    total = 0.0
    for term in terms:
        if term.name == CROSS_ENTROPY:
            value = -jnp.take_along_axis(log_probabilities(z), labels[..., None], -1)[..., 0]
        else:
            value = token_divergence(
                term.name, z, t, temperature=term.temperature, **term.arguments
            )
        total += term.weight * jnp.sum(value * weight)
    return total


def both(args, terms, block_tokens=6):
    hidden, head, targets, labels, weight = args

    def fused(hidden, weight_DV, bias_V):
        changed = head._replace(weight_DV=weight_DV, bias_V=bias_V)
        return linear_divergence(
            hidden, changed, targets, labels, weight, terms=terms, block_tokens=block_tokens
        )[0]

    def plain(hidden, weight_DV, bias_V):
        changed = head._replace(weight_DV=weight_DV, bias_V=bias_V)
        return naive(hidden, changed, targets, labels, weight, terms)

    wanted = (0, 1, 2) if head.bias_V is not None else (0, 1)
    arguments = (hidden, head.weight_DV, head.bias_V)
    return [jax.jit(jax.value_and_grad(f, wanted))(*arguments) for f in (fused, plain)]


def assert_same(args, terms, **more):
    (value, gradient), (expected, expected_gradient) = both(args, terms, **more)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
        gradient,
        expected_gradient,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_every_term_equals_the_naive_form(name, temperature):
    assert_same(problem(), (term(name, temperature=temperature),))


@pytest.mark.parametrize("block_tokens", [1, 5, 9, 1000])
def test_the_size_of_a_block_changes_nothing(block_tokens):
    assert_same(problem(), (term("forward_kl"), term(CROSS_ENTROPY)), block_tokens=block_tokens)


@pytest.mark.parametrize(
    "change",
    [
        {"softcap": 3.0},
        {"bias": True, "scale": 0.3},
        {"softcap": 2.0, "bias": True, "scale": 1.5},
        {"vocab": V + 4},
        {"teacher_vocab": V + 4},
    ],
)
@pytest.mark.parametrize("name", ["forward_kl", "jsd", CROSS_ENTROPY])
def test_heads_of_every_kind(change, name):
    assert_same(problem(**change), (term(name),))


def test_several_terms_and_temperatures_at_once():
    assert_same(problem(), tuple(term(n, 0.1 * (i + 1), 1.0 + i % 2) for i, n in enumerate(NAMES)))


def test_metrics_are_divergences_at_temperature_one():
    hidden, head, targets, labels, weight = problem()
    terms = (term("forward_kl", temperature=3.0), term("reverse_kl"))
    _, metrics = linear_divergence(
        hidden, head, targets, labels, weight, terms=terms, block_tokens=8
    )
    for name in ("forward_kl", "reverse_kl"):
        expected = naive(hidden, head, targets, labels, weight, (Term(name, 1.0),))
        np.testing.assert_allclose(metrics[name].total, expected, rtol=1e-10)
        np.testing.assert_allclose(metrics[name].count, weight.sum())
    expected = naive(hidden, head, targets, labels, weight, (Term(CROSS_ENTROPY, 1.0),))
    np.testing.assert_allclose(metrics["nll"].total, expected, rtol=1e-10)


def test_a_masked_token_has_exactly_no_influence():
    hidden, head, targets, labels, weight = problem()
    off = (weight == 0)[..., None]
    poison = lambda x: jnp.where(off, jnp.nan, x)
    clean = both((hidden, head, targets, labels, weight), (term("jsd"),))[0]
    dirty_args = (
        poison(hidden), head, targets._replace(hidden_BTD=poison(targets.hidden_BTD)),
        jnp.where(off[..., 0], 0, labels), weight,
    )  # fmt: skip
    hidden, _, targets, labels, weight = dirty_args
    value = linear_divergence(
        hidden, head, targets, labels, weight, terms=(term("jsd"),), block_tokens=6
    )[0]
    np.testing.assert_array_equal(value, clean[0])
    assert np.all(np.asarray(clean[1][0])[np.asarray(off[..., 0])] == 0)


def test_nothing_flows_into_the_teacher():
    hidden, head, targets, labels, weight = problem()
    loss = lambda targets: linear_divergence(
        hidden, head, targets, labels, weight, terms=(term("forward_kl"),), block_tokens=6
    )[0]
    arrays = lambda x: Projected(x[0], Unembed(x[1], None, None, 0.5))
    gradient = jax.grad(lambda x: loss(arrays(x)))((targets.hidden_BTD, targets.unembed.weight_DV))
    assert all(np.all(np.asarray(g) == 0) for g in gradient)


def test_an_all_masked_batch_is_zero_and_not_nan():
    hidden, head, targets, labels, _ = problem()
    (value, gradient), _ = both(
        (hidden, head, targets, labels, jnp.zeros((B, T))), (term("forward_kl"),)
    )
    assert value == 0
    assert all(np.all(np.asarray(g) == 0) for g in gradient)


def test_no_array_of_all_logits_is_compiled():
    """The compiled program's temporaries stay far below one [B, T, V] array."""
    rows, length, width, vocab = 2, 512, 16, 4096
    hidden = jax.ShapeDtypeStruct((rows, length, width), jnp.float32)
    matrix = jax.ShapeDtypeStruct((width, vocab), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    weight = jax.ShapeDtypeStruct((rows, length), jnp.float32)

    def loss(hidden, matrix, labels, weight):
        head = Unembed(matrix)
        return linear_divergence(
            hidden, head, Projected(hidden, head), labels, weight,
            terms=(Term("forward_kl", 1.0),), block_tokens=32,
        )[0]  # fmt: skip

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, matrix, labels, weight).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < rows * length * vocab * 4


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_the_same(name):
    hidden, head, targets, labels, weight = problem()

    def loss(hidden, matrix, freeze):
        matrix = jax.lax.stop_gradient(matrix) if freeze else matrix
        return linear_divergence(
            hidden, head._replace(weight_DV=matrix), targets, labels, weight,
            terms=(term(name),), block_tokens=6,
        )[0]  # fmt: skip

    gradient = lambda freeze: jax.grad(loss, (0, 1))(hidden, head.weight_DV, freeze)
    free, frozen = gradient(False), gradient(True)
    np.testing.assert_allclose(frozen[0], free[0], rtol=1e-12)
    assert np.all(np.asarray(frozen[1]) == 0)
    flops = lambda freeze: (
        jax.jit(jax.grad(lambda h, m: loss(h, m, freeze), (0, 1)))
        .lower(hidden, head.weight_DV).compile().cost_analysis()["flops"]
    )  # fmt: skip
    assert flops(True) < flops(False)
