"""What a page says first: the answer in one line, and a few sentences with its numbers.

Of a run and of a diagnosis: how large, how fast and how good the student is beside its teacher, and
what training did. Of a study: what its verdicts say, together.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distill_jax.report.tables import ModelRow
from distill_jax.report.taught import ROUNDING, Taught, digits, taught_words, training_words
from distill_jax.study.rules import HELPS, INCONCLUSIVE, INVALID, NO_BETTER, WORSE
from distill_jax.words import NEW_FAILURE, named

NEAR = 0.03  # relative: a ratio so near a fraction is called by its name
LOST_START = "What training changed is not known: the evaluation before it is lost"
FASTER = 1.1  # ratio of speeds from which one is called faster
NOISE = 2.0  # times the difference of two timings of one architecture that a ratio has to exceed

FRACTIONS = {
    3 / 4: "three quarters of the size",
    2 / 3: "two thirds of the size",
    1 / 2: "half the size",
    1 / 3: "a third of the size",
    1 / 4: "a quarter of the size",
    1 / 5: "a fifth of the size",
    1 / 10: "a tenth of the size",
}


class Answer(NamedTuple):
    """Two parts of report.json. findings: sentences that follow the headline."""

    headline: str
    findings: list[str]


def run_answer(rows: Sequence[ModelRow], taught: Taught) -> Answer:
    """Of a run's closing table: teacher (where there is one), student before (if known), after."""
    teacher = next((row for row in rows if row.name == "teacher"), None)
    students = [row for row in rows if row is not teacher]
    before, after = students[0], students[-1]
    trained = LOST_START
    if before is not after:
        trained = _capital(training_words(before, after, teacher))
    if teacher is None:
        return Answer(trained, taught_words(taught, compared=False))
    speed, remark = speed_words(before, after, teacher)
    parts = [size_words(after, teacher), speed, nll_words(after, teacher)]
    findings = [trained + _way(before, after, teacher) + ".", *taught_words(taught, compared=True)]
    findings += [remark] if remark else []
    return Answer(_capital(", ".join(filter(None, parts))), [*findings, *_poor(after, teacher)])


def diagnose_answer(rows: Sequence[ModelRow], found: Mapping[str, Any] | None) -> Answer:
    """Of teacher and student, and of the part `diagnose` of the report."""
    teacher, student = rows
    parts = [size_words(student, teacher), nll_words(student, teacher)]
    findings = [
        f"NLL is {student.nll:.3f} nats per token, its teacher's {teacher.nll:.3f}; KL to the"
        f" teacher is {digits(student.forward_kl)}."
    ]
    if found and found["half_of_kl_share"] is not None:
        findings.append(
            f"{found['half_of_kl_share']:.1%} of the tokens carry half of the divergence"
            f"{_first_cause(found['classes'])}."
        )
    return Answer(_capital(", ".join(filter(None, parts))), [*findings, *_poor(student, teacher)])


def _first_cause(classes: Sequence[Mapping[str, Any]]) -> str:
    known = [row for row in classes if row["share_of_kl"] and row["class"] != "other"]
    if not known:
        return ""
    worst = max(known, key=lambda row: row["share_of_kl"])
    return f"; the largest cause: {named(worst['class'])} ({worst['share_of_kl']:.1%} of all of it)"


def size_words(student: ModelRow, teacher: ModelRow) -> str | None:
    """None where a size is not known, as of a teacher that is only a cache."""
    if not student.parameters or not teacher.parameters:
        return None
    ratio = student.parameters / teacher.parameters
    if student.parameters == teacher.parameters:
        return "the same size"
    if abs(ratio - 1) < NEAR:
        return "about the same size"
    for fraction, words in FRACTIONS.items():
        if abs(ratio / fraction - 1) < NEAR:
            return words
    if ratio < 0.1:
        return f"1/{1 / ratio:.0f} of the size"
    return f"{ratio:.0%} of the size" if ratio < 1 else f"{ratio:.1f}x the size"


def speed_words(
    before: ModelRow, after: ModelRow, teacher: ModelRow
) -> tuple[str | None, str | None]:
    """(for the headline, a sentence of its own); both None where nothing was timed.

    Before and after training the student has one architecture: two timings of it show how far
    timings differ by chance.
    """
    now, then, reference = (row.decode_tokens_per_s for row in (after, before, teacher))
    if not now or not reference:
        return None, None
    ratio, noise = now / reference, abs(math.log(now / then)) if then else math.log(FASTER)
    if abs(math.log(ratio)) > max(NOISE * noise, math.log(FASTER)):
        return f"{ratio:.1f}x as fast" if ratio >= 0.95 else f"{ratio:.2g}x as fast", None
    if noise <= math.log(FASTER):
        return "about as fast", None
    return None, (
        f"How fast it is was not told: the same student wrote {then:,.0f} tokens/s before training"
        f" and {now:,.0f} after, its teacher {reference:,.0f}. Time longer texts:"
        " --config.generate.max_new_tokens."
    )


def nll_words(student: ModelRow, teacher: ModelRow) -> str:
    """How much worse than its teacher the student predicts held-out text, or how much better."""
    gap = student.nll - teacher.nll
    if not math.isfinite(gap):
        return "NLL not finite: the numbers broke down"
    if abs(gap) < ROUNDING:
        return "NLL equal to its teacher's within 0.01"
    size = f"{abs(gap):.2f}" if abs(gap) >= 0.1 else f"{abs(gap):.3f}"
    if gap < 0:
        return f"NLL {size} under its teacher, which is better"
    return f"NLL +{size} over its teacher"


def _way(before: ModelRow, after: ModelRow, teacher: ModelRow) -> str:
    """How much of the distance to the teacher's NLL is behind."""
    distance, gone = before.nll - teacher.nll, before.nll - after.nll
    if not (distance >= 2 * ROUNDING and gone >= ROUNDING):
        return ""
    if gone >= distance:
        return f". It went past its teacher's NLL of {teacher.nll:.3f}"
    return f". That is {gone / distance:.0%} of the way to its teacher's NLL of {teacher.nll:.3f}"


def _poor(student: ModelRow, teacher: ModelRow) -> tuple[str, ...]:
    """A warning where there is little to learn from the teacher."""
    if not teacher.nll > student.nll + ROUNDING:
        return ()
    return (
        "The teacher predicts this text less well than the student: a teacher that knows it, or"
        " that was trained on it first, has more to teach.",
    )


def study_answer(report: Mapping[str, Any]) -> Answer:
    """Of the verdicts at equal steps and at equal FLOPs; the report's statement follows them."""
    verdict = report["verdict"]
    asked = [
        (words, verdict[name])
        for name, words in (("equal_steps", "equal steps"), ("equal_flops", "equal FLOPs"))
        if verdict[name]
    ]
    labels = [one["label"] for _, one in asked]
    units = {one["unit"] for _, one in asked if one["label"] in (HELPS, WORSE)}
    said = [_outcome(one) for _, one in asked]
    if len(set(said)) == 1:
        places = " and at ".join(words for words, _ in asked)
        outcome = f"{said[0]} at {places}"
    else:
        both = zip(said, asked, strict=True)
        outcome = ", and ".join(f"{text} at {words}" for text, (words, _) in both)
    unit = f" ({units.pop()})" if units else ""
    return Answer(
        f"{_verdict_word(labels, verdict['ships'])}: against labels alone, distilling"
        f" {outcome}{unit}",
        [report["statement"]],
    )


def verdict_headline(one: Mapping[str, Any], ship: bool) -> str:
    """The same of one verdict between any two arms, in a line."""
    unit = f" ({one['unit']})" if one["label"] in (HELPS, WORSE) else ""
    return (
        f"{_verdict_word([one['label']], ship)}: against {one['baseline']}, {one['treatment']}"
        f" {_outcome(one)}{unit}"
    )


def _verdict_word(labels: Sequence[str], ship: bool) -> str:
    if ship:
        return "Yes"
    if INVALID in labels:
        return "No answer"
    if set(labels) <= {HELPS, INCONCLUSIVE}:
        return "Not decided yet"
    return "No"


def _outcome(one: Mapping[str, Any]) -> str:
    label = one["label"]
    if label.startswith(NEW_FAILURE):
        return f"does harm to {named(label.removeprefix(NEW_FAILURE))}"
    by = "" if one["effect"] is None else f" by {abs(one['effect']):.2g}"
    return {
        HELPS: f"is better{by}",
        WORSE: f"is worse{by}",
        NO_BETTER: "is no better",
        INCONCLUSIVE: "may or may not be better",
        INVALID: "could not be compared",
    }[label]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
