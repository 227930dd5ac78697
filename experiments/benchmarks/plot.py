"""Horizontal bars with whiskers and limits, drawn as the charts of a report are."""

from typing import NamedTuple

from distill_jax.report import svg, svg_intervals
from distill_jax.report.charts import standalone
from distill_jax.report.svg import Scale, Text, label, tag
from distill_jax.report.svg_intervals import Interval

LABELS, BARS, VALUES, ROW, TOP = 400, 400, 220, 24, 36
STYLES = {"": "b0", "met": "b4", "missed": "b1"}


class Bar(NamedTuple):
    """One bar: its length, the ends of its whisker, a limit to mark, and met, missed or neither."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    verdict: str = ""
    at_least: bool = False


def bars_svg(title: str, unit: str, bars: list[Bar]) -> str:
    """The whole file. Dashed marks are limits; whiskers 95% intervals."""
    longest = max(value for bar in bars for value in bar[1:5] if value is not None)
    x = Scale(0.0, 1.05 * longest, LABELS, LABELS + BARS)
    bottom = TOP + ROW * len(bars)
    parts = [label(Text(title), 10, 20), svg.across(x, bottom, unit)]
    for i, bar in enumerate(bars):
        parts += _bar(bar, x, TOP + ROW * i)
    return standalone(svg.chart(LABELS + BARS + VALUES, bottom + 44, title, *parts))


def _bar(bar: Bar, x: Scale, top: float) -> list[str]:
    middle, text = top + ROW / 2, f"{bar.value:.3g}"
    box = {"x": x.start, "y": top + 4, "width": x.at(bar.value) - x.start, "height": ROW - 8}
    name = Text(bar.label)
    parts = [
        label(name, LABELS - 8, middle + 4, anchor="end"),
        tag("rect", class_=STYLES[bar.verdict], **box),
        svg_intervals.strip(Interval(name, None, bar.low, bar.high, "flat"), x, middle),
    ]
    if bar.limit is not None:
        at = x.at(bar.limit)
        parts.append(tag("line", class_="margin", x1=at, x2=at, y1=top, y2=top + ROW))
        text += f" (at {'least' if bar.at_least else 'most'} {bar.limit:g}: {bar.verdict})"
    return [*parts, label(Text(text), x.end + 10, middle + 4)]
