"""What to try next: each option with the number that triggers it, its command and its cost.

An option appears where every one of its conditions holds in the facts of a report (facts.py) and
its override would change the run. Thresholds are conventions of this file: large enough that a
run's noise rarely reaches them, and shown beside the number. Whether an option helps is for the
next study to say.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from distill_jax.diagnosis.overrides import (
    Changes,
    Run,
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
    """A fact at least (or, where `below`, at most) a threshold."""

    fact: str
    threshold: float
    below: bool = False


class Option(NamedTuple):
    """why is formatted with the facts; cost: runs' worth of FLOPs, given the changes."""

    name: str
    conditions: tuple[Condition, ...]  # all must hold; the first is shown as the trigger
    why: str
    changes: Callable[[Run], Changes]
    literature: str
    cost: Callable[[Run, Changes], float] = lambda run, changes: 1.0


def options(
    facts: Mapping[str, float | None],
    *,
    config: Mapping[str, Any],
    steps: int,
    flops_per_step: float | None,
    targets: str = "hidden",
    cache_dtype: str | None = None,
    teacher_blocks: int | None = None,
    teacher_neurons: int | None = None,
) -> list[dict[str, object]]:
    """The part `options` of report.json, in the order of OPTIONS; two with one command are one.

    facts: by the names of FACTS; a fact that is absent or None triggers nothing. For the others see
    Run. `flops` is the cost of one run with the override, None where it is not counted.
    """
    known = {name: value for name, value in facts.items() if value is not None}
    of_run = (config, steps, flops_per_step, targets, cache_dtype, teacher_blocks, teacher_neurons)
    run = Run(known, *of_run)
    rows: dict[str, dict[str, object]] = {}
    for option in OPTIONS:
        changes = _changed(option.changes(run), config)
        if changes and all(holds(condition, known) for condition in option.conditions):
            row = _row(option, run, changes)
            rows.setdefault(str(row["override"]), row)
    return list(rows.values())


def holds(condition: Condition, facts: Mapping[str, float]) -> bool:
    """Whether a condition holds; not where its fact is absent."""
    value = facts.get(condition.fact)
    if value is None:
        return False
    return value <= condition.threshold if condition.below else value >= condition.threshold


def _row(option: Option, run: Run, changes: Changes) -> dict[str, object]:
    first = option.conditions[0]
    trigger = {"metric": first.fact, "value": run.facts[first.fact], "threshold": first.threshold}
    one = None if run.flops_per_step is None else run.flops_per_step * run.steps
    return {
        "name": option.name,
        "why": option.why.format(**run.facts),
        "trigger": trigger,
        "override": flags(changes),
        "flops": None if one is None else float(one * option.cost(run, changes)),
        "literature": option.literature,
    }


def _changed(changes: Changes, config: Mapping[str, Any]) -> Changes:
    """Those changes that would change something; none where they would leave no teacher."""
    if "teacher.cache" in changes and not config["teacher.path"]:
        return {}
    return {key: value for key, value in changes.items() if config[key] != value}


MORE = 2  # times as many steps
ARMS = 4  # kd, sft, sft_flops and random_teacher, none of which takes more FLOPs than kd

OPTIONS: tuple[Option, ...] = (
    Option(
        "more seeds",
        (Condition("seeds_missing", 1),),
        "The verdict is inconclusive with this many seeds, and by the spread of those it needs"
        " {seeds_missing:.0f} more. Seeds that are done are not repeated.",
        more_seeds,
        "2106.05945: independent runs of one method differ, so that one run tells little. The FLOPs"
        " are of the new seeds of four arms",
        lambda run, changes: ARMS * run.facts["seeds_missing"],
    ),
    Option(
        "the best step",
        (Condition("late_rise", 0.01),),
        "The held-out NLL ended {late_rise:.3f} nats above its lowest, at step {best_step:.0f}:"
        " later steps undid what earlier ones learned.",
        best_checkpoint,
        "2502.02671: on a fixed data set a student drifts from the truth while it still comes"
        " closer to its teacher",
        lambda run, changes: changes.get("steps", 0) / run.steps,
    ),
    Option(
        "a study",
        (Condition("share_student_wrong", 0.25),),
        "{share_student_wrong:.0%} of the KL of the hot spots is where the teacher is right and the"
        " student wrong. Without a fine-tuned student, too small a student and what distilling"
        " broke cannot be told apart.",
        lambda run: {"job": "study"},
        "2106.05945: closeness to the teacher and generalization are different things",
        lambda run, changes: ARMS * run.config["study.seeds"],
    ),
    Option(
        "more steps",
        (Condition("late_fall", 0.02),),
        "The held-out NLL still fell by {late_fall:.3f} nats over about the last quarter of the"
        " steps.",
        lambda run: {"steps": MORE * run.steps},
        "2106.05237: distillation needs unusually long training",
        lambda run, changes: MORE,
    ),
    Option(
        "a larger student",
        (Condition("share_capacity", 0.4),),
        "{share_capacity:.0%} of the KL of the hot spots is where the teacher is right and both the"
        " distilled and the fine-tuned student are wrong.",
        larger,
        "2502.08606: the student's own size bounds what a better teacher can give; 2407.14679 on"
        " what to keep when pruning. The FLOPs are an upper bound",
        growth,
    ),
    Option(
        "a target between student and teacher",
        (Condition("teacher_gap", 0.5),),
        "The student's NLL is {teacher_gap:.2f} nats above its teacher's: the teacher may be too"
        " far ahead to be followed at once.",
        instead("taid"),
        "2501.16937: TAID moves the target from the student to the teacher as the loss falls",
    ),
    Option(
        "labels beside the teacher",
        (Condition("effect_equal_flops", 0.0),),
        "At equal FLOPs the distilled student is not better than plain fine-tuning (NLL higher by"
        " {effect_equal_flops:.3f} nats), and labels cost nothing more.",
        labels(0.5),
        "1503.02531, section 2: a weighted mean of soft and hard targets; 2502.08606: with enough"
        " compute supervised learning catches up",
    ),
    Option(
        "labels beside the teacher, for the harmed slices",
        (Condition("harmed_slices", 1),),
        "{harmed_slices:.0f} slices became worse than with plain fine-tuning, which sees labels"
        " alone.",
        labels(0.5),
        "1911.05248: compression costs rare slices first, whatever the mean says",
    ),
    Option(
        "trust the labels as much as the teacher",
        (Condition("share_teacher_wrong", 0.25),),
        "{share_teacher_wrong:.0%} of the KL of the hot spots is where following the teacher leads"
        " away from the label.",
        labels(1.0),
        "2502.02671: a student learns its teacher's mistakes, too",
    ),
    Option(
        "from the teacher to the labels",
        (Condition("share_distillation_made", 0.15),),
        "{share_distillation_made:.0%} of the KL of the hot spots is where plain fine-tuning is"
        " right and the distilled student wrong.",
        labels_at_the_end,
        "1907.04829: teacher annealing ends on the labels and lets a student pass its teacher",
    ),
    Option(
        "a mode-seeking divergence",
        (Condition("share_tail", 0.25), Condition("entropy_gap", 0.1)),
        "{share_tail:.0%} of the KL of the hot spots is about the mass outside the teacher's top 5,"
        " and the student's entropy is {entropy_gap:.2f} nats above its teacher's: it spreads mass"
        " over what the teacher finds unlikely.",
        instead("skew_reverse_kl"),
        "2402.03898: DistiLLM's skew reverse KL; 2306.08543 on why forward KL spreads mass",
    ),
    Option(
        "a mode-seeking divergence, for the student's own text",
        (Condition("exposure_share", 0.5),),
        "On its own text the student is {exposure_share:.0%} further from its teacher than on the"
        " data. Training on the student's own text is the remedy in the literature; among what can"
        " be set without it, a reverse divergence is the nearest.",
        instead("skew_reverse_kl"),
        "2306.13649: GKD trains on the student's own samples; 2402.03898: DistiLLM's skew reverse"
        " KL",
    ),
    Option(
        "a softer divergence",
        (Condition("share_tail", 0.25), Condition("entropy_gap", -0.1, below=True)),
        "{share_tail:.0%} of the KL of the hot spots is about the mass outside the teacher's top 5,"
        " and the student's entropy is {entropy_gap:.2f} nats against its teacher's: it lacks the"
        " teacher's tail.",
        softer,
        "1503.02531, section 2.1: a higher temperature gives unlikely tokens more weight",
    ),
    Option(
        "the teacher's whole distribution",
        (Condition("ece_excess", 0.01),),
        "The student's calibration error is {ece_excess:.3f} above its teacher's, and it learned"
        " from a part of the teacher's distribution.",
        whole_distribution,
        "2503.16870: calibration error 4.7% with top-12 targets, 0.2% with the whole distribution",
    ),
    Option(
        "the teacher's whole distribution, for rare tokens",
        (Condition("rare_kl_ratio", 1.5),),
        "The rarest tenth of the labels carries {rare_kl_ratio:.1f} times its share of the KL, and"
        " the student learned from a part of the teacher's distribution, which seldom holds them.",
        whole_distribution,
        "2503.16870: truncated targets are biased where the teacher's tail matters",
    ),
    Option(
        "soft targets alone",
        (Condition("overconfidence", 0.03),),
        "Confidence exceeds accuracy by {overconfidence:.3f} more than the teacher's does, and hard"
        " labels are part of the loss.",
        soft_targets_only,
        "2503.16870: full distillation keeps the calibration of the teacher",
    ),
    Option(
        "a softer divergence, for calibration",
        (Condition("overconfidence", 0.03),),
        "Confidence exceeds accuracy by {overconfidence:.3f} more than the teacher's does.",
        softer,
        "1503.02531, section 2.1: a higher temperature gives unlikely tokens more weight",
    ),
    Option(
        "a divergence between forward and reverse KL",
        (Condition("overconfidence", -0.03, below=True),),
        "Confidence less accuracy is {overconfidence:.3f} against the teacher's: the student"
        " hedges, as forward KL makes one that cannot cover everything.",
        instead("alpha_beta"),
        "2505.04560: ABKD, forward KL concentrates too little and reverse KL too much",
    ),
    Option(
        "a finer teacher cache",
        (Condition("forward_kl", 0.1, below=True),),
        "The KL to the teacher is {forward_kl:.3f} nats, near enough for the rounding of int8"
        " hidden states to matter.",
        finer_cache,
        "experiments/teacher_cache: int8 hidden states are themselves 0.009 nats from their teacher"
        " (SmolLM2-135M)",
    ),
)
