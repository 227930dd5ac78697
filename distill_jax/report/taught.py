"""From whom a student learned, and what training did to it, in the sentences of a run's page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distill_jax.report.tables import ModelRow
from distill_jax.rollback import ROLLBACK

ROUNDING = 0.005  # nats: two NLLs that are nearer are one number at two digits
SLIGHT = 0.1  # relative: of numbers that are small themselves, what changes less stays as it is
LEAST = 1e-5  # nats: less is the rounding of float32


class Taught(NamedTuple):
    """From what a student learned.

    models        how many models the teacher that it is compared with is a mixture of
    average       its own running average taught it
    labels_alone  no term of its loss compares with a teacher
    quantised     the dtype of its teacher's matrices, and the KL of that teacher from its weights
                  as they were, in nats per token over so many held-out tokens
    """

    models: int = 1
    average: bool = False
    labels_alone: bool = False
    quantised: tuple[str, float, int] | None = None


def taught_words(taught: Taught, compared: bool) -> list[str]:
    """Who its teacher is, where that is not one model. compared: it was measured against one."""
    if taught.labels_alone:
        if compared:
            return ["The student learned from the text alone: its loss compares with no teacher."]
        return ["There was no teacher: the student learned from the text alone."]
    return [*_who(taught, compared), *_narrow(taught)]


def _narrow(taught):
    if taught.quantised is None:
        return []
    dtype, kl, tokens = taught.quantised
    return [
        f"The matrices of its teacher were {dtype}: over {tokens:,} held-out tokens its predictions"
        f" lie {digits(kl)} nats per token (KL) from those of the weights as they were."
    ]


def _who(taught, compared):
    if not compared:
        if taught.average:
            return [
                "Its teacher was its own running average, so there is no other model to compare"
                " it with."
            ]
        return [
            "Its teacher's signals came from a cache that holds a part of each distribution: to"
            " compare the student with its teacher, give --config.teacher.path."
        ]
    several = taught.models > 1
    said = []
    if several:
        said.append(
            f"The teacher here is the mixture of {taught.models} models; the texts of the teacher"
            " are of the first one alone."
        )
    if taught.average:
        than = "that mixture" if several else "the teacher here"
        said.append(f"The student learned from its own running average, too, besides {than}.")
    return said


def training_words(before: ModelRow, after: ModelRow, teacher: ModelRow | None) -> str:
    """What training did to NLL and to the divergence from the teacher, without a full stop.

    A student that came nearer to a teacher of higher NLL did what the loss asked: this comes first.
    """
    nll = _moved("NLL", before.nll, after.nll, " nats per token")
    if before.forward_kl is None or after.forward_kl is None:
        return f"training {_worse(before, after)}{nll}"
    kl = _moved("KL to the teacher", before.forward_kl, after.forward_kl)
    nearer, raised = kl.startswith("lowered"), nll.startswith("raised")
    if nearer and raised and teacher is not None and teacher.nll > before.nll:
        return (
            f"training brought the student nearer to its teacher: it {kl}"
            f"{_agreement(before, after)}. It {nll}, because the teacher predicts this text less"
            f" well ({digits(teacher.nll)}) than the student did before"
        )
    both = "but" if kl.startswith("raised") and nll.startswith("lowered") else "and"
    return f"training {_worse(before, after)}{nll}, {both} {kl}"


def _worse(before: ModelRow, after: ModelRow) -> str:
    raised = _moved("", before.nll, after.nll).startswith("raised")
    return "made it worse: it " if raised else ""


def _agreement(before: ModelRow, after: ModelRow) -> str:
    then, now = before.agreement_top1, after.agreement_top1
    if then is None or now is None or not now > then:
        return ""
    return f", and raised top-1 agreement from {then:.1%} to {now:.1%}"


def _moved(name: str, before: float, after: float, unit: str = "") -> str:
    if not math.isfinite(after):
        return f"broke down: {name} is not finite"
    change = abs(after - before)
    if change < max(LEAST, min(ROUNDING, SLIGHT * max(abs(before), abs(after)))):
        return f"left {name} at {digits(after)}{unit}"
    verb = "lowered" if after < before else "raised"
    return f"{verb} {name} from {digits(before)} to {digits(after)}{unit}"


def rollback_words(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a run went back to a checkpoint, by the lines of its metrics.jsonl."""
    return [
        f"After step {line['step']}, training went back to the student of step"
        f" {int(line[ROLLBACK])}, because one update after another was refused, and left out the"
        " batches between."
        for line in history
        if ROLLBACK in line
    ]


def digits(nats: float) -> str:
    """Three decimals, or two significant digits of what is smaller.

    >>> digits(5.4061), digits(0.00025), digits(2e-9)
    ('5.406', '0.00025', '0.000')
    """
    small = LEAST <= abs(nats) < 0.0095
    return f"{nats:.{1 - math.floor(math.log10(abs(nats)))}f}" if small else f"{nats:.3f}"
