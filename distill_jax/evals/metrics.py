"""Per-token measures of a student, alone or against its teacher. Shapes: types.py.

A metric is one function of a Block of tokens and one line in METRICS. Values are per token; the
mask is applied where they are averaged. Divergences are at temperature 1, whatever the training
used.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.losses.divergences import divergence, log_probabilities
from distill_jax.losses.targets import take_apart, whole_logits
from distill_jax.losses.tokens import block_length, cut, join
from distill_jax.losses.vocabulary import head_logits
from distill_jax.types import Array, Mixture, Projected, Unembed


class Block(NamedTuple):
    """Logits of some tokens, and log-probabilities over the vocabulary that both heads share."""

    labels_x: Array
    logits_xV: Array
    teacher_logits_xV: Array | None
    log_q_xV: Array | None
    log_p_xV: Array | None


class Metric(NamedTuple):
    """A per-token measure; `against_teacher` ones are absent where a model is measured alone."""

    function: Callable[[Block], Array]
    against_teacher: bool


def _gold_nll(logits_xV: Array, labels_x: Array) -> Array:
    gold = jnp.take_along_axis(logits_xV, labels_x[..., None], -1)[..., 0]
    return jax.nn.logsumexp(logits_xV, -1) - gold


def nll(block: Block) -> Array:
    """-log q(label) over the student's own whole vocabulary, in nats."""
    return _gold_nll(block.logits_xV, block.labels_x)


def teacher_nll(block: Block) -> Array:
    """-log p(label) over the teacher's own whole vocabulary, in nats."""
    return _gold_nll(block.teacher_logits_xV, block.labels_x)


def accuracy_top1(block: Block) -> Array:
    """1 where the student's likeliest token is the label."""
    return (jnp.argmax(block.logits_xV, -1) == block.labels_x).astype(jnp.float32)


def agreement_top1(block: Block) -> Array:
    """1 where the likeliest tokens of student and teacher are the same."""
    same = jnp.argmax(block.log_q_xV, -1) == jnp.argmax(block.log_p_xV, -1)
    return same.astype(jnp.float32)


def _divergence(name: str) -> Callable[[Block], Array]:
    def value(block: Block) -> Array:
        return divergence(name, block.log_q_xV, block.log_p_xV)

    return value


def token_metrics(
    hidden_BTD: Array,
    unembed: Unembed,
    targets: Projected | Mixture | None,
    labels_BT: Array,
    *,
    block_tokens: int,
) -> dict[str, Array]:
    """Every metric of every token, [B, T] float32 each, a block of positions at a time."""

    kind, teacher_tokens, heads = None, (), ()
    if targets is not None:
        kind, teacher_tokens, heads = take_apart(targets, 2**31 - 1)

    def measure(inputs):
        hidden, tokens, labels = inputs
        logits = head_logits(hidden, unembed)
        teacher = kind and whole_logits(kind, heads, tokens, hidden.dtype)
        block = _block(labels, logits, teacher)
        return {
            name: metric.function(block)
            for name, metric in METRICS.items()
            if targets is not None or not metric.against_teacher
        }

    size = block_length(block_tokens, *labels_BT.shape)
    values = jax.lax.map(measure, cut((hidden_BTD, teacher_tokens, labels_BT), size))
    return jax.tree.map(lambda x: join(x, labels_BT.shape[1]), values)


def _block(labels, logits, teacher):
    if teacher is None:
        return Block(labels, logits, None, None, None)
    shared = min(logits.shape[-1], teacher.shape[-1])
    log_q = log_probabilities(logits[..., :shared])
    log_p = log_probabilities(teacher[..., :shared])
    return Block(labels, logits, teacher, log_q, log_p)


METRICS: dict[str, Metric] = {
    "nll": Metric(nll, False),
    "accuracy_top1": Metric(accuracy_top1, False),
    "teacher_nll": Metric(teacher_nll, True),
    "forward_kl": Metric(_divergence("forward_kl"), True),
    "reverse_kl": Metric(_divergence("reverse_kl"), True),
    "agreement_top1": Metric(agreement_top1, True),
}
