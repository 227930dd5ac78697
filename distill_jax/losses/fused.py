"""Losses over a vocabulary projection that never hold [B, T, V] logits. Shapes: types.py.

A block of tokens at a time, the student's and the teacher's final hidden states meet their heads,
become log-probabilities, a loss, and at once the gradient with respect to the student's hidden
states and head. The forward pass of the custom rule does all of it and keeps the gradients as
residuals; the backward pass multiplies them by the scalar cotangent. Blocks cut the time axis, so
that a batch axis sharded over a mesh stays sharded.

The gradient of any elementwise divergence sum_V phi(log q, log p, q, p) in the logits z of q:
  G = dphi/dlog q + q dphi/dq,   dz = (G - q sum_V G) / temperature.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import optimization_barrier

from distill_jax.losses.blocks import block_length, cut, join
from distill_jax.losses.divergences import DIVERGENCES, FLOOR
from distill_jax.losses.reduce import weighted_mean
from distill_jax.types import Array, Mean, Projected, Unembed

CROSS_ENTROPY = "cross_entropy"


class Term(NamedTuple):
    """One weighted summand of the loss: a key of DIVERGENCES, or cross_entropy on gold labels."""

    name: str
    weight: float
    temperature: float = 1.0
    parameters: tuple[tuple[str, float], ...] = ()


class _Static(NamedTuple):
    """What is fixed when traced: everything but arrays."""

    terms: tuple[Term, ...]
    block: int  # positions of each row a block holds
    student: tuple[float | None, float]  # softcap and scale of the head
    teacher: tuple[float | None, float]


def linear_divergence(
    hidden_BTD: Array,
    unembed: Unembed,
    targets: Projected | None,
    labels_BT: Array,
    weight_BT: Array,
    *,
    terms: tuple[Term, ...],
    block_tokens: int,
) -> tuple[Array, dict[str, Mean]]:
    """Weighted sum over tokens of the terms' losses, and every term's mean at temperature 1.

    The divergences come times temperature². Entries that only one of the two heads has are left
    out of both distributions. `targets` may be None where every term is cross_entropy. The mean of
    cross_entropy is called nll. Differentiable in `hidden_BTD` and in the weight and bias of
    `unembed`, and in nothing else. The sum is not divided: its normaliser is the token count of
    the whole global batch, which only the caller knows.
    """
    block = block_length(block_tokens, *labels_BT.shape)
    static = _Static(
        terms,
        block,
        unembed[2:],
        targets.unembed[2:] if targets else (None, 1.0),
    )
    teacher = (
        (targets.hidden_BTD, targets.unembed.weight_DV, targets.unembed.bias_V) if targets else None
    )
    head = (unembed.weight_DV, unembed.bias_V)
    return _loss(static, hidden_BTD, head, jax.lax.stop_gradient(teacher), labels_BT, weight_BT)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(static, hidden_BTD, head, teacher, labels_BT, weight_BT):
    """The values alone, for evaluation."""

    def body(sums, block):
        values, _ = _block(static, head, teacher, block, with_gradient=False)
        return jax.tree.map(jnp.add, sums, values), None

    blocks = _cut(static.block, hidden_BTD, teacher, labels_BT, weight_BT)
    zero = _zero_sums(static, hidden_BTD.dtype)
    return jax.lax.scan(body, zero, blocks)[0]


def _loss_forward(static, hidden_BTD, head, teacher, labels_BT, weight_BT):
    """The values and, while the logits of a block are at hand, the gradients.

    A head that is not differentiated, being frozen, gets none and costs none.
    """
    trains_head = any(x.perturbed for x in jax.tree.leaves(head, is_leaf=_is_primal))
    hidden_BTD, head, teacher, labels_BT, weight_BT = jax.tree.map(
        lambda x: x.value, (hidden_BTD, head, teacher, labels_BT, weight_BT), is_leaf=_is_primal
    )

    def body(carry, block):
        sums, head_gradient = carry
        values, (hidden_gradient, head_part) = _block(
            static, head, teacher, block, with_gradient=True, trains_head=trains_head
        )
        head_gradient = jax.tree.map(jnp.add, head_gradient, head_part)
        return (jax.tree.map(jnp.add, sums, values), head_gradient), hidden_gradient

    blocks = _cut(static.block, hidden_BTD, teacher, labels_BT, weight_BT)
    wide = _wide(hidden_BTD.dtype)
    trained = head if trains_head else (None, None)
    zero = (
        _zero_sums(static, hidden_BTD.dtype),
        jax.tree.map(lambda x: jnp.zeros(x.shape, wide), trained),
    )
    (sums, head_gradient), hidden_gradient = jax.lax.scan(body, zero, blocks)
    hidden_gradient = join(hidden_gradient, hidden_BTD.shape[1])
    head_gradient = jax.tree.map(lambda g, x: g.astype(x.dtype), head_gradient, trained)
    return sums, (hidden_gradient.astype(hidden_BTD.dtype), head_gradient)


def _is_primal(x):
    return hasattr(x, "perturbed")


def _loss_backward(static, residuals, cotangent):
    hidden_gradient, head_gradient = residuals
    scale = cotangent[0]
    times = lambda x: (x * scale.astype(x.dtype)).astype(x.dtype)
    return times(hidden_gradient), jax.tree.map(times, head_gradient), None, None, None


_loss.defvjp(_loss_forward, _loss_backward, symbolic_zeros=True)


def _block(static, head, teacher, block, *, with_gradient, trains_head=False):
    """Loss sums of one block of tokens and the gradients of its summed loss."""
    hidden, teacher_hidden, labels, weight = block
    unembed = Unembed(*head, *static.student)
    raw, logits = _logits(hidden, unembed)
    teacher_logits = None
    if teacher is not None:
        teacher_logits = head_logits(teacher_hidden, Unembed(*teacher[1:], *static.teacher))
        logits, teacher_logits = _same_vocabulary(logits, teacher_logits)

    at_one = _distributions(logits, teacher_logits, 1.0)
    loss, metrics, gradient = 0.0, {}, jnp.zeros_like(logits)
    temperatures = {term.temperature for term in static.terms if term.name != CROSS_ENTROPY}
    for temperature in sorted(temperatures):
        terms = [
            t for t in static.terms if t.name != CROSS_ENTROPY and t.temperature == temperature
        ]
        one = temperature == 1.0
        log_q, q, log_p, p = at_one if one else _distributions(logits, teacher_logits, temperature)

        def weighted(log_q, q, terms=terms, log_p=log_p, p=p):
            parts = [_phi(t, log_q, log_p, q, p) for t in terms]
            return sum(
                t.weight * t.temperature**2 * x for t, x in zip(terms, parts, strict=True)
            ), parts

        if with_gradient:
            total, pull, parts = jax.vjp(weighted, log_q, q, has_aux=True)
            from_log, from_q = pull(jnp.ones_like(total))
            joint = from_log + q * from_q
            gradient += (joint - q * jnp.sum(joint, -1, keepdims=True)) / temperature
        else:
            total, parts = weighted(log_q, q)
        loss += jnp.sum(total, -1)
        for term, part in zip(terms, parts, strict=True):
            value = part if one else _phi(term, at_one[0], at_one[2], at_one[1], at_one[3])
            metrics[term.name] = weighted_mean(jnp.sum(value, -1), weight)

    nll = -jnp.take_along_axis(at_one[0], labels[..., None], -1)[..., 0]
    metrics["nll"] = weighted_mean(nll, weight)
    for term in static.terms:
        if term.name == CROSS_ENTROPY:
            loss += term.weight * nll
            one_hot = jnp.arange(logits.shape[-1]) == labels[..., None]
            gradient += term.weight * (at_one[1] - one_hot)

    values = weighted_mean(loss, weight).total, metrics
    if not with_gradient:
        return values, None
    counted = jnp.where(weight > 0, weight, 0.0)[..., None]
    gradient = jnp.where(counted > 0, counted * gradient, 0.0)
    return values, _through_head(gradient, raw, hidden, unembed, trains_head)


def head_logits(hidden_xD: Array, unembed: Unembed) -> Array:
    """Logits [.., V] of a few positions, in at least float32."""
    return _logits(hidden_xD, unembed)[1]


def _logits(hidden, unembed):
    """The scaled product before the soft cap, and the logits."""
    raw = jnp.matmul(hidden, unembed.weight_DV, preferred_element_type=_wide(hidden.dtype))
    if unembed.bias_V is not None:
        raw += unembed.bias_V
    raw *= unembed.scale
    cap = unembed.softcap
    return raw, raw if cap is None else cap * jnp.tanh(raw / cap)


def _through_head(gradient, raw, hidden, unembed, trains_head):
    """From the gradient in the logits to those in the hidden states, weight and bias."""
    if unembed.softcap is not None:
        gradient = gradient * (1 - jnp.tanh(raw / unembed.softcap) ** 2)
    gradient = gradient * unembed.scale
    narrow = gradient.astype(hidden.dtype)
    wide = gradient.dtype
    hidden_gradient = jnp.matmul(narrow, unembed.weight_DV.T, preferred_element_type=wide)
    hidden_gradient = hidden_gradient.astype(hidden.dtype)
    if not trains_head:
        return hidden_gradient, (None, None)
    weight_gradient = jnp.einsum("btd,btv->dv", hidden, narrow, preferred_element_type=wide)
    bias_gradient = None if unembed.bias_V is None else jnp.sum(gradient, (0, 1))
    return hidden_gradient, (weight_gradient, bias_gradient)


def _distributions(logits, teacher_logits, temperature):
    """log q, q, log p, p; the barrier keeps the exponentials from being computed twice."""
    log_q, q = _softmax(logits / temperature)
    if teacher_logits is None:
        return log_q, q, None, None
    log_p, p = _softmax(teacher_logits / temperature)
    return optimization_barrier((log_q, q, log_p, p))


def _softmax(logits):
    shifted = logits - jnp.max(logits, -1, keepdims=True)
    exp = optimization_barrier(jnp.exp(shifted))
    total = jnp.sum(exp, -1, keepdims=True)
    return jnp.maximum(shifted - jnp.log(total), FLOOR), exp / total


def _same_vocabulary(logits, teacher_logits):
    """Excludes the entries that only one head has: cut from the teacher, -inf in the student."""
    size, teacher_size = logits.shape[-1], teacher_logits.shape[-1]
    if teacher_size > size:
        return logits, teacher_logits[..., :size]
    if teacher_size < size:
        pad = [(0, 0)] * (teacher_logits.ndim - 1) + [(0, size - teacher_size)]
        teacher_logits = jnp.pad(teacher_logits, pad, constant_values=-jnp.inf)
        logits = jnp.where(jnp.arange(size) < teacher_size, logits, -jnp.inf)
    return logits, teacher_logits


def _phi(term, log_q, log_p, q, p):
    return DIVERGENCES[term.name].phi(log_q, log_p, q, p, **dict(term.parameters))


def _cut(block, hidden_BTD, teacher, labels_BT, weight_BT):
    """What a block needs of each token; the positions that fill up the last block weigh nothing."""
    teacher_hidden = None if teacher is None else teacher[0]
    return cut((hidden_BTD, teacher_hidden, labels_BT, weight_BT), block)


def _zero_sums(static, dtype):
    zero = jnp.zeros((), _wide(dtype))
    names = [t.name for t in static.terms if t.name != CROSS_ENTROPY] + ["nll"]
    return zero, {name: Mean(zero, zero) for name in names}


def _wide(dtype):
    return jnp.promote_types(dtype, jnp.float32)
