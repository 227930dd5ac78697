"""From what the arms of a study left behind to its report.json: every number, no drawing."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from distill_jax.diagnosis.advice import advise
from distill_jax.diagnosis.examples import TextOf
from distill_jax.diagnosis.overrides import AdviceInputs
from distill_jax.diagnosis.summary import Summary, summarise
from distill_jax.diagnosis.triggers import trigger_values
from distill_jax.evals.aggregates import by_slice, flips
from distill_jax.evals.bounds import ANY, Bounds, bounds_of, within
from distill_jax.evals.continuations import behaviour_section
from distill_jax.evals.records_file import Records
from distill_jax.report.headline import study_answer
from distill_jax.report.verdict import slice_dict, verdict_dict
from distill_jax.study.arms import EQUAL_STEPS, TREATMENT
from distill_jax.study.comparisons import StudyVerdicts
from distill_jax.study.results import Key, RunResult, StudyPlan
from distill_jax.study.rules import WORSE
from distill_jax.study.verdict import ships
from distill_jax.study.wording import Verdict
from distill_jax.words import labelled, named, plural

SLICED = ("nll", "forward_kl", "accuracy_top1", "agreement_top1", "ece")
COMPARED = (
    "label", "reason", "treatment", "baseline", "effect", "low", "high", "confidence", "unit",
)  # fmt: skip


class Study(NamedTuple):
    """All that was measured. Records and curves are of the runs that did not break down.

    curves     the lines of metrics.jsonl that have eval/nll
    written    behaviour of the teacher, and of the data as if a model had written it
    cost       that part of the report: Serving.json()
    advice     what advice depends on; None without the arm kd
    """

    plan: StudyPlan
    results: Mapping[Key, RunResult]
    records: Mapping[Key, Records]
    verdicts: StudyVerdicts
    curves: Mapping[Key, Sequence[Mapping[str, Any]]]
    written: Mapping[str, Mapping[str, float | None]]
    cost: Mapping[str, Any] | None
    teacher_parameters: int | None
    text_of: TextOf
    document_labels: Sequence[str]
    config: Mapping[str, Any]
    config_diff: str
    provenance: Mapping[str, Any]
    removed: Sequence[Mapping[str, Any]]  # from the text to train on, by reason
    advice: AdviceInputs | None
    samples: Sequence[Mapping[str, Any]]  # what some models wrote after the same prompts


def study_report(study: Study) -> dict[str, Any]:
    """report.json of a study, as report.schema.json describes it."""
    plan, verdicts = study.plan, study.verdicts
    steps, flops = verdicts.equal_steps, verdicts.equal_flops
    broken = broken_arms(study.results)
    ship = ships(steps, flops) and not _judged(verdicts) & broken.keys()
    rows = [
        {"comparison": name, **slice_dict(row)}
        for name, v in (("equal_steps", steps), ("equal_flops", flops))
        for row in (v.slices if v else ())
    ]
    teacher = _teacher_metrics(study) or None
    report = {
        "schema": 1,
        "kind": "study",
        "statement": statement(verdicts, ship, broken),
        "verdict": {
            "ships": ship,
            "equal_steps": verdict_dict(steps),
            "equal_flops": flops and verdict_dict(flops),
        },
        "measure": plan.measure._asdict(),
        "comparisons": [_comparison(v) for v in verdicts.others],
        "secondary": [{"measure": m.name} | _comparison(v) for m, v in verdicts.secondary],
        "arms": [_arm(study, name) for name in plan.by_name],
        "teacher": teacher and {"parameters": study.teacher_parameters, **teacher},
        "curves": [_curve(study, key) for key in study.curves],
        "slices": {"margin": plan.slice_margin, "rows": rows},
        "metrics": _metrics(study),
        "flips": _flips(study),
        "by_slice": _by_slice(study),
        "behaviour": _behaviour(study),
        **_summary(study)._asdict(),
        "cost": study.cost,
        "options": [],
        "config": dict(study.config),
        "config_diff": study.config_diff,
        "provenance": dict(study.provenance),
        **({"removed": [*map(dict, study.removed)]} if study.removed else {}),
        "models": [],
        "samples": list(study.samples),
        "table": "",
    }
    report |= study_answer(report)._asdict()
    if study.advice is not None:
        report["options"] = advise(trigger_values(report), study.advice)
    return report


def _comparison(v: Verdict) -> dict[str, Any]:
    values = verdict_dict(v)
    return {key: values[key] for key in COMPARED}


def broken_arms(results: Mapping[Key, RunResult]) -> dict[str, str]:
    """By name, the arms of which runs broke down, with how many did: `1 of 3 seeds`."""
    runs = {arm: [r for r in results.values() if r.arm == arm] for arm, _ in results}
    lost = {arm: sum(r.failed is not None for r in own) for arm, own in runs.items()}
    return {arm: f"{n} of {plural(len(runs[arm]), 'seed')}" for arm, n in lost.items() if n}


def _judged(verdicts: StudyVerdicts) -> set[str]:
    """The arms that decide whether to ship: one that breaks down is not fit to, and no measure."""
    main = [v for v in (verdicts.equal_steps, verdicts.equal_flops) if v is not None]
    return {arm for v in main for arm in (v.treatment, v.baseline)}


def statement(
    verdicts: StudyVerdicts, ship: bool, broken: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The verdict in one line: both comparisons, measures by which it is worse, whether to ship.

    broken: of broken_arms.
    """
    parts = [f"Against labels alone at equal steps: {labelled(verdicts.equal_steps.label)}."]
    if verdicts.equal_flops is not None:
        parts.append(f"At equal FLOPs: {labelled(verdicts.equal_flops.label)}.")
    if worse := [named(measure.name) for measure, v in verdicts.secondary if v.label == WORSE]:
        parts.append(f"By {' and '.join(worse)} it is WORSE.")
    parts += [f"{arm} broke down in {often}." for arm, often in broken.items()]
    parts.append("Ship it." if ship else "Do not ship it on this evidence.")
    return " ".join(parts)


def interval(
    values: Sequence[float | None], confidence: float, bounds: Bounds = ANY
) -> dict[str, float | None] | None:
    """Mean and Student's t interval over seeds; no ends for one seed, None where all are absent.

    It is of the seeds alone: the documents are the same for all. It ends where the values that the
    measure can have end, see within().
    """
    known = np.array([value for value in values if value is not None], np.float64)
    if not len(known):
        return None
    mean = float(known.mean())
    if len(known) == 1:
        return {"mean": mean, "low": None, "high": None}
    half = float(stdtrit(len(known) - 1, (1 + confidence) / 2))
    half *= float(known.std(ddof=1)) / math.sqrt(len(known))
    low, high = within(mean - half, mean + half, bounds, mean)
    return {"mean": mean, "low": low, "high": high}


Values = Mapping[str, float | None]


def _over_seeds(seeds: Sequence[Values], confidence: float) -> dict[str, dict[str, Any] | None]:
    """Every number by its name, over the seeds that have it."""
    names = dict.fromkeys(name for values in seeds for name in values)
    return {
        name: interval([values.get(name) for values in seeds], confidence, bounds_of(name))
        for name in names
    }


def _done(study: Study, arm: str) -> list[RunResult]:
    return [r for r in study.results.values() if r.arm == arm and r.failed is None]


def _arm(study: Study, name: str) -> dict[str, Any]:
    planned, done = study.plan.by_name[name], _done(study, name)
    own = {result.seed: result for result in study.results.values() if result.arm == name}
    means = _over_seeds([result.metrics for result in done], study.plan.confidence)
    return {
        "arm": name,
        "what": planned.arm.what,
        "seeds": sorted(own),
        "steps": planned.steps,
        "flops": planned.flops,
        "parameters": next((r.parameters for r in done if r.parameters), None),
        **{metric: means.get(metric) for metric in ("nll", "forward_kl", "agreement_top1")},
        "runs": [
            {
                "seed": seed,
                "nll": result.metrics.get("nll"),
                "forward_kl": result.metrics.get("forward_kl"),
                "wall_s": result.wall_s,
                "workdir": result.workdir,
                "failed": result.failed,
            }
            for seed, result in sorted(own.items())
        ],
    }


def _teacher_metrics(study: Study) -> dict[str, float]:
    """The teacher's own numbers, which every run has measured alike."""
    first = next((r.metrics for r in study.results.values() if r.metrics), {})
    prefix = "teacher_"
    return {k.removeprefix(prefix): v for k, v in first.items() if k.startswith(prefix)}


def _metrics(study: Study) -> dict[str, dict[str, Any]]:
    """Every aggregate of every arm over its seeds; the teacher's own stand once."""
    own = lambda r: {k: v for k, v in r.metrics.items() if not k.startswith("teacher_")}
    seeds = {arm: [own(r) for r in _done(study, arm)] for arm in study.plan.by_name}
    teacher = _teacher_metrics(study)
    seeds |= {"teacher": [teacher]} if teacher else {}
    return {name: _over_seeds(values, study.plan.confidence) for name, values in seeds.items()}


def _flips(study: Study) -> dict[str, dict[str, Any]]:
    """Tokens that each arm has wrong and sft of the same seed right, and the reverse."""
    rows: dict[str, dict[str, Any]] = {}
    for arm in (name for name in study.plan.by_name if name != EQUAL_STEPS):
        seeds = [
            flips(own.columns, study.records[EQUAL_STEPS, seed].columns)
            for (of, seed), own in study.records.items()
            if of == arm and (EQUAL_STEPS, seed) in study.records
        ]
        if seeds:
            rows[arm] = _over_seeds(seeds, study.plan.confidence)
    return rows


def _by_slice(study: Study) -> dict[str, dict[str, dict[str, Any]]]:
    """The metrics of SLICED by arm and slice, means over seeds, and the tokens of a slice."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for arm in study.plan.by_name:
        parts = [by_slice(r) for (of, _), r in study.records.items() if of == arm]
        rows[arm] = {
            name: {
                key: _mean([part[name].get(key) for part in parts if name in part])
                for key in ("tokens", *SLICED)
            }
            for name in (parts[0] if parts else ())
        }
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _behaviour(study: Study) -> dict[str, Any] | None:
    plan = study.plan
    if not plan.prompts:
        return None
    seeds = {name: [values] for name, values in study.written.items()}
    seeds |= {arm: [r.behaviour for r in _done(study, arm)] for arm in plan.by_name}
    rows = {name: _over_seeds(values, plan.confidence) for name, values in seeds.items()}
    return behaviour_section(rows, prompts=plan.prompts, new_tokens=plan.new_tokens)


def _curve(study: Study, key: Key) -> dict[str, Any]:
    arm, seed = key
    cost = study.plan.by_name[arm].step_flops
    points = [
        {
            "step": line["step"],
            "flops": line["step"] * cost,
            "nll": line["eval/nll"],
            "forward_kl": line.get("eval/forward_kl"),
        }
        for line in study.curves[key]
    ]
    return {"arm": arm, "seed": seed, "points": points}


def _summary(study: Study) -> Summary:
    of = lambda arm: [r for (a, _), r in sorted(study.records.items()) if a == arm]
    mean = lambda name: _mean([r.behaviour.get(name) for r in _done(study, TREATMENT)])
    return summarise(
        of(TREATMENT),
        of(EQUAL_STEPS),
        names=(TREATMENT, EQUAL_STEPS),
        text_of=study.text_of,
        document_labels=study.document_labels,
        kl_own=mean("kl_own"),
        kl_data=mean("kl_data"),
    )
