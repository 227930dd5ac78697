"""The learning curves of a report: which of its numbers are drawn, and the same as a table."""

from typing import Any, NamedTuple

from markupsafe import Markup

from distill_jax.report import svg_curves
from distill_jax.report.arm_styles import arm_styles
from distill_jax.report.number_formats import FORMATS
from distill_jax.report.svg import Text, finite
from distill_jax.report.svg_curves import Arm, Seed, thinned

WORDS = {"nll": "NLL", "forward_kl": "KL to the teacher", "loss": "training loss"}
AXES = {"step": "updates", "flops": "training FLOPs"}
FORMS = {"step": "count", "flops": "letters"}
MOST_ROWS = 100  # of an arm in the table

Place = tuple[int, int]  # of a point: its curve, and where on it


class Row(NamedTuple):
    """An arm at one step. mean: in words, empty unless its two or more seeds all have a value."""

    curve: int
    point: Place
    by_seed: dict[int, Place]
    mean: str


class Table(NamedTuple):
    """seeds: each with a curve that has it. thinned: rows are left out. flops: some are known."""

    seeds: dict[int, int]
    rows: list[Row]
    thinned: bool
    flops: bool


def chart(report: dict[str, Any], x: str, y: str) -> Markup | None:
    """Learning curves. x: step or flops; y: nll, forward_kl or loss."""
    look, compared = arm_styles(report), _compared(report)
    arms: dict[str, Arm] = {}
    for i, one in enumerate(report["curves"] or ()):
        name = one["arm"]
        new = Arm(Text(name, f"curves.{i}.arm"), look[name], [], name in compared)
        points = [(p.get(x), p.get(y)) for p in one["points"]]
        arms.setdefault(name, new).seeds.append(Seed(str(one["seed"]), points))
    held_out = "" if y == "loss" else "held-out "
    describe = f"{held_out}{WORDS[y]} over {AXES[x]} of {', '.join(arms)}"
    name, form = f"{WORDS[y]}, nats per token", FORMATS[FORMS[x]]
    x_text = lambda value: f"{form(value)} {AXES[x]}"
    return svg_curves.lines(list(arms.values()), AXES[x], name, describe, x_text)


def _compared(report: dict[str, Any]) -> set[str]:
    """The arms of the verdict."""
    found = [v for v in (report["verdict"] or {}).values() if isinstance(v, dict)]
    return {one[side] for one in found for side in ("treatment", "baseline")}


def table(report: dict[str, Any], y: str) -> Table | None:
    """Every value of one measure by arm, step and seed; None without one."""
    curves = report["curves"] or ()
    arms: dict[str, list[int]] = {}
    for i, one in enumerate(curves):
        if any(finite(point.get(y)) for point in one["points"]):
            arms.setdefault(one["arm"], []).append(i)
    if not arms:
        return None
    value = lambda place: curves[place[0]]["points"][place[1]][y]
    rows, kept = [], []
    for own in arms.values():
        at: dict[int, dict[int, Place]] = {}
        for i in own:
            for j, point in enumerate(curves[i]["points"]):
                if finite(point.get(y)):
                    at.setdefault(point["step"], {})[curves[i]["seed"]] = i, j
        these = []
        for _, places in sorted(at.items()):
            values = [value(place) for place in places.values()]
            whole = 1 < len(values) == len(own)
            mean = FORMATS["metric"](sum(values) / len(values)) if whole else ""
            these.append(Row(own[0], next(iter(places.values())), places, mean))
        rows += these
        kept += thinned(these, MOST_ROWS)
    seeds = {curves[i]["seed"]: i for own in arms.values() for i in reversed(own)}
    flops = any(finite(curves[i]["points"][j].get("flops")) for i, j in (r.point for r in kept))
    return Table(dict(sorted(seeds.items())), kept, len(kept) < len(rows), flops)
