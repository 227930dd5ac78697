"""Loss, metrics and gradient of a few tokens, from the student's logits. Shapes: types.py.

The gradient of any elementwise divergence sum_V phi(log q, log p, q, p) in the logits z of q:
  G = dphi/dlog q + q dphi/dq,   dz = (G - q sum_V G) / temperature.
A row divergence gives G by its own derivative in log q. Cross-entropy has dz = q - onehot.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distill_jax.losses.divergences import DIVERGENCES
from distill_jax.losses.sparse import Symbols, symbol_losses
from distill_jax.losses.terms import CROSS_ENTROPY, Term
from distill_jax.losses.vocabulary import (
    Distribution,
    entry_places,
    log_at,
    log_of,
    offset,
    softmax,
    summed,
)
from distill_jax.types import Array


def token_loss(
    logits_xV: Array,
    teacher_at: Callable[[float], Distribution | Symbols] | None,
    labels_x: Array,
    weight_x: Array,
    terms: tuple[Term, ...],
    *,
    axis: str | None,
    with_gradient: bool,
) -> tuple[Array, dict[str, Array], Array | None]:
    """The loss [x], each term's value [x] at temperature 1, and weight * dloss/dlogits [x, V].

    teacher_at: the teacher's distribution of the same tokens at a temperature; None where no term
    compares with a teacher. Divergences are multiplied by temperature² in the loss. The value of
    cross_entropy is called nll. Without with_gradient the gradient is None.
    """
    at_one = softmax(logits_xV, 1.0, axis)
    nll = -log_at(at_one, labels_x[..., None], axis)[..., 0]
    on_labels = sum(term.weight for term in terms if term.name == CROSS_ENTROPY)
    loss, metrics, gradient = on_labels * nll, {"nll": nll}, None
    if any(term.name == CROSS_ENTROPY for term in terms) and with_gradient:
        gradient = on_labels * at_one.prob_xV
    divergences = [term for term in terms if term.name != CROSS_ENTROPY]
    p_at_one = teacher_at(1.0) if divergences else None
    for temperature in sorted({term.temperature for term in divergences}):
        group = tuple(term for term in divergences if term.temperature == temperature)
        q, p = at_one, p_at_one
        if temperature != 1:
            q = softmax(logits_xV, temperature, axis)
            p = teacher_at(temperature)
        values, part = _group_loss(group, temperature, q, p, axis, with_gradient)
        gradient = _plus(gradient, part)
        for term, value in zip(group, values, strict=True):
            loss += term.weight * temperature**2 * value
            metrics[term.name] = value
        if temperature != 1:
            values, _ = _group_loss(group, 1.0, at_one, p_at_one, axis, False)
            metrics |= {term.name: value for term, value in zip(group, values, strict=True)}
    if with_gradient:
        gradient = weight_x[..., None] * gradient
        if len(divergences) < len(terms):
            # In place, after the last pass over the vocabulary.
            place = entry_places(labels_x[..., None], logits_xV.shape[-1], axis)
            gradient = gradient.at[place].add(-(on_labels * weight_x)[..., None], mode="drop")
    return loss, metrics, gradient


def _group_loss(terms, temperature, q, p, axis, with_gradient):
    """The values of terms of one temperature, and the gradient of their weighted sum."""
    # temperature² of the loss, divided by the temperature in dq/dz.
    weights = [term.weight * temperature for term in terms]
    if isinstance(p, Symbols):
        return symbol_losses(terms, weights, q, p, axis, with_gradient)
    values: dict[str, Array] = {}
    joint = None
    elementwise = [DIVERGENCES[term.name].phi is not None for term in terms]
    for kind, compare in ((True, _elementwise), (False, _rows)):
        chosen = [i for i, is_elementwise in enumerate(elementwise) if is_elementwise == kind]
        if chosen:
            some, their = [terms[i] for i in chosen], [weights[i] for i in chosen]
            found, part = compare(some, their, q, p, axis, with_gradient)
            values |= {term.name: value for term, value in zip(some, found, strict=True)}
            joint = _plus(joint, part)
    gradient = joint - q.prob_xV * summed(joint, axis) if with_gradient else None
    return [values[term.name] for term in terms], gradient


def _elementwise(terms, weights, q: Distribution, p: Distribution, axis, with_gradient):
    """Values, and G of the weighted sum: the derivative of each entry along log q."""

    log_p = log_of(p)

    def entries(log_q, q):
        return [
            DIVERGENCES[term.name].phi(log_q, log_p, q, p.prob_xV, **term.arguments)
            for term in terms
        ]

    log_q, q = log_of(q), q.prob_xV
    if not with_gradient:
        return [summed(x, axis)[..., 0] for x in entries(log_q, q)], None
    # Where log q moves by 1, q moves by q.
    parts, slopes = jax.jvp(entries, (log_q, q), (jnp.ones_like(log_q), q))
    joint = sum(w * slope for w, slope in zip(weights, slopes, strict=True))
    return [summed(x, axis)[..., 0] for x in parts], joint


def _rows(terms, weights, q: Distribution, p: Distribution, axis, with_gradient):
    """The same for divergences of whole rows; a sharded vocabulary is gathered for them."""
    whole = lambda x: x if axis is None else jax.lax.all_gather(x, axis, axis=-1, tiled=True)
    log_p = whole(log_of(p))
    value = lambda log_q: [
        DIVERGENCES[term.name].row(log_q, log_p, **term.arguments) for term in terms
    ]
    if not with_gradient:
        return value(whole(log_of(q))), None
    values, pull = jax.vjp(value, whole(log_of(q)))
    (joint,) = pull([jnp.ones_like(x) * w for x, w in zip(values, weights, strict=True)])
    if axis is not None:
        size = q.prob_xV.shape[-1]
        joint = jax.lax.dynamic_slice_in_dim(joint, offset(size, axis), size, -1)
    return values, joint


def _plus(total, part):
    return part if total is None else total if part is None else total + part
