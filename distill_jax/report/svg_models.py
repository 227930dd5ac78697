"""Charts that compare models: reliability, retention against size, shares. Numbers in, SVG out."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from distill_jax.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    LETTER,
    RIGHT,
    WIDTH,
    Line,
    Scale,
    Text,
    axes,
    chart,
    finite,
    label,
    legend,
    percent,
    polyline,
    span,
    tag,
    tick_text,
    upward,
)

STYLES = 9  # of bars: b0 to b8


def reliability(models: Sequence[tuple[Line, Sequence[int]]], describe: str) -> Markup | None:
    """Accuracy over confidence; the diagonal is a model that knows what it knows. Guo et al. 2017.

    models: (mean confidence, accuracy) of each bin, and the tokens in it, which size its dot.
    """
    names, top = legend([(line.name, line.style) for line, _ in models])
    side = float(WIDTH - LEFT - RIGHT)
    x = Scale(0.0, 1.0, LEFT, LEFT + side)
    y = Scale(0.0, 1.0, top + 24 + side, top + 24)
    parts = [polyline([(0, 0), (1, 1)], x, y, "guide")]
    drawn = 0
    for line, counts in models:
        kept = [(p, n) for p, n in zip(line.points, counts, strict=True) if n and finite(*p)]
        total = sum(n for _, n in kept)
        parts.append(polyline([p for p, _ in kept], x, y, f"line {line.style}"))
        for (a, b), n in kept:
            radius = 1.5 + 6 * math.sqrt(n / total)
            parts.append(
                tag("circle", class_=f"dot {line.style}", cx=x.at(a), cy=y.at(b), r=radius)
            )
        drawn += len(kept)
    if not drawn:
        return None
    frame = axes(x, y, "confidence in the likeliest token", "right", percent, percent)
    return chart(WIDTH, top + side + 66, describe, names, frame, *parts)


class Point(NamedTuple):
    """A named place of a scatter plot."""

    name: Text
    style: str
    x: float | None
    y: float | None


def scatter(
    points: Sequence[Point], x_name: str, y_name: str, describe: str, *, percents: bool = False
) -> Markup | None:
    """Named points, their names beside them and pushed apart. None with no point to draw."""
    kept = sorted((p for p in points if finite(p.x, p.y)), key=lambda p: p.y, reverse=True)
    if not kept:
        return None
    x = Scale(0.0, span([p.x for p in kept], 0.12)[1], LEFT, WIDTH - RIGHT)
    heights = [p.y for p in kept]
    y = Scale(*span([*heights, 1.0] if percents else heights, 0.12), HEIGHT - BOTTOM, 26)
    parts = [axes(x, y, x_name, y_name, y_text=percent if percents else tick_text)]
    places = [(x.at(p.x), y.at(p.y)) for p in kept]
    for left in (True, False):
        side = [i for i in range(len(kept)) if _to_the_left(kept[i], i, places) is left]
        names = spread([places[i][1] + 4 for i in side], 15, y.start - 6)
        for i, name_y in zip(side, names, strict=True):
            (px, py), name = places[i], kept[i].name
            parts.append(tag("circle", class_=f"dot {kept[i].style}", cx=px, cy=py, r=5))
            beside = {"x": px - 10, "anchor": "end"} if left else {"x": px + 10, "anchor": "start"}
            parts.append(label(name, y=name_y, **beside))
    return chart(WIDTH, HEIGHT, describe, *parts)


def _to_the_left(point: Point, i: int, places: Sequence[tuple[float, float]]) -> bool:
    """Whether a name fits better to the left: it would leave the chart or run over other points."""
    px, wide = places[i][0], 14 + LETTER * len(point.name.text)
    crowded = any(px + 1 < qx < px + wide for qx, _ in places)
    return px + wide > WIDTH or (crowded and px - wide > LEFT)


def spread(heights: Sequence[float], gap: float, end: float) -> list[float]:
    """Ascending heights moved apart to at least `gap`, the last at most at `end`."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], end - gap * (len(moved) - 1 - i))
    return moved


def stack(
    parts: Sequence[tuple[Text, float | None]], describe: str, limit: float | None = None
) -> Markup:
    """Shares of a whole as one bar, in order, with a legend below. Styles are b0, b1, ...

    A part without a share keeps its style from others. limit: a share that a line marks.
    """
    width, at, names = float(WIDTH), 0.0, []
    drawn = [tag("rect", class_="track", x=10, y=8, width=width - 20, height=28)]
    x, y = 10.0, 58.0
    for i, (name, share) in enumerate(parts):
        if not finite(share) or share <= 0:
            continue
        style = f"b{i % STYLES}"
        wide = share * (width - 20)
        drawn.append(tag("rect", class_=style, x=10 + at, y=8, width=max(wide - 1, 0.5), height=28))
        needed = 26 + LETTER * len(name.text)
        if x > 10 and x + needed > width:
            x, y = 10.0, y + 18
        names.append(tag("rect", class_=style, x=x, y=y - 9, width=10, height=10))
        names.append(label(name, x + 15, y))
        at, x = at + wide, x + needed
    if finite(limit):
        place = {"x1": 10 + limit * (width - 20), "x2": 10 + limit * (width - 20)}
        drawn.append(tag("line", class_="limit", **place, y1=1, y2=43))
    return chart(width, y + 10, describe, *drawn, *names)


def upright_bars(
    bars: Sequence[tuple[float, float, float | None]], x_name: str, y_name: str, describe: str
) -> Markup | None:
    """Upright bars (low, high, y) from 0, all of one width, with some of their ranges below."""
    kept = [bar for bar in bars if finite(*bar)]
    if not kept:
        return None
    y = Scale(0.0, max(max(b[2] for b in kept) * 1.05, 1e-9), HEIGHT - BOTTOM, 26)
    x = Scale(0.0, float(len(bars)), LEFT, WIDTH - RIGHT)
    parts, step = [], x.at(1) - x.at(0)
    for i, (low, high, value) in enumerate(bars):
        if finite(low, high) and (len(bars) <= 6 or i % math.ceil(len(bars) / 6) == 0):
            text = f"{low:g}\N{EN DASH}{high:g}" if high > low else f"{low:g}"
            middle = min(x.at(i + 0.5), WIDTH - LETTER * len(text) / 2)
            parts.append(label(Text(text), middle, y.start + 16, "tick", "middle"))
        if finite(low, high, value):
            top = y.at(max(value, 0.0))
            box = {"x": x.at(i) + 2, "y": top, "width": step - 4, "height": y.start - top}
            parts.append(tag("rect", class_="b0", **box))
    name = label(Text(x_name), (x.start + x.end) / 2, y.start + 34, "tick", "middle")
    return chart(WIDTH, HEIGHT, describe, upward(x, y, y_name), name, *parts)


def meter(share: float | None) -> Markup:
    """A share as a small bar, empty where it is absent. The number stands beside it."""
    wide = min(max(share, 0.0), 1.0) * 60 if finite(share) else 0.0
    bar = tag("rect", class_="b0", x=0, y=2, width=wide, height=8)
    return tag("svg", bar, class_="meter", viewBox="0 0 60 12", aria_hidden="true")
