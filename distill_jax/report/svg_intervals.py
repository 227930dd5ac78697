"""Intervals as whiskers, alone or under each other on one axis. Numbers in, SVG out."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from distill_jax.report.svg import (
    LETTER,
    RIGHT,
    Scale,
    Text,
    across,
    chart,
    finite,
    label,
    span,
    tag,
)


class Interval(NamedTuple):
    """A line of a forest plot. low and high may be absent; style: good, bad or flat."""

    name: Text
    effect: float | None
    low: float | None
    high: float | None
    style: str


def strip(row: Interval, x: Scale, middle: float) -> Markup:
    """One interval with its effect as a square, on a given height; nothing where it is absent.

    An arrow stands at the end of the axis for an effect beyond it.
    """
    parts = []
    inside = lambda value: x.at(min(max(value, x.low), x.high))
    if finite(row.low, row.high):
        ends = {"x1": inside(row.low), "x2": inside(row.high)}
        parts.append(tag("line", class_=f"bar {row.style}", y1=middle, y2=middle, **ends))
    if finite(row.effect) and not x.low <= row.effect <= x.high:
        tip, side = inside(row.effect), 6 if row.effect < x.low else -6
        corners = ((tip + side, middle - 5), (tip, middle), (tip + side, middle + 5))
        places = " ".join(f"{a:.2f},{b:.2f}" for a, b in corners)
        parts.append(tag("polyline", class_=f"dot {row.style}", points=places))
    elif finite(row.effect):
        parts.append(
            tag(
                "rect", class_=f"dot {row.style}", x=x.at(row.effect) - 4, y=middle - 4,
                width=8, height=8,
            )
        )  # fmt: skip
    return Markup("").join(parts)


def forest_scale(
    rows: Sequence[Interval], margins: Sequence[float], start: float, end: float
) -> Scale:
    """The axis that holds 0, the margins and every interval."""
    ends = [v for row in rows for v in (row.effect, row.low, row.high) if finite(v)]
    return Scale(*span([0.0, *margins, *ends]), start, end)


def near_scale(
    rows: Sequence[Interval], margins: Sequence[float], start: float, end: float
) -> Scale:
    """The same without rows that reach over three times as far as three quarters of all do."""
    reaches = [max(map(abs, row[1:4])) for row in rows if finite(*row[1:4])]
    most = 3 * sorted(reaches)[3 * (len(reaches) - 1) // 4] if reaches else 0.0
    near = [r for r in rows if finite(*r[1:4]) and max(map(abs, r[1:4])) <= most]
    return forest_scale(near, margins, start, end)


def rulers(x: Scale, margins: Sequence[float], top: float, bottom: float) -> Markup:
    """The line of no difference, and margins."""
    places = [("axis", x.at(0)), *(("margin", x.at(margin)) for margin in margins)]
    parts = [tag("line", class_=kind, x1=at, x2=at, y1=top, y2=bottom) for kind, at in places]
    return Markup("").join(parts)


def forest(
    rows: Sequence[Interval], margins: Sequence[float], x_name: str, describe: str
) -> Markup:
    """Effects with their intervals, a line each, over one axis."""
    first = max(70.0, LETTER * max(len(row.name.text) for row in rows) + 18)
    width, height = first + 290, 22.0 * len(rows) + 14
    x = forest_scale(rows, margins, first, width - RIGHT)
    parts = [rulers(x, margins, 8, height)]
    for i, row in enumerate(rows):
        parts.append(label(row.name, 10, 22 * i + 26))
        parts.append(strip(row, x, 22.0 * i + 22))
    parts.append(across(x, height, x_name))
    return chart(width, height + 42, describe, *parts)


def whisker(row: Interval, x: Scale, margins: Sequence[float], describe: str) -> Markup:
    """One line of a forest plot for a cell of a table."""
    inside = (rulers(x, margins, 0, 22), strip(row, x, 11))
    return chart(x.end + x.start, 22, describe, *inside, class_="whisker")
