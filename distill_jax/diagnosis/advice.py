"""What to try next: each piece of advice with the number that triggers it, its command, its cost.

Advice appears where each of its conditions holds for the values of a report (triggers.py) and its
override would change the run. Thresholds are conventions of this file: so large that a run's noise
rarely reaches them, and shown beside the value. Whether the advice helps, the next study tells.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from distill_jax.diagnosis.overrides import (
    AdviceInputs,
    Overrides,
    best_checkpoint,
    finer_cache,
    flags,
    growth,
    instead,
    labels,
    labels_at_the_end,
    larger,
    more_seeds,
    soft_targets_only,
    softer,
    whole_distribution,
)


class Condition(NamedTuple):
    """The value of a trigger is at least (or, where `below`, at most) a threshold."""

    trigger: str
    threshold: float
    below: bool = False


class Advice(NamedTuple):
    """why is formatted with the values; cost: runs' worth of FLOPs, given the overrides."""

    name: str
    conditions: tuple[Condition, ...]  # all must hold; the first is shown as the trigger
    why: str
    overrides: Callable[[AdviceInputs], Overrides]
    literature: str
    cost: Callable[[AdviceInputs, Overrides], float] = lambda run, overrides: 1.0


def advise(values: Mapping[str, float | None], run: AdviceInputs) -> list[dict[str, object]]:
    """The part `options` of report.json, in the order of ADVICE; two with one command are one.

    values: by the names of TRIGGERS; an absent one or None triggers nothing. `flops` is the cost of
    one run with the override, None where it is not counted.
    """
    run = run._replace(values={k: value for k, value in values.items() if value is not None})
    rows: dict[str, dict[str, object]] = {}
    for advice in ADVICE:
        overrides = _effective(advice.overrides(run), run.config)
        if overrides and all(holds(condition, run.values) for condition in advice.conditions):
            row = _row(advice, run, overrides)
            rows.setdefault(str(row["override"]), row)
    return list(rows.values())


def holds(condition: Condition, values: Mapping[str, float]) -> bool:
    """Whether a condition holds; not where its value is absent."""
    value = values.get(condition.trigger)
    if value is None:
        return False
    return value <= condition.threshold if condition.below else value >= condition.threshold


def _row(advice: Advice, run: AdviceInputs, overrides: Overrides) -> dict[str, object]:
    name, threshold, _ = advice.conditions[0]
    one = None if run.flops_per_step is None else run.flops_per_step * run.steps
    return {
        "name": advice.name,
        "why": advice.why.format(**run.values),
        "trigger": {"metric": name, "value": run.values[name], "threshold": threshold},
        "override": flags(overrides, run.config),
        "flops": None if one is None else float(one * advice.cost(run, overrides)),
        "literature": advice.literature,
    }


def _effective(overrides: Overrides, config: Mapping[str, Any]) -> Overrides:
    """Those that would change something; none where they would leave no teacher."""
    if "teacher.cache" in overrides and not config["teacher.path"]:
        return {}
    return {key: value for key, value in overrides.items() if config[key] != value}


MORE = 2  # times as many steps
ARMS = 4  # kd, sft, sft_flops and random_teacher, none of which takes more FLOPs than kd

ADVICE: tuple[Advice, ...] = (
    Advice(
        "more seeds",
        (Condition("seeds_missing", 1),),
        "The verdict is inconclusive with this many seeds, and by the spread of those it needs"
        " {seeds_missing:.0f} more. Seeds that are done are not repeated.",
        more_seeds,
        "2106.05945: independent runs of one method differ, so that one run tells little. The FLOPs"
        " are of the new seeds of four arms",
        lambda run, overrides: ARMS * run.values["seeds_missing"],
    ),
    Advice(
        "the best step",
        (Condition("late_rise", 0.01),),
        "The held-out NLL ended {late_rise:.3f} nats above its lowest, at step {best_step:.0f}:"
        " later steps undid what earlier ones learned.",
        best_checkpoint,
        "2502.02671: on a fixed data set a student drifts from the truth while it still comes"
        " closer to its teacher",
        lambda run, overrides: overrides.get("steps", 0) / run.steps,
    ),
    Advice(
        "a study",
        (Condition("share_student_wrong", 0.25),),
        "{share_student_wrong:.0%} of the hot tokens' KL is where the teacher is right and the"
        " student wrong. Without a fine-tuned student, too small a student and what distilling"
        " broke look the same.",
        lambda run: {"job": "study"},
        "2106.05945: closeness to the teacher and generalization are different things",
        lambda run, overrides: ARMS * run.config["study.seeds"],
    ),
    Advice(
        "more steps",
        (Condition("late_fall", 0.02),),
        "The held-out NLL still fell by {late_fall:.3f} nats over about the last quarter of the"
        " steps.",
        lambda run: {"steps": MORE * run.steps},
        "2106.05237: distillation needs unusually long training",
        lambda run, overrides: MORE,
    ),
    Advice(
        "a larger student",
        (Condition("share_capacity", 0.4),),
        "{share_capacity:.0%} of the hot tokens' KL is where the teacher is right and both the"
        " distilled and the fine-tuned student are wrong.",
        larger,
        "2502.08606: the student's own size bounds what a better teacher can give; 2407.14679 on"
        " what to keep when pruning. The FLOPs are an upper bound",
        growth,
    ),
    Advice(
        "a target between student and teacher",
        (Condition("teacher_gap", 0.5),),
        "The student's NLL is {teacher_gap:.2f} nats above its teacher's: the teacher may be too"
        " far ahead to be followed at once.",
        instead("taid"),
        "2501.16937: TAID moves the target from the student to the teacher as the loss falls",
    ),
    Advice(
        "labels beside the teacher",
        (Condition("effect_equal_flops", 0.0),),
        "At equal FLOPs the distilled student is not better than plain fine-tuning (behind by"
        " {effect_equal_flops:.3f}), and labels cost nothing more.",
        labels(0.5),
        "1503.02531, section 2: a weighted mean of soft and hard targets; 2502.08606: with enough"
        " compute supervised learning catches up",
    ),
    Advice(
        "labels beside the teacher, for the harmed slices",
        (Condition("harmed_slices", 1),),
        "Slices that became worse than with plain fine-tuning, which sees labels alone:"
        " {harmed_slices:.0f}.",
        labels(0.5),
        "1911.05248: compression costs rare slices first, whatever the mean says",
    ),
    Advice(
        "trust the labels as much as the teacher",
        (Condition("share_teacher_wrong", 0.25),),
        "{share_teacher_wrong:.0%} of the hot tokens' KL is where following the teacher leads"
        " away from the label.",
        labels(1.0),
        "2502.02671: a student learns its teacher's mistakes, too",
    ),
    Advice(
        "from the teacher to the labels",
        (Condition("share_distillation_made", 0.15),),
        "{share_distillation_made:.0%} of the hot tokens' KL is where plain fine-tuning is"
        " right and the distilled student wrong.",
        labels_at_the_end,
        "1907.04829: teacher annealing ends on the labels and lets a student pass its teacher",
    ),
    Advice(
        "a mode-seeking divergence",
        (Condition("share_tail", 0.25), Condition("entropy_gap", 0.1)),
        "{share_tail:.0%} of the hot tokens' KL is about the mass outside the teacher's top 5,"
        " and the student's entropy is {entropy_gap:.2f} nats above its teacher's: it spreads mass"
        " over what the teacher finds unlikely.",
        instead("skew_reverse_kl"),
        "2402.03898: DistiLLM's skew reverse KL; 2306.08543 on why forward KL spreads mass",
    ),
    Advice(
        "a mode-seeking divergence, for the student's own text",
        (Condition("exposure_share", 0.5),),
        "On its own text the student is {exposure_share:.0%} further from its teacher than on the"
        " data. Training on the student's own text is the remedy in the literature; among what can"
        " be set without it, a reverse divergence is the nearest.",
        instead("skew_reverse_kl"),
        "2306.13649: GKD trains on the student's own samples; 2402.03898: DistiLLM's skew reverse"
        " KL",
    ),
    Advice(
        "a softer divergence",
        (Condition("share_tail", 0.25), Condition("entropy_gap", -0.1, below=True)),
        "{share_tail:.0%} of the hot tokens' KL is about the mass outside the teacher's top 5,"
        " and the student's entropy is {entropy_gap:.2f} nats against its teacher's: it lacks the"
        " teacher's tail.",
        softer,
        "1503.02531, section 2.1: a higher temperature gives unlikely tokens more weight",
    ),
    Advice(
        "the teacher's whole distribution",
        (Condition("ece_excess", 0.01),),
        "The student's calibration error is {ece_excess:.3f} above its teacher's, and it learned"
        " from a part of the teacher's distribution.",
        whole_distribution,
        "2503.16870: calibration error 4.7% with top-12 targets, 0.2% with the whole distribution",
    ),
    Advice(
        "the teacher's whole distribution, for rare tokens",
        (Condition("rare_kl_ratio", 1.5),),
        "The rarest tenth of the labels carries {rare_kl_ratio:.1f} times its share of the KL, and"
        " the student learned from a part of the teacher's distribution, which seldom holds them.",
        whole_distribution,
        "2503.16870: truncated targets are biased where the teacher's tail matters",
    ),
    Advice(
        "soft targets alone",
        (Condition("overconfidence", 0.03),),
        "Confidence exceeds accuracy by {overconfidence:.3f} more than the teacher's does, and hard"
        " labels are part of the loss.",
        soft_targets_only,
        "2503.16870: full distillation keeps the calibration of the teacher",
    ),
    Advice(
        "a softer divergence, for calibration",
        (Condition("overconfidence", 0.03),),
        "Confidence exceeds accuracy by {overconfidence:.3f} more than the teacher's does.",
        softer,
        "1503.02531, section 2.1: a higher temperature gives unlikely tokens more weight",
    ),
    Advice(
        "a divergence between forward and reverse KL",
        (Condition("overconfidence", -0.03, below=True),),
        "Confidence less accuracy is {overconfidence:.3f} against the teacher's: the student"
        " hedges, as forward KL makes one that cannot cover everything.",
        instead("alpha_beta"),
        "2505.04560: ABKD, forward KL concentrates too little and reverse KL too much",
    ),
    Advice(
        "a finer teacher cache",
        (Condition("forward_kl", 0.1, below=True),),
        "The KL to the teacher is {forward_kl:.3f} nats, near enough for the rounding of int8"
        " hidden states to matter.",
        finer_cache,
        "experiments/teacher_cache: int8 hidden states are themselves 0.009 nats from their teacher"
        " (SmolLM2-135M)",
    ),
)
