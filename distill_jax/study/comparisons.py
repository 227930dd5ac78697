"""The questions that a study answers: the main one twice, the other arms, the other measures."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from distill_jax.study.arms import EQUAL_FLOPS, EQUAL_STEPS, TREATMENT
from distill_jax.study.paired import Arm, Scores
from distill_jax.study.results import Key, Measure, StudyPlan
from distill_jax.study.rules import INVALID, Rules
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
        scores = _without(one.scores, failed, (treatment, baseline))
        return Comparison(scores, treatment, baseline, rules, invalid=reason)

    main = lambda baseline: told(
        judge(ask(first, TREATMENT, baseline, rules)._replace(teacher_E=first.teacher_E))
    )
    told = lambda v: v._replace(reason=v.reason + _left_out_words(failed, v))
    others = [arm for arm in plan.by_name if arm not in (TREATMENT, EQUAL_STEPS, EQUAL_FLOPS)]
    alone = {"margin": 0.0, "slice_margin": 0.0, "registered": ()}
    rules_of = lambda one: _rules(plan, one)._replace(**alone)
    secondary = judge_all([ask(one, TREATMENT, EQUAL_STEPS, rules_of(one)) for one in rest])
    return StudyVerdicts(
        main(EQUAL_STEPS),
        main(EQUAL_FLOPS) if EQUAL_FLOPS in plan.by_name else None,
        tuple(map(told, judge_all([ask(first, arm, TREATMENT, rules) for arm in others]))),
        tuple(zip((one.measure for one in rest), map(told, secondary), strict=True)),
    )


def _broke_down(
    failed: Mapping[Key, str], scores: Scores, treatment: str, baseline: str
) -> str | None:
    """Why two arms have no seed left that both have: runs of one of them broke down."""
    if len(_without(scores, failed, (treatment, baseline)).arms) == 2:
        return None
    for arm in (treatment, baseline):
        if seeds := _seeds_of(failed, arm):
            return (
                f"{arm} broke down in seed {', '.join(map(str, seeds))}, so that nothing can be"
                f" paired with it: {failed[arm, seeds[0]]}"
            )
    return None


def _left_out_words(failed: Mapping[Key, str], v: Verdict) -> str:
    """What follows the reason of a verdict that was given without some seeds."""
    lost = {arm: _seeds_of(failed, arm) for arm in (v.treatment, v.baseline)}
    parts = [
        f"{arm} broke down in seed {', '.join(map(str, seeds))}"
        for arm, seeds in lost.items()
        if seeds
    ]
    if not parts or v.label == INVALID:
        return ""
    return f"; {' and '.join(parts)}: compared are the seeds that both have"


def _seeds_of(failed: Mapping[Key, str], arm: str) -> list[int]:
    return [seed for of, seed in sorted(failed) if of == arm]


def _without(scores: Scores, failed: Mapping[Key, str], names: tuple[str, str]) -> Scores:
    """The scores of two arms without the seeds in which a run of either broke down."""
    gone = {str(seed) for arm, seed in failed if arm in names}

    def part(arm: Arm) -> Arm:
        kept = [r for r, seed in enumerate(arm.seeds) if seed not in gone]
        return Arm(tuple(arm.seeds[r] for r in kept), arm.total_PRE[:, kept])

    arms = {name: part(scores.arms[name]) for name in names if name in scores.arms}
    return scores._replace(arms={name: arm for name, arm in arms.items() if arm.seeds})


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
