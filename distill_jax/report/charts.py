"""The charts of a report: which of its numbers each one draws, by svg.py and svg_models.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from distill_jax.report import learning_curves, svg, svg_intervals, svg_models
from distill_jax.report.arm_styles import arm_styles, tone
from distill_jax.report.svg import Line, Text
from distill_jax.report.svg_intervals import Interval
from distill_jax.words import named, plural

TEMPLATES = Path(__file__).parent / "templates"
COMPARISONS = {"equal_steps": "equal steps", "equal_flops": "equal FLOPs"}


def _named(name: str, where: str = "") -> Text:
    """A label in words where there are some."""
    shown = named(name)
    return Text(shown, where, name if where and shown != name else "")


def _better(measure: dict[str, Any] | None) -> int:
    """The side of 0 on which gains lie."""
    return 1 if measure and measure["higher_is_better"] else -1


def _interval(row: dict[str, Any], name: Text, margin: float | None, better: int) -> Interval:
    """Blue where the whole interval is a gain, orange where harm is found, gray otherwise."""
    near, far = (row["low"], row["high"]) if better > 0 else (row["high"], row["low"])
    harm = row.get("harmed")
    if harm is None:
        harm = svg.finite(far, margin) and -better * far > margin
    good = svg.finite(near) and better * near > 0
    style = "bad" if harm else "good" if good else "flat"
    return Interval(name, row["effect"], row["low"], row["high"], style)


def slice_intervals(report: dict[str, Any], comparison: str) -> list[tuple[int, Interval]]:
    """The slices of one comparison, each with its place in the report."""
    part, better = report["slices"], _better(report.get("measure"))
    return [
        (i, _interval(row, _named(row["slice"], f"slices.rows.{i}.slice"), part["margin"], better))
        for i, row in enumerate(part["rows"])
        if row["comparison"] == comparison
    ]


def forest(report: dict[str, Any], comparison: str) -> Markup | None:
    """Every slice's effect on one axis. None without slices."""
    rows = [row for _, row in slice_intervals(report, comparison)] if report["slices"] else []
    if not rows:
        return None
    describe = (
        f"Effect on {plural(len(rows), 'slice')} at {COMPARISONS[comparison]};"
        f" harmed: {', '.join(r.name.text for r in rows if r.style == 'bad') or 'none'}"
    )
    side = "positive" if _better(report.get("measure")) > 0 else "negative"
    name = f"effect, {report['verdict'][comparison]['unit']} ({side} is better)"
    margins = _harm(report["slices"]["margin"], _better(report.get("measure")))
    return svg_intervals.forest(rows, margins, name, describe)


def _harm(margin: float | None, better: int) -> list[float]:
    """Where on the axis of effects the harm of a slice begins."""
    margins = _margins(margin)
    return margins[:1] if better > 0 else margins[-1:]


def whiskers(report: dict[str, Any], comparison: str) -> list[tuple[int, Markup]]:
    """The same, a small chart for each row of a table, all on one axis."""
    margins = _harm(report["slices"]["margin"], _better(report.get("measure")))
    found = slice_intervals(report, comparison)
    drawn = _on_one_axis([row for _, row in found], margins)
    return [(place, drawing) for (place, _), drawing in zip(found, drawn, strict=True)]


def whiskers_of(rows: Sequence[dict[str, Any]], one: dict[str, Any]) -> list[Markup]:
    """The same for the slices of one verdict."""
    better, margin = _better(one), one["slice_margin"]
    drawn = [_interval(row, _named(row["slice"]), margin, better) for row in rows]
    return _on_one_axis(drawn, _harm(margin, better))


def _on_one_axis(rows: Sequence[Interval], margins: Sequence[float]) -> list[Markup]:
    x = svg_intervals.forest_scale(rows, margins, 6, 174)
    return [svg_intervals.whisker(row, x, margins, _words(row)) for row in rows]


def comparisons(report: dict[str, Any]) -> list[tuple[int, Markup]]:
    """A small chart for each further arm against kd, all on one axis, which cuts far ones."""
    rows = [
        Interval(Text(one["treatment"]), one["effect"], one["low"], one["high"], tone(one["label"]))
        for one in report["comparisons"]
    ]
    margins = _margins(report["verdict"]["equal_steps"]["margin"])
    x = svg_intervals.near_scale(rows, margins, 6, 174)
    return [(i, svg_intervals.whisker(row, x, margins, _words(row))) for i, row in enumerate(rows)]


def _margins(margin: float | None) -> list[float]:
    """Both sides of a margin; none where it is absent or 0."""
    return [-margin, margin] if svg.finite(margin) and margin > 0 else []


def _words(row: Interval) -> str:
    if not svg.finite(row.low, row.high, row.effect):
        return f"{row.name.text}: no interval"
    return f"{row.name.text}: {row.effect:+.4f}, from {row.low:+.4f} to {row.high:+.4f}"


def verdict(one: dict[str, Any]) -> Markup | None:
    """The interval of one comparison against no difference and the margin on either side."""
    if not svg.finite(one["effect"]):
        return None
    name = Text(f"{one['treatment']} - {one['baseline']}")
    row, margins = _interval(one, name, one["margin"], _better(one)), _margins(one["margin"])
    x = svg_intervals.forest_scale([row], margins, 12, 308)
    axis = svg.across(x, 34, one["unit"])
    parts = (svg_intervals.rulers(x, margins, 4, 34), svg_intervals.strip(row, x, 19), axis)
    return svg.chart(320, 74, _words(row), *parts)


def reliability(report: dict[str, Any], names: Sequence[str] = ()) -> Markup | None:
    """Accuracy over confidence of the teacher, kd and sft (or `names`), 15 bins."""
    models, look = [], arm_styles(report)
    for i, model in enumerate((report["calibration"] or {"models": ()})["models"]):
        if names and model["model"] not in names:
            continue
        points = [(b["confidence"], b["accuracy"]) for b in model["bins"]]
        name = Text(model["model"], f"calibration.models.{i}.model")
        line = Line(name, look[model["model"]], points)
        models.append((line, [b["count"] for b in model["bins"]]))
    shown = ", ".join(line.name.text for line, _ in models)
    return svg_models.reliability(models, f"Accuracy over confidence of {shown}")


def retention(report: dict[str, Any]) -> Markup | None:
    """What each size keeps: the share of the teacher's accuracy, or the NLL where it is absent."""
    arms = {i: arm for i, arm in enumerate(report["arms"] or ()) if arm["nll"]}  # that finished
    teacher = report["teacher"]
    if not arms:
        return None
    look = arm_styles(report)
    right = {m: (v.get("accuracy_top1") or {}).get("mean") for m, v in report["metrics"].items()}
    top = (teacher or {}).get("accuracy_top1")
    measured = all(svg.finite(right.get(arm["arm"])) for arm in arms.values())
    share = svg.finite(top) and top > 0 and measured
    quality = lambda arm: right[arm["arm"]] / top if share else arm["nll"]["mean"]
    points = [
        svg_models.Point(
            Text(arm["arm"], f"arms.{i}.arm"), look[arm["arm"]], arm["parameters"],
            quality(arm),
        )
        for i, arm in arms.items()
    ]  # fmt: skip
    if teacher:
        y = 1.0 if share else teacher.get("nll")
        points.append(svg_models.Point(Text("teacher"), "teacher", teacher.get("parameters"), y))
    kept = "share of the teacher's accuracy" if share else "held-out NLL, nats per token"
    describe = f"{kept} over parameters of {', '.join(p.name.text for p in points)}"
    return svg_models.scatter(points, "parameters", kept, describe, percents=share)


def classes(report: dict[str, Any]) -> Markup:
    """The divergence of the hot tokens by cause."""
    rows = report["diagnose"]["classes"]
    parts = [
        (_named(row["class"], f"diagnose.classes.{i}.class"), row["share_of_kl"])
        for i, row in enumerate(rows)
    ]
    shown = [
        f"{named(row['class'])} {row['share_of_kl']:.1%}" for row in rows if row["share_of_kl"]
    ]
    return svg_models.stack(parts, f"Share of the divergence by class: {', '.join(shown)}")


def positions(report: dict[str, Any]) -> Markup | None:
    """Divergence by place in the document."""
    bars = [(p["low"], p["high"], p["mean_kl"]) for p in report["diagnose"]["positions"]]
    describe = f"Mean divergence in {len(bars)} ranges of positions in the document"
    return svg_models.upright_bars(
        bars, "position in the document", "mean KL, nats per token", describe
    )


def standalone(drawing: Markup) -> str:
    """An SVG file of its own, with colors for light and dark."""
    style = Markup("<style>{}</style>").format(Markup((TEMPLATES / "charts.css").read_text()))
    head, _, rest = drawing.partition(">")
    return f"{head}>\n{style}{rest}\n"


def svg_files(report: dict[str, Any]) -> dict[str, str]:
    """The charts as files by name (curves.svg, ...): those that the report has numbers for."""
    drawn = {
        "curves": learning_curves.chart(report, "step", "nll"),
        "curves_flops": learning_curves.chart(report, "flops", "nll"),
        "forest": forest(report, "equal_steps"),
        "forest_flops": forest(report, "equal_flops"),
        "reliability": reliability(report),
        "retention": retention(report),
    }
    return {f"{name}.svg": standalone(x) for name, x in drawn.items() if x is not None}
