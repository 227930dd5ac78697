"""From the outputs of student and teacher to a loss and its metrics. Shapes: types.py.

A Teach function makes the targets of a batch from any kind of teacher: one model, several, the
running average of the student, a cache, or only some entries of the distribution.
"""

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from distill_jax.losses.fused import linear_divergence
from distill_jax.losses.load_balance import busiest_share, load_balance
from distill_jax.losses.terms import LOAD_BALANCE, Term, needs_teacher, of_tokens
from distill_jax.models.binding import Model
from distill_jax.types import (
    Array,
    Batch,
    Mean,
    Mixture,
    Params,
    Projected,
    Sampled,
    Targets,
    TopK,
    Unembed,
)

# (teacher_params, batch, key) -> Targets. teacher_params: one entry per teacher; the running
# average of the student, where the state keeps one, is the last.
Teach = Callable[[tuple[Params, ...], Batch, Array], Targets]


def objective(
    student_params: Params,
    teacher_params: tuple[Params, ...],
    batch: Batch,
    key: Array,
    n_tokens: Array,
    *,
    student: Model,
    teach: Teach | None,
    terms: tuple[Term, ...],
    block_tokens: int,
    mesh: Mesh | None = None,
) -> tuple[Array, dict[str, Mean]]:
    """The loss of a (micro-)batch, as its part of the mean over `n_tokens` tokens, and its metrics.

    n_tokens: the summed weights of the whole global batch, over all micro-batches and devices, so
    that any split of the same batch gives the same gradient, but for load_balance, which is of the
    tokens of one micro-batch. key: for teachers that draw. The teacher runs only where a term needs
    it, and no gradient reaches it.
    """
    hidden = student.apply(student_params, batch.tokens_BT, batch.segment_BT, batch.position_BT)
    targets = None
    if needs_teacher(terms):
        targets = teach(jax.lax.stop_gradient(teacher_params), batch, key)
    loss_sum, metrics = linear_divergence(
        hidden.last_BTD,
        student.unembed(student_params),
        targets,
        batch.labels_BT,
        batch.weight_BT,
        terms=of_tokens(terms),
        block_tokens=block_tokens,
        mesh=mesh,
    )
    if hidden.routing is not None:
        counted = jax.numpy.sum(batch.weight_BT)
        balance, share = load_balance(hidden.routing), busiest_share(hidden.routing)
        weight = sum(term.weight for term in terms if term.name == LOAD_BALANCE)
        loss_sum += weight * balance * counted
        metrics |= {
            LOAD_BALANCE: Mean(balance * counted, counted),
            "busiest_expert": Mean(share * counted, counted),
        }
    # A batch in which no token counts has a loss sum of exactly 0.
    return loss_sum / jax.numpy.maximum(n_tokens, 1e-9), metrics


def live_teacher(model: Model) -> Teach:
    """The full distribution of one model."""

    def teach(teacher_params, batch, key):
        return teacher_targets(model, teacher_params[0], batch)

    return teach


def mixed_teachers(models: tuple[Model, ...], weights: tuple[float, ...], space: str) -> Teach:
    """Several models as one distribution, mixed in `space`: probability or logits."""

    def teach(teacher_params, batch, key):
        pairs = zip(models, teacher_params, strict=True)
        return Mixture(tuple(teacher_targets(m, p, batch) for m, p in pairs), weights, space)

    return teach


def cached_teacher(
    kind: str, *, head: tuple[float | None, float], temperatures, policy: str, vocab: int
) -> Teach:
    """The stored targets of a cache (data/cache.py); no model runs.

    kind: a key of data/cache_records.py KINDS. head: softcap and scale of the teacher's head, whose
    weight and bias are teacher_params[0].
    """

    def teach(teacher_params, batch, key):
        stored = batch.targets
        if kind == "hidden":
            unembed = Unembed(*teacher_params[0], *head)
            return Projected(stored["hidden"], unembed, stored.get("scale"))
        if kind == "sampled":
            return Sampled(stored["ids"], stored["probability"], vocab)
        return TopK(stored["ids"], stored["logits"], stored["rest"], temperatures, policy, vocab)

    return teach


def partial_teacher(teach: Teach, part: Callable[[Projected, Batch, Array], Targets]) -> Teach:
    """A teacher that runs in the step, reduced by `part` to some entries of its distribution."""
    return lambda teacher_params, batch, key: part(teach(teacher_params, batch, key), batch, key)


def teacher_targets(teacher: Model, teacher_params: Params, batch: Batch) -> Projected:
    """The teacher's final hidden states and head."""
    hidden = teacher.apply(teacher_params, batch.tokens_BT, batch.segment_BT, batch.position_BT)
    return Projected(hidden.last_BTD, teacher.unembed(teacher_params))
