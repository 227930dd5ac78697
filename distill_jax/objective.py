"""From the outputs of student and teacher to a loss and its metrics. Shapes: types.py."""

import jax

from distill_jax.losses.fused import CROSS_ENTROPY, Term, linear_divergence
from distill_jax.models.binding import Model
from distill_jax.types import Array, Batch, Mean, Params, Projected


def objective(
    student_params: Params,
    teacher_params: Params | None,
    batch: Batch,
    n_tokens: Array,
    *,
    student: Model,
    teacher: Model | None,
    terms: tuple[Term, ...],
    block_tokens: int,
) -> tuple[Array, dict[str, Mean]]:
    """The loss of a (micro-)batch, as its share of the mean over `n_tokens`, and its metrics.

    n_tokens: the summed weights of the whole global batch, over all micro-batches and devices, so
    that any split of the same batch gives the same gradient. The teacher runs only where a term
    needs it, and no gradient reaches it.
    """
    hidden = student.apply(student_params, batch.tokens_BT, batch.segment_BT, batch.position_BT)
    targets = None
    if needs_teacher(terms):
        targets = teacher_targets(teacher, teacher_params, batch)
    loss_sum, metrics = linear_divergence(
        hidden.last_BTD,
        student.unembed(student_params),
        targets,
        batch.labels_BT,
        batch.weight_BT,
        terms=terms,
        block_tokens=block_tokens,
    )
    # A batch without a single counted token has a loss sum of exactly 0.
    return loss_sum / jax.numpy.maximum(n_tokens, 1e-9), metrics


def teacher_targets(teacher: Model, teacher_params: Params, batch: Batch) -> Projected:
    """The teacher's final hidden states and head, cut off from every gradient."""
    params = jax.lax.stop_gradient(teacher_params)
    hidden = teacher.apply(params, batch.tokens_BT, batch.segment_BT, batch.position_BT)
    return Projected(hidden.last_BTD, teacher.unembed(params))


def needs_teacher(terms: tuple[Term, ...]) -> bool:
    """Whether any term compares with a teacher."""
    return any(term.name != CROSS_ENTROPY for term in terms)
