"""Horizontal bars with whiskers as SVG text."""

from html import escape
from typing import NamedTuple

LABEL_PX, PLOT_PX, VALUE_PX, ROW_PX, TOP_PX = 430, 420, 210, 26, 56
INK, GRID, LIMIT = "#222222", "#dddddd", "#c62828"
FILL = {"": "#8fa8c8", "met": "#7fb58a", "missed": "#e0a39a"}
MIDDLE = 'text-anchor="middle" font-size="11"'
TICKS = (1, 2, 2.5, 5, 10)


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
    """The whole file. Red marks are limits; whiskers 95% intervals."""
    longest = max(max(x for x in bar[1:5] if x is not None) for bar in bars)
    step = tick_step(longest)
    scale = PLOT_PX / (longest * 1.05)
    height, width = TOP_PX + ROW_PX * len(bars) + 16, LABEL_PX + PLOT_PX + VALUE_PX
    bottom = TOP_PX + ROW_PX * len(bars)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" font-family="sans-serif" font-size="13" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(12, 22, title, 'font-size="15" font-weight="bold"'),
    ]
    for i in range(int(longest * 1.05 / step) + 1):
        x = LABEL_PX + i * step * scale
        out += [
            _line(x, TOP_PX - 6, x, bottom, GRID),
            _text(x, TOP_PX - 10, f"{i * step:g}", MIDDLE),
        ]
    out.append(_text(LABEL_PX + PLOT_PX + 10, TOP_PX - 10, unit))
    for i, bar in enumerate(bars):
        out += _bar(bar, TOP_PX + ROW_PX * i, scale)
    return "\n".join([*out, "</svg>", ""])


def tick_step(longest: float) -> float:
    """The smallest round step that cuts an axis into at most six parts."""
    power = 10.0**-9
    while longest / (10 * power) > 6:
        power *= 10
    return next(power * tick for tick in TICKS if longest / (power * tick) <= 6)


def _bar(bar: Bar, y: float, scale: float) -> list[str]:
    at = lambda value: LABEL_PX + value * scale
    middle, text = y + ROW_PX / 2, f"{bar.value:.3g}"
    out = [
        _text(LABEL_PX - 8, middle + 4, bar.label, 'text-anchor="end"'),
        f'<rect x="{LABEL_PX}" y="{y + 4:.1f}" width="{bar.value * scale:.1f}"'
        f' height="{ROW_PX - 8}" fill="{FILL[bar.verdict]}"/>',
    ]
    if bar.low is not None:
        out.append(_line(at(bar.low), middle, at(bar.high), middle, INK))
        out += [_line(at(x), middle - 4, at(x), middle + 4, INK) for x in (bar.low, bar.high)]
    if bar.limit is not None:
        out.append(_line(at(bar.limit), y + 1, at(bar.limit), y + ROW_PX - 1, LIMIT, 2))
        text += f" (at {'least' if bar.at_least else 'most'} {bar.limit:g}: {bar.verdict})"
    return [*out, _text(LABEL_PX + PLOT_PX + 10, middle + 4, text)]


def _line(x1, y1, x2, y2, color, width=1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"'
        f' stroke-width="{width}"/>'
    )


def _text(x, y, text, attributes="") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'
