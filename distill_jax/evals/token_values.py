"""What is measured of every held-out token: each value is defined here, once.

A value of one model is a function of a Side and a line in MODEL_VALUES; of the teacher it is
measured too, under `teacher_` and its name. A value of student and teacher is a function of a Pair
and a line in PAIR_VALUES. Records keep them all (records.py), training logs some (likelihood.py);
only what is asked for is computed. Divergences are at temperature 1, whatever training used.
Shapes: types.py.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import optimization_barrier
from jax.sharding import Mesh

from distill_jax.evals.records_file import OF_TEACHER
from distill_jax.losses.divergences import DIVERGENCES
from distill_jax.losses.targets import split_targets, whole_logits
from distill_jax.losses.tokens import cut, join, mesh_blocks
from distill_jax.losses.vocabulary import head_logits, log_of, softmax
from distill_jax.models.binding import Model
from distill_jax.objective import Teach
from distill_jax.types import Array, Batch, Params, UserError

LIKELIEST = 5  # vocabulary entries kept per token

TokenValues = Callable[[Params, tuple[Params, ...], Batch], dict[str, Array]]


class Side(NamedTuple):
    """One model's distribution over its own whole vocabulary, and its LIKELIEST entries."""

    labels_x: Array
    log_xV: Array
    prob_xV: Array
    top_x5: Array


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


def accuracy_top1(side: Side) -> Array:
    """1 where the likeliest token is the label."""
    return (side.top_x5[..., 0] == side.labels_x).astype(jnp.float32)


def confidence(side: Side) -> Array:
    """The largest probability."""
    return top5_probability(side)[..., 0]


def entropy(side: Side) -> Array:
    """-sum of q log q, in nats."""
    return -jnp.sum(side.prob_xV * side.log_xV, -1)


def brier(side: Side) -> Array:
    """The sum over the vocabulary of (q - [label])², 0 to 2. Brier 1950, in its original form."""
    is_label = jnp.arange(side.prob_xV.shape[-1]) == side.labels_x[..., None]
    return jnp.sum(jnp.square(side.prob_xV - is_label), -1)


def top5(side: Side) -> Array:
    """The likeliest ids [.., 5], the best first."""
    return side.top_x5


def top5_probability(side: Side) -> Array:
    """Their probabilities [.., 5]."""
    return jnp.take_along_axis(side.prob_xV, side.top_x5, -1)


def agreement_top1(pair: Pair) -> Array:
    """1 where the likeliest tokens of both are the same, of those that both have."""
    return (pair.best_q_x == pair.best_p_x).astype(jnp.float32)


def make_token_values(
    student: Model,
    teach: Teach | None,
    names: Sequence[str],
    *,
    block_tokens: int,
    mesh: Mesh | None = None,
) -> TokenValues:
    """Builds token_values(params, teacher_params, batch) -> values [B, T] or [B, T, 5] by name.

    To be called inside a jitted function. `teach` gives the whole distribution of a teacher; names
    that need one are left out where it is None. block_tokens: tokens whose logits a device of the
    mesh holds at a time; without a mesh, those that exist.

      values = make_token_values(model, None, ("nll",), block_tokens=256)
      nll_BT = jax.jit(values)(params, (), batch)["nll"]
    """
    of_student = [name for name in names if name in MODEL_VALUES]
    of_teacher = [name for name in names if name.removeprefix(OF_TEACHER) in MODEL_VALUES]
    of_teacher = [name for name in of_teacher if name not in MODEL_VALUES]
    of_pair = [name for name in names if name in PAIR_VALUES]
    if unknown := set(names) - {*of_student, *of_teacher, *of_pair}:
        raise ValueError(f"no such per-token values: {sorted(unknown)}")

    def token_values(params, teacher_params, batch):
        hidden = student.apply(params, batch.tokens_BT, batch.segment_BT, batch.position_BT)
        unembed = student.unembed(params)
        kind, teacher_tokens, heads = None, (), ()
        if teach is not None:
            # Whole distributions are compared, so nothing is drawn.
            targets = teach(teacher_params, batch, jax.random.key(0))
            kind, teacher_tokens, heads = split_targets(targets, 2**31 - 1)

        def measure(inputs):
            hidden_xD, tokens, labels_x = inputs
            own = _side(head_logits(hidden_xD, unembed), labels_x)
            values = {name: MODEL_VALUES[name](own) for name in of_student}
            if kind is None:
                return values
            other = _side(whole_logits(kind, heads, tokens, hidden_xD.dtype), labels_x)
            for name in of_teacher:
                values[name] = MODEL_VALUES[name.removeprefix(OF_TEACHER)](other)
            pair = _pair(own, other)
            return values | {name: PAIR_VALUES[name](pair) for name in of_pair}

        rows, length = batch.labels_BT.shape
        blocks = (hidden.last_BTD, teacher_tokens, batch.labels_BT)
        size, parts = mesh_blocks(block_tokens, rows, length, mesh)
        values = jax.lax.map(measure, cut(blocks, size, parts))
        return {name: join(value, length, parts) for name, value in values.items()}

    return token_values


def check_counted(tokens: int) -> None:
    """Raises UserError where not one token of the evaluation text counts."""
    if not tokens:
        raise UserError(
            "the evaluation data holds 0 counted tokens:"
            " give data.eval_source documents of at least two tokens"
        )


def _side(logits_xV: Array, labels_x: Array) -> Side:
    own = softmax(logits_xV, 1.0, None)
    # On a CPU top_k costs a third of an argmax. Without the barrier XLA would replace it by a sort
    # of the whole vocabulary, because its result is sliced later: seven times the cost.
    top_x5 = optimization_barrier(jax.lax.top_k(logits_xV, LIKELIEST)[1])
    return Side(labels_x, log_of(own), own.prob_xV, top_x5)


def _pair(student: Side, teacher: Side) -> Pair:
    shared = min(student.log_xV.shape[-1], teacher.log_xV.shape[-1])
    log_q_xV, q_xV, best_q_x = _over_shared(student, shared)
    log_p_xV, p_xV, best_p_x = _over_shared(teacher, shared)
    return Pair(log_q_xV, log_p_xV, q_xV, p_xV, best_q_x, best_p_x)


def _over_shared(side: Side, shared: int) -> tuple[Array, Array, Array]:
    """Log-probabilities, probabilities and likeliest entry of the first `shared` entries alone."""
    if shared == side.log_xV.shape[-1]:
        return side.log_xV, side.prob_xV, side.top_x5[..., 0]
    among = softmax(side.log_xV[..., :shared], 1.0, None)
    best_x1 = optimization_barrier(jax.lax.top_k(among.scaled_xV, 1)[1])
    return log_of(among), among.prob_xV, best_x1[..., 0]


def _divergence(name: str) -> Callable[[Pair], Array]:
    phi = DIVERGENCES[name].phi
    return lambda pair: jnp.sum(phi(pair.log_q_xV, pair.log_p_xV, pair.q_xV, pair.p_xV), -1)


MODEL_VALUES: dict[str, Callable[[Side], Array]] = {
    "nll": nll,
    "accuracy_top1": accuracy_top1,
    "confidence": confidence,
    "entropy": entropy,
    "brier": brier,
    "top5": top5,
    "top5_probability": top5_probability,
}

PAIR_VALUES: dict[str, Callable[[Pair], Array]] = {
    "forward_kl": _divergence("forward_kl"),
    "reverse_kl": _divergence("reverse_kl"),
    "total_variation": _divergence("total_variation"),
    "agreement_top1": agreement_top1,
}
