"""The one pass over held-out text that everything else aggregates: values of every token.

The device side gives arrays [B, T], a block of positions at a time; the host side keeps the counted
tokens in the order of the text, whatever the batches, the padding and the devices. A value of one
model is a line in ALONE, a value of student and teacher a line in AGAINST. Shapes: types.py.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.lax import optimization_barrier

from distill_jax.data.pack import Rows, places
from distill_jax.evals.records_file import Records as Records
from distill_jax.losses.divergences import DIVERGENCES
from distill_jax.losses.targets import take_apart, whole_logits
from distill_jax.losses.tokens import block_length, cut, join
from distill_jax.losses.vocabulary import head_logits, log_of, softmax
from distill_jax.models.binding import Model
from distill_jax.objective import Teach
from distill_jax.types import Array, Batch, Params, UserError

LIKELIEST = 5  # entries of a token that are kept by name
TEACHER = "teacher_"

RecordStep = Callable[[Params, tuple[Params, ...], Batch], dict[str, Array]]


class Side(NamedTuple):
    """One model's distribution over its own whole vocabulary, and its LIKELIEST entries."""

    labels_x: Array
    log_xV: Array
    prob_xV: Array
    top_xK: Array
    top_probability_xK: Array


class Pair(NamedTuple):
    """Student q and teacher p over the vocabulary that both have, and the likeliest entry there."""

    log_q_xV: Array
    log_p_xV: Array
    q_xV: Array
    p_xV: Array
    best_q_x: Array
    best_p_x: Array


def nll(side: Side) -> Array:
    """-log q(label), in nats."""
    return -jnp.take_along_axis(side.log_xV, side.labels_x[..., None], -1)[..., 0]


def confidence(side: Side) -> Array:
    """The largest probability."""
    return side.top_probability_xK[..., 0]


def entropy(side: Side) -> Array:
    """-sum of q log q, in nats."""
    return -jnp.sum(side.prob_xV * side.log_xV, -1)


def brier(side: Side) -> Array:
    """The sum over the vocabulary of (q - [label])², 0 to 2. Brier 1950, in its original form."""
    is_label = jnp.arange(side.prob_xV.shape[-1]) == side.labels_x[..., None]
    return jnp.sum(jnp.square(side.prob_xV - is_label), -1)


def agreement_top1(pair: Pair) -> Array:
    """1 where the likeliest tokens of both are the same, of those that both have."""
    return (pair.best_q_x == pair.best_p_x).astype(jnp.float32)


def make_record_step(student: Model, teach: Teach | None, *, block_tokens: int) -> RecordStep:
    """Builds record_step(params, teacher_params, batch) -> columns [B, T] or [B, T, 5], jitted.

    `teach` gives the whole distribution of a teacher. Beside the values there are `token`,
    `document` and `counted` of the batch. block_tokens: tokens whose logits exist at a time.
    """

    @jax.jit
    def record_step(params, teacher_params, batch):
        hidden = student.apply(params, batch.tokens_BT, batch.segment_BT, batch.position_BT)
        unembed = student.unembed(params)
        kind, teacher_tokens, heads = None, (), ()
        if teach is not None:
            # Whole distributions are compared, so nothing is drawn.
            targets = teach(teacher_params, batch, jax.random.key(0))
            kind, teacher_tokens, heads = take_apart(targets, 2**31 - 1)

        def measure(inputs):
            hidden_xD, tokens, labels_x = inputs
            own = _side(head_logits(hidden_xD, unembed), labels_x)
            values = _alone(own)
            if kind is None:
                return values
            other = _side(whole_logits(kind, heads, tokens, hidden_xD.dtype), labels_x)
            values |= {TEACHER + name: value for name, value in _alone(other).items()}
            pair = _pair(own, other)
            return values | {name: function(pair) for name, function in AGAINST.items()}

        rows, length = batch.labels_BT.shape
        blocks = (hidden.last_BTD, teacher_tokens, batch.labels_BT)
        values = jax.lax.map(measure, cut(blocks, block_length(block_tokens, rows, length)))
        values = {name: join(value, length) for name, value in values.items()}
        return values | {
            "token": batch.labels_BT,
            "document": batch.document_BT,
            "counted": batch.weight_BT > 0,
        }

    return record_step


def collect(
    record_step: RecordStep,
    params: Params,
    teacher_params: tuple[Params, ...],
    batches: Iterable[Batch],
    rows: Rows,
) -> dict[str, np.ndarray]:
    """The columns of records_file.py, without slices, for every counted token of all rows.

    batches: the rows in order, filled up with padding; host arrays, or arrays over a mesh, also of
    several processes, which then all hold the result. Raises UserError where not one token counts
    and ValueError where the batches are not these rows.
    """
    document_NT, position_NT = places(getattr(rows, "rows", rows))
    parts: list[dict[str, np.ndarray]] = []
    start = 0
    for batch in batches:
        values = record_step(params, teacher_params, batch)
        values = jax.tree.map(np.asarray, multihost_utils.process_allgather(values, tiled=True))
        counted_BT, document_BT = values.pop("counted"), values["document"]
        here = slice(start, start + len(document_BT))
        expected = document_NT[here]
        known = len(expected)  # what follows is padding, which counts nowhere
        if (document_BT[:known] != expected).any() or counted_BT[known:].any():
            raise ValueError(f"rows {here.start} to {here.stop} of the batches are other rows")
        kept = {name: value[:known][counted_BT[:known]] for name, value in values.items()}
        parts.append(kept | {"position": position_NT[here][counted_BT[:known]]})
        start = here.stop
    if start < len(document_NT):
        raise ValueError(f"the batches hold {start} rows of {len(document_NT)}")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not len(columns["token"]):
        raise UserError(
            "the evaluation data holds 0 counted tokens:"
            " give data.eval_source documents of at least two tokens"
        )
    order = np.lexsort((columns["position"], columns["document"]))
    first = ("document", "position", "token")
    columns = {name: columns[name] for name in first} | columns
    return {name: column[order] for name, column in columns.items()}


def _side(logits_xV: Array, labels_x: Array) -> Side:
    own = softmax(logits_xV, 1.0, None)
    # One top_k costs a third of an argmax on a CPU. Behind the barrier it stays one: a slice of it
    # would make XLA sort the whole vocabulary instead, at seven times the cost of this step.
    top_xK = optimization_barrier(jax.lax.top_k(logits_xV, LIKELIEST)[1])
    top_probability_xK = jnp.take_along_axis(own.prob_xV, top_xK, -1)
    return Side(labels_x, log_of(own), own.prob_xV, top_xK, top_probability_xK)


def _pair(student: Side, teacher: Side) -> Pair:
    shared = min(student.log_xV.shape[-1], teacher.log_xV.shape[-1])
    log_q_xV, q_xV, best_q_x = _over_shared(student, shared)
    log_p_xV, p_xV, best_p_x = _over_shared(teacher, shared)
    return Pair(log_q_xV, log_p_xV, q_xV, p_xV, best_q_x, best_p_x)


def _over_shared(side: Side, shared: int) -> tuple[Array, Array, Array]:
    """Log-probabilities, probabilities and likeliest entry of the first `shared` entries alone."""
    if shared == side.log_xV.shape[-1]:
        return side.log_xV, side.prob_xV, side.top_xK[..., 0]
    among = softmax(side.log_xV[..., :shared], 1.0, None)
    best_x1 = jax.lax.top_k(among.scaled_xV, 1)[1]
    return log_of(among), among.prob_xV, best_x1[..., 0]


def _alone(side: Side) -> dict[str, Array]:
    return {name: function(side) for name, function in ALONE.items()}


def _divergence(name: str) -> Callable[[Pair], Array]:
    phi = DIVERGENCES[name].phi
    return lambda pair: jnp.sum(phi(pair.log_q_xV, pair.log_p_xV, pair.q_xV, pair.p_xV), -1)


ALONE: dict[str, Callable[[Side], Array]] = {
    "nll": nll,
    "confidence": confidence,
    "entropy": entropy,
    "brier": brier,
    "top5": lambda side: side.top_xK,
    "top5_probability": lambda side: side.top_probability_xK,
}

AGAINST: dict[str, Callable[[Pair], Array]] = {
    "forward_kl": _divergence("forward_kl"),
    "reverse_kl": _divergence("reverse_kl"),
    "total_variation": _divergence("total_variation"),
    "agreement_top1": agreement_top1,
}
