"""The bytes of a chip by what holds them, at the moment of a step when there are most.

What lasts (parameters, moments) is counted exactly, from the shapes and rules that a run uses. What
comes and goes is counted for each phase of a step: the teacher's forward pass, the loss, the
backward pass. The compiler reuses the memory of one phase in the next, so the largest counts.
"""

from typing import NamedTuple

from distill_jax.planning.layout import CACHED, Facts, Layout, Model
from distill_jax.planning.traced import ACTIVATIONS, ATTENTION

STUDENT, OPTIMIZER, TEACHER = "student", "optimizer", "teacher"
GRADIENTS, GATHERED, LOSS, HEAD = "gradients", "gathered", "loss", "head"
# Owners in the order of a table.
OWNERS = (
    STUDENT, OPTIMIZER, TEACHER, GRADIENTS, ACTIVATIONS, ATTENTION, GATHERED, HEAD, LOSS,
)  # fmt: skip
LASTING = (STUDENT, OPTIMIZER, TEACHER)
LOGITS = 7  # arrays [block_tokens, V] in float32 that a block of the loss has at a time
AHEAD = 2  # blocks whose gathered weights are there at a time: one is fetched while one computes


class Bytes(NamedTuple):
    """Bytes of one chip. phase: when there are most; owners: what holds them then."""

    phase: str
    owners: dict[str, float]

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.owners.values())


def chip_bytes(facts: Facts, layout: Layout) -> Bytes:
    """What a chip holds at most in a step of a run in this layout."""
    lasting = lasting_bytes(facts, layout)
    phases = {name: phase(facts, layout) for name, phase in PHASES.items()}
    name = max(phases, key=lambda name: sum(phases[name].values()))
    return Bytes(
        name, {owner: lasting.get(owner, 0) + phases[name].get(owner, 0) for owner in OWNERS}
    )


def lasting_bytes(facts: Facts, layout: Layout) -> dict[str, float]:
    """What a chip holds between steps, and the batch."""
    live = facts.live(layout)
    teacher = live.params.held(layout.mesh) if live else 0
    if layout.teacher == CACHED:
        # The head as every chip has it, whole, and the hidden states of the batch.
        config, hidden = facts.teacher_config, _tokens(facts, layout) * layout.microbatches
        teacher = config.width * facts.item * (config.vocab + hidden)
    return {
        STUDENT: facts.student.params.held(layout.mesh),
        OPTIMIZER: facts.optimizer.held(layout.mesh),
        TEACHER: teacher,
    }


def _tokens(facts: Facts, layout: Layout) -> int:
    """Tokens of a micro-batch on a chip."""
    return facts.rows * facts.length // (layout.token_ways * layout.microbatches)


def _rows(facts: Facts, layout: Layout) -> float:
    return _tokens(facts, layout) / facts.length


def _kept(facts: Facts, layout: Layout) -> dict[str, float]:
    """What all blocks of the student keep for the backward pass."""
    kept, blocks = facts.kept(layout.along("tensor"), layout.remat), facts.student.config.blocks
    return _times(kept, blocks * _rows(facts, layout), blocks / layout.weight_ways, layout)


def _times(kept, rows, weights, layout):
    of = {owner: size * rows for owner, size in kept.row.items()}
    of[ACTIVATIONS] += kept.copies * rows * layout.along("expert")
    return of | {GATHERED: kept.weights * weights}


def _work(facts: Facts, layout: Layout) -> dict[str, float]:
    """What a block of the student has while it is computed, recomputed blocks as a whole."""
    kept = facts.kept(layout.along("tensor"), "none")
    return _times(kept, _rows(facts, layout), 0, layout)


def _block_numbers(model: Model, layout: Layout) -> float:
    """Numbers in the matrices of a block as a chip computes with them."""
    return model.blocks.numbers(layout.mesh) / model.config.blocks


def _head_numbers(model: Model, layout: Layout) -> float:
    return model.config.width * model.config.vocab / layout.along("tensor")


def _gradients(facts: Facts, layout: Layout) -> float:
    """Of all parameters; with micro-batches also the sum over those before."""
    whole = facts.student.params.held(layout.mesh)
    return whole * (1 if layout.microbatches == 1 else 2)


def _add(*parts: dict[str, float]) -> dict[str, float]:
    return {owner: sum(part.get(owner, 0) for part in parts) for owner in OWNERS}


def _teacher_hidden(facts: Facts, layout: Layout) -> float:
    live = facts.live(layout)
    return _tokens(facts, layout) * live.config.width * facts.item if live else 0


def _of_teacher(facts: Facts, layout: Layout) -> dict[str, float]:
    """The teacher's blocks run, beside what the student's have kept: neither waits for the other,
    and the compiler of TPUs lets the student begin. Of gradients the sum of others is there.
    """
    if (model := facts.live(layout)) is None:
        return {}
    work = _times(facts.teacher_kept(layout.along("tensor")), _rows(facts, layout), 0, layout)
    return _add(
        _kept(facts, layout),
        work,
        {
            GRADIENTS: _gradients(facts, layout) / 2 * (layout.microbatches > 1),
            GATHERED: AHEAD * _block_numbers(model, layout) * facts.item,
            LOSS: _teacher_hidden(facts, layout),
        },
    )


def _of_loss(facts: Facts, layout: Layout) -> dict[str, float]:
    """Logits of a block of tokens, both heads, and the gradient of the student's."""
    config, other = facts.student.config, facts.teacher_config
    own = _head_numbers(facts.student, layout)
    heads = own * facts.item
    if other is not None:
        heads += other.width * min(other.vocab, config.vocab) / layout.along("tensor") * facts.item
    block = min(layout.block_tokens, _tokens(facts, layout))
    return _add(
        _kept(facts, layout),
        {
            GRADIENTS: _gradients(facts, layout) / 2 * (layout.microbatches > 1),
            HEAD: heads + own * 4,
            LOSS: LOGITS * 4 * block * config.vocab / layout.along("tensor")
            + 4 * _tokens(facts, layout) * config.width
            + _teacher_hidden(facts, layout),
        },
    )


def _backward(facts: Facts, layout: Layout) -> dict[str, float]:
    """The student's blocks from the last to the first, with the gradients of all parameters."""
    return _add(
        _kept(facts, layout),
        _work(facts, layout),
        {
            GRADIENTS: _gradients(facts, layout),
            GATHERED: (AHEAD + 1) * _block_numbers(facts.student, layout) * facts.item,
        },
    )


PHASES = {"teacher": _of_teacher, "loss": _of_loss, "backward": _backward}
