"""Learning curves: an arm's mean over its seeds, their band, each seed faint. Numbers in, SVG out.

The arms that are compared set the scale. Another arm may reach beyond it: its line is cut, an arrow
stands where it leaves, and its name and value stand at that edge.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from distill_jax.report.number_formats import FORMATS
from distill_jax.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    LETTER,
    RIGHT,
    WIDTH,
    Scale,
    Text,
    across,
    chart,
    finite,
    label,
    legend,
    polyline,
    span,
    tag,
    upward,
)

EDGE_ROW = 15.0  # height of a line of text about an arm beyond the scale
UP, DOWN = "\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}"
MOST_HOVERED = 60  # points of a line that tell their value on hover

Points = Sequence[tuple[float, float]]
value = FORMATS["general"]


class Seed(NamedTuple):
    """One run: points in order."""

    name: str
    points: Sequence[tuple[float | None, float | None]]


class Arm(NamedTuple):
    """style: a class of charts.css; compared: all of its values lie on the scale."""

    name: Text
    style: str
    seeds: Sequence[Seed]
    compared: bool = True


class Mean(NamedTuple):
    """Over the seeds at one x: the mean and the ends of their range."""

    x: float
    mean: float
    low: float
    high: float


class Edge(NamedTuple):
    """An arm beyond the scale: above or below, its words, the x at which it leaves."""

    arm: Arm
    above: bool
    text: str
    x: float


def means(seeds: Sequence[Seed]) -> list[Mean]:
    """The mean at every x that all of the seeds have, ascending."""
    values = [dict(seed.points) for seed in seeds]
    common = [x for x in values[0] if all(x in one for one in values)]
    rows = [(x, [one[x] for one in values]) for x in sorted(common)]
    return [Mean(x, sum(ys) / len(ys), min(ys), max(ys)) for x, ys in rows]


def heights(arms: Sequence[Arm]) -> tuple[float, float]:
    """The values that the scale holds: all of the compared arms, of others what is near these.

    Near is half of the compared arms' range. Where no arm is compared, all are.
    """
    of = lambda some: [y for arm in some for seed in arm.seeds for _, y in seed.points]
    compared = of([arm for arm in arms if arm.compared]) or of(arms)
    low, high = min(compared), max(compared)
    reach = (high - low) / 2 or abs(high) * 0.1 or 1.0
    kept = [y for y in of(arms) if low - reach <= y <= high + reach]
    return min(kept), max(kept)


def edges(arm: Arm, low: float, high: float) -> list[Edge]:
    """What there is to say of an arm of which some points lie above or below low..high."""
    mean = [(m.x, m.mean) for m in means(arm.seeds)]
    drawn = [mean, *(seed.points for seed in arm.seeds)]
    found = []
    for limit, side in ((high, 1), (low, -1)):
        out = [y for points in drawn for _, y in points if side * (y - limit) > 0]
        if not out:
            continue
        line = next(points for points in drawn if any(y in out for _, y in points))
        last, farthest = (mean or line)[-1][1], side * max(side * y for y in out)
        reach = "up to" if side > 0 else "down to"
        said = value(last) if last in out else f"{reach} {value(farthest)}"
        found.append(Edge(arm, side > 0, f"{arm.name.text} {said}", _leaves(line, limit, side)))
    return found


def _leaves(points: Points, limit: float, side: int) -> float:
    """The x at which a line first passes a limit."""
    i = next(i for i, (_, y) in enumerate(points) if side * (y - limit) > 0)
    (x, y), (x_before, y_before) = points[i], points[max(i - 1, 0)]
    return x_before + (limit - y_before) / (y - y_before) * (x - x_before) if i else x


def lines(
    arms: Sequence[Arm],
    x_name: str,
    y_name: str,
    describe: str,
    x_text: Callable[[float], str] = "{:g}".format,
) -> Markup | None:
    """All arms over one axis. None with no run of two points. x_text: an x in words."""
    arms = [arm for arm in map(_drawable, arms) if arm.seeds]
    if not arms:
        return None
    names, top = legend([(arm.name, arm.style) for arm in arms])
    xs = [x for arm in arms for seed in arm.seeds for x, _ in seed.points]
    ends = min(xs), max(xs)
    low, high = span(heights(arms))
    beyond = [edge for arm in arms for edge in edges(arm, low, high)]
    above, below = ([e for e in beyond if e.above is up] for up in (True, False))
    room = EDGE_ROW * len(above)
    x = Scale(*(ends if ends[1] > ends[0] else span(ends)), LEFT, WIDTH - RIGHT)
    y = Scale(low, high, top + room + HEIGHT - BOTTOM, top + room + 24)
    frame = upward(x, y, y_name, name_at=y.end - 12 - room) + across(x, y.start, x_name)
    layers = [_band(arm, x, y) for arm in arms] + [_strokes(arm, x, y) for arm in arms]
    said = [_edge(e, x, y.end, y.end - 5 - EDGE_ROW * i) for i, e in enumerate(above)]
    said += [_edge(e, x, y.start, y.start - 9 - EDGE_ROW * i) for i, e in enumerate(below)]
    hover = [_hover(arm, x, y, x_text) for arm in arms]
    area = clipped(x, y, *layers)
    return chart(WIDTH, top + room + HEIGHT, describe, names, frame, area, *said, *hover)


def _drawable(arm: Arm) -> Arm:
    """The same without absent points, and without runs of less than two."""
    kept = [seed._replace(points=[p for p in seed.points if finite(*p)]) for seed in arm.seeds]
    return arm._replace(seeds=[seed for seed in kept if len(seed.points) > 1])


def _mean(arm: Arm) -> list[Mean]:
    """The line of the mean; empty where there is one seed, or no two points that all seeds have."""
    line = means(arm.seeds) if len(arm.seeds) > 1 else []
    return line if len(line) > 1 else []


def _band(arm: Arm, x: Scale, y: Scale) -> Markup:
    line = _mean(arm)
    corners = [(m.x, m.low) for m in line] + [(m.x, m.high) for m in reversed(line)]
    return polyline(corners, x, y, f"band {arm.style}") if line else Markup("")


def _strokes(arm: Arm, x: Scale, y: Scale) -> Markup:
    """The seeds, faint below their mean."""
    line = _mean(arm)
    look = f"line faint {arm.style}" if line else f"line {arm.style}"
    parts = [
        polyline(seed.points, x, y, look, title=f"{arm.name.text}, seed {seed.name}")
        for seed in arm.seeds
    ]
    if line:
        parts.append(polyline([(m.x, m.mean) for m in line], x, y, f"line {arm.style}"))
    return Markup("").join(parts)


def _edge(edge: Edge, x: Scale, at: float, text_at: float) -> Markup:
    """An arrow where a line leaves, and the words beside it."""
    tip, back = x.at(edge.x), 7 if edge.above else -7
    corners = " ".join(f"{a:.2f},{b:.2f}" for a, b in
                       ((tip - 5, at + back), (tip, at), (tip + 5, at + back)))  # fmt: skip
    arrow = tag("polyline", class_=f"dot {edge.arm.style}", points=corners)
    text = f"{edge.text} {UP if edge.above else DOWN}"
    left = tip + LETTER * len(text) <= WIDTH
    beside = {"x": tip - 5, "anchor": "start"} if left else {"x": tip + 5, "anchor": "end"}
    return arrow + label(Text(text), y=text_at, class_="tick edge", **beside)


def _hover(arm: Arm, x: Scale, y: Scale, x_text: Callable[[float], str]) -> Markup:
    """Invisible discs that tell their values, on the mean or, without one, on every seed."""
    if line := _mean(arm):
        of = lambda m: f"mean {value(m.mean)}, seeds {value(m.low)} to {value(m.high)}"
        told = [(m.x, m.mean, f"{arm.name.text}, {x_text(m.x)}: {of(m)}") for m in thinned(line)]
    else:
        told = [
            (a, b, f"{arm.name.text}, seed {seed.name}, {x_text(a)}: {value(b)}")
            for seed in arm.seeds
            for a, b in thinned(seed.points)
        ]
    return Markup("").join(
        tag("circle", tag("title", text), class_=f"hit {arm.style}", cx=x.at(a), cy=y.at(b), r=5)
        for a, b, text in told
        if y.low <= b <= y.high
    )


def thinned(rows: Sequence, most: int = MOST_HOVERED) -> list:
    """At most about so many of them, evenly; the last is kept."""
    stride = math.ceil(len(rows) / most)
    return [row for i, row in enumerate(rows) if i % stride == 0 or i == len(rows) - 1]


def clipped(x: Scale, y: Scale, *children: str) -> Markup:
    """What lies outside the plotted area is not shown; coordinates stay those of the chart."""
    w, h = x.end - x.start, y.start - y.end
    return tag(
        "svg", *children, x=x.start, y=y.end, width=w, height=h,
        viewBox=f"{x.start:g} {y.end:g} {w:g} {h:g}", overflow="hidden",
    )  # fmt: skip
