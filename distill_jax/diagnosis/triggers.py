"""The numbers of a report that advice is triggered by.

One function and one line in TRIGGERS each. Where a report lacks what it takes, a value is absent.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distill_jax.diagnosis.causes import CAUSES

Report = Mapping[str, Any]
Trigger = Callable[[Report, str], float | None]  # (report, student's arm) -> a number


def trigger_values(report: Report, *, student: str = "kd") -> dict[str, float]:
    """Every number of TRIGGERS that a report.json holds about an arm, by its name there."""
    values = {name: value_of(report, student) for name, value_of in TRIGGERS.items()}
    return {name: float(value) for name, value in values.items() if value is not None}


def _at(tree: Any, *keys: str) -> Any:
    """What stands at a path; None where a step of it is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _row(rows: Sequence[Report] | None, key: str, value: str) -> Report | None:
    """The first row of that name."""
    return next((row for row in rows or () if row.get(key) == value), None)


def _number(value: Any) -> float | None:
    """A number, or the mean of an interval over seeds."""
    return value.get("mean") if isinstance(value, Mapping) else value


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _metric(report: Report, model: str, name: str) -> float | None:
    value = _number(_at(report, "metrics", model, name))
    return _number(_at(_row(report.get("arms"), "arm", model), name)) if value is None else value


def _behind(report: Report, student: str) -> float | None:
    """How much worse than plain fine-tuning the distilled student is at equal FLOPs."""
    effect = _at(report, "verdict", "equal_flops", "effect")
    return -effect if effect is not None and _at(report, "measure", "higher_is_better") else effect


def _seeds_missing(report: Report, student: str) -> float | None:
    """Of the comparisons that are inconclusive, the one that lacks most."""
    verdicts = [_at(report, "verdict", name) or {} for name in ("equal_steps", "equal_flops")]
    missing = [
        _difference(v.get("seeds_needed"), v.get("seeds"))
        for v in verdicts
        if v.get("label") == "INCONCLUSIVE"
    ]
    return max((m for m in missing if m is not None), default=None)


def _harmed(report: Report, student: str) -> float | None:
    rows = _at(report, "slices", "rows")
    return len({row["slice"] for row in rows if row["harmed"]}) if rows else None


def _teacher_gap(report: Report, student: str) -> float | None:
    teacher = _at(report, "teacher", "nll")
    return _difference(_metric(report, student, "nll"), _number(teacher))


def _cause_share(name: str) -> Trigger:
    def of(report: Report, student: str) -> float | None:
        rows = _at(report, "diagnose", "classes") or ()
        total = sum(row["share_of_kl"] or 0.0 for row in rows)
        row = _row(rows, "class", name)
        return row["share_of_kl"] / total if row and total > 0 else None

    return of


def _rare(report: Report, student: str) -> float | None:
    rows = _at(report, "diagnose", "slices") or ()
    # Codes go from the rarest decile up, and rows from the first code up.
    rarest = next((row for row in rows if row["slice"].startswith("frequency:")), None)
    if rarest is None or rarest["share_of_kl"] is None:
        return None
    return rarest["share_of_kl"] / rarest["share_of_tokens"]


def _above_teacher(value_of: Callable[[Report], float | None]) -> Trigger:
    """A number of the student's row of the calibration less that of the teacher's."""

    def of(report: Report, student: str) -> float | None:
        rows = _at(report, "calibration", "models")
        values = [value_of(_row(rows, "model", name) or {}) for name in (student, "teacher")]
        return _difference(*values)

    return of


def _overconfidence(model: Report) -> float | None:
    """Mean confidence minus accuracy of the reliability bins."""
    bins = [b for b in model.get("bins") or () if b["count"]]
    excess = sum(b["count"] * (b["confidence"] - b["accuracy"]) for b in bins)
    return excess / sum(b["count"] for b in bins) if bins else None


def _own_text(report: Report, student: str) -> float | None:
    row = _row(_at(report, "behaviour", "models"), "model", student)
    gap, data = _number(_at(row, "exposure_gap")), _number(_at(row, "kl_data"))
    return gap / data if gap is not None and data else None


def _curves(report: Report, student: str) -> list[list[tuple[float, float]]]:
    """(step, held-out NLL) of each seed with at least three evaluations."""
    curves = [c["points"] for c in report.get("curves") or () if c["arm"] == student]
    measured = [[(p["step"], p["nll"]) for p in c if p.get("nll") is not None] for c in curves]
    return [sorted(points) for points in measured if len(points) >= 3]


def _late_fall(report: Report, student: str) -> float | None:
    falls = []
    for points in _curves(report, student):
        last, nll = points[-1]
        # The evaluation next before the last quarter; one before half-way would say too little.
        earlier = [value for step, value in points if 0.5 * last <= step <= 0.75 * last]
        if earlier:
            falls.append(earlier[-1] - nll)
    return _mean(falls)


def _late_rise(report: Report, student: str) -> float | None:
    curves = _curves(report, student)
    return _mean([points[-1][1] - min(nll for _, nll in points) for points in curves])


def _best_step(report: Report, student: str) -> float | None:
    curves = _curves(report, student)
    return _mean([min(points, key=lambda point: point[1])[0] for points in curves])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


TRIGGERS: dict[str, Trigger] = {
    # Of the verdict, in the unit of its measure; and the seeds that lack, of the inconclusive
    # comparison that lacks more.
    "effect_equal_flops": _behind,
    "seeds_missing": _seeds_missing,
    "harmed_slices": _harmed,  # how many
    # Of the arm's metrics, nats per token; the gaps are to the teacher.
    "forward_kl": lambda report, student: _metric(report, student, "forward_kl"),
    "teacher_gap": _teacher_gap,
    "entropy_gap": lambda report, student: _metric(report, student, "entropy_gap"),
    # Of the diagnosis: each cause's share of the KL of the hot tokens; how many times its share of
    # the tokens the rarest decile has of the KL.
    **{f"share_{name}": _cause_share(name) for name in CAUSES if name != "other"},
    "rare_kl_ratio": _rare,
    # Of the calibration, less the teacher's: mean confidence minus accuracy; calibration error.
    "overconfidence": _above_teacher(_overconfidence),
    "ece_excess": _above_teacher(lambda model: model.get("ece")),
    "exposure_share": _own_text,  # exposure_gap / kl_data, of the arm's own text
    # Of the curves of the held-out NLL, means over seeds: its fall over about the last quarter of
    # the steps and its last value above its lowest, nats per token; the step of the lowest.
    "late_fall": _late_fall,
    "late_rise": _late_rise,
    "best_step": _best_step,
}
