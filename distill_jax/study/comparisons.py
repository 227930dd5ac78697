"""The questions that a study answers: the main one twice, the other arms, the other measures."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from distill_jax.study.arms import EQUAL_FLOPS, EQUAL_STEPS, TREATMENT
from distill_jax.study.paired import Scores
from distill_jax.study.results import Key, Measure, StudyPlan
from distill_jax.study.rules import Rules
from distill_jax.study.verdict import Comparison, judge, judge_all
from distill_jax.study.wording import Verdict


class Measured(NamedTuple):
    """The scores of a measure.

    teacher_E  the teacher's totals of whole documents, where it should know them better than sft.
    left_out   why an arm has no scores beside the others', by its name.
    furthest   apart that two scores can be.
    """

    measure: Measure
    scores: Scores
    teacher_E: np.ndarray | None = None
    left_out: Mapping[str, str] = {}
    furthest: float = math.inf


class StudyVerdicts(NamedTuple):
    """equal_steps and equal_flops: kd against plain fine-tuning; None without that arm.

    others     every other arm against kd, Holm over them.
    secondary  kd against sft by the other measures, at margin 0, Holm over them.
    """

    equal_steps: Verdict
    equal_flops: Verdict | None
    others: tuple[Verdict, ...]
    secondary: tuple[tuple[Measure, Verdict], ...]


def judge_study(
    plan: StudyPlan,
    measured: Sequence[Measured],
    *,
    invalid: str | None = None,
    failed: Mapping[Key, str] = MappingProxyType({}),
) -> StudyVerdicts:
    """All verdicts of a study. measured: the registered measure first, then the secondary ones.

    invalid: a reason, known to the caller, why nothing can be compared. failed: why runs that are
    not among the scores broke down.
    """
    first, *rest = measured
    rules = _rules(plan, first)

    def ask(one: Measured, treatment: str, baseline: str, rules: Rules) -> Comparison:
        reason = invalid or _broke_down(failed, one.scores, treatment, baseline)
        reason = reason or one.left_out.get(treatment) or one.left_out.get(baseline)
        return Comparison(one.scores, treatment, baseline, rules, invalid=reason)

    main = lambda baseline: judge(
        ask(first, TREATMENT, baseline, rules)._replace(teacher_E=first.teacher_E)
    )
    others = [arm for arm in plan.by_name if arm not in (TREATMENT, EQUAL_STEPS, EQUAL_FLOPS)]
    alone = {"margin": 0.0, "slice_margin": 0.0, "registered": ()}
    rules_of = lambda one: _rules(plan, one)._replace(**alone)
    secondary = judge_all([ask(one, TREATMENT, EQUAL_STEPS, rules_of(one)) for one in rest])
    return StudyVerdicts(
        main(EQUAL_STEPS),
        main(EQUAL_FLOPS) if EQUAL_FLOPS in plan.by_name else None,
        judge_all([ask(first, arm, TREATMENT, rules) for arm in others]),
        tuple(zip((one.measure for one in rest), secondary, strict=True)),
    )


def _broke_down(
    failed: Mapping[Key, str], scores: Scores, treatment: str, baseline: str
) -> str | None:
    """Why two arms have not the same seeds, or one has none: a run of one of them broke down."""
    for arm, other in ((treatment, baseline), (baseline, treatment)):
        alone = [
            seed
            for of, seed in sorted(failed)
            if of == arm and ((other, seed) not in failed or arm not in scores.arms)
        ]
        if alone:
            seeds = ", ".join(map(str, alone))
            return (
                f"{arm} broke down in seed {seeds}, so that nothing can be paired with it:"
                f" {failed[arm, alone[0]]}"
            )
    return None


def _rules(plan: StudyPlan, measured: Measured) -> Rules:
    measure = measured.measure
    # Scores of examples have no slices: then none is tested, and none is missed.
    slices = plan.slices if len(measured.scores.slices) > 1 else ()
    return Rules(
        margin=plan.margin,
        slice_margin=plan.slice_margin,
        confidence=plan.confidence,
        higher_is_better=measure.higher_is_better,
        unit=measure.unit,
        look=plan.look,
        registered=slices,
        known=slices,
        furthest=measured.furthest,
    )
