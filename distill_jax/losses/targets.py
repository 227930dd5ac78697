"""The teacher in a block of tokens: any kind of Targets as distributions or as symbols.

Targets are split into a static part, arrays [B, T, ..] that are cut into blocks, and heads. Shapes:
types.py.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.losses.sparse import Symbols, sampled_symbols, top_k_symbols
from distill_jax.losses.vocabulary import Distribution, exclude_from, head_logits, log_of, softmax
from distill_jax.types import Array, Mixture, Projected, Sampled, Targets, TopK, Unembed, UserError

SPACES = ("probability", "logits")


class FixedTargets(NamedTuple):
    """The static part of targets.

    heads: softcap and scale of each projected teacher. weights, space: how several are mixed.
    temperatures, policy: of top-k entries. shared: the smallest vocabulary of student and teachers.
    """

    shared: int
    heads: tuple[tuple[float | None, float], ...] = ()
    weights: tuple[float, ...] = ()
    space: str = ""
    temperatures: tuple[float, ...] = ()
    policy: str = ""


def split_targets(targets: Targets, student_vocab: int) -> tuple[FixedTargets, Any, Any]:
    """(static part, arrays [B, T, ..], heads of teachers). Raises UserError for a bad mixture."""
    if isinstance(targets, TopK):
        shared = min(student_vocab, targets.vocab)
        fixed = FixedTargets(shared, temperatures=targets.temperatures, policy=targets.policy)
        return fixed, (targets.ids_BTE, targets.logits_BTE, targets.rest_BTM), ()
    if isinstance(targets, Sampled):
        fixed = FixedTargets(min(student_vocab, targets.vocab))
        return fixed, (targets.ids_BTE, targets.probability_BTE), ()
    if isinstance(targets, Projected):
        targets = Mixture((targets,), (1.0,), "probability")
    if targets.space not in SPACES or len(targets.weights) != len(targets.teachers):
        raise UserError(
            f"a mixture of {len(targets.teachers)} teachers has {len(targets.weights)} weights in"
            f" {targets.space!r}: give one weight per teacher, and one of {', '.join(SPACES)}"
        )
    heads = tuple((t.unembed.weight_DV, t.unembed.bias_V) for t in targets.teachers)
    sizes = [weight_DV.shape[1] for weight_DV, _ in heads]
    shared = min(student_vocab, *sizes)
    caps = tuple((t.unembed.softcap, t.unembed.scale) for t in targets.teachers)
    fixed = FixedTargets(shared, caps, targets.weights, targets.space)
    return fixed, tuple((t.hidden_BTD, t.scale_BT) for t in targets.teachers), heads


def prepare(fixed: FixedTargets, heads, tokens, size: int, dtype, axis: str | None):
    """What all terms of a block share: each teacher's logits [x, size], or sparse arrays."""
    if not fixed.heads:
        return tokens
    prepared = []
    for (hidden, scale), (weight_DV, bias_V), cap in zip(tokens, heads, fixed.heads, strict=True):
        if scale is not None:
            hidden = hidden.astype(dtype) * scale[..., None].astype(dtype)
        unembed = Unembed(weight_DV, bias_V, *cap)
        logits = _resized(head_logits(hidden, unembed), size)
        prepared.append(exclude_from(logits, fixed.shared, axis))
    return tuple(prepared)


def whole_logits(fixed: FixedTargets, heads, tokens, dtype) -> Array:
    """Logits [x, V] over the entries that all teachers have; a mixture's log-probabilities."""
    prepared = prepare(fixed, heads, tokens, fixed.shared, dtype, None)
    return prepared[0] if len(prepared) == 1 else log_of(distribution(fixed, prepared, 1.0, None))


def _resized(logits, size):
    """Logits with `size` entries, as the student has; those that the teacher lacks are excluded."""
    extra = size - logits.shape[-1]
    if extra <= 0:
        return logits[..., :size]
    pad = [(0, 0)] * (logits.ndim - 1) + [(0, extra)]
    return jnp.pad(logits, pad, constant_values=-jnp.inf)


def distribution(fixed: FixedTargets, prepared, temperature: float, axis) -> Distribution | Symbols:
    """The teacher at a temperature: dense, or only its known entries where it is sparse."""
    if not fixed.heads:
        if fixed.policy:
            return top_k_symbols(
                *prepared, fixed.temperatures, fixed.policy, temperature, fixed.shared
            )
        return sampled_symbols(*prepared, temperature, fixed.shared)
    if len(prepared) == 1:
        return softmax(prepared[0], temperature, axis)
    if fixed.space == "logits":
        mixed = sum(w * z for w, z in zip(fixed.weights, prepared, strict=True))
        return softmax(mixed, temperature, axis)
    return _mixture([softmax(z, temperature, axis) for z in prepared], fixed.weights)


def _mixture(parts: list[Distribution], weights: tuple[float, ...]) -> Distribution:
    """sum of w p, its logarithm taken in log space so that small probabilities keep theirs."""
    prob = sum(w * part.prob_xV for w, part in zip(weights, parts, strict=True))
    weight_M = jnp.asarray(weights, prob.dtype)
    logs_MxV = jnp.stack([log_of(part) for part in parts])
    weight_M = weight_M.reshape(-1, *[1] * (logs_MxV.ndim - 1))
    log_xV = jax.nn.logsumexp(logs_MxV, axis=0, b=weight_M)
    return Distribution(log_xV, jnp.zeros_like(parts[0].log_total_x1), prob)
