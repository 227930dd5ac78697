"""Charts as SVG text: numbers in, markup out. Colors are classes, which templates/charts.css fills.

Every string is escaped. A point with an absent or non-finite coordinate is not drawn. Text that
stands in a report carries its path there (data-path); labels of axes have the class `tick`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 400, 250  # of a chart, in the units that its text is 12 high in
LETTER = 7.2  # what a letter takes at most on average, also where text is larger on a phone
LEFT, RIGHT, BOTTOM = 48, 16, 42  # margins of the plotted area
ROW, SAMPLE = 17, 32  # height of a line of the legend, length of its piece of a line


class Text(NamedTuple):
    """A label, and where in the report it stands; no path for words of the page itself.

    name: what stands there where the label is words for it.
    """

    text: str
    path: str = ""
    name: str = ""


class Line(NamedTuple):
    """Points in order. style: a class of charts.css."""

    name: Text
    style: str
    points: Sequence[tuple[float | None, float | None]]


class Scale(NamedTuple):
    """Values low..high lie on the units start..end."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def tag(name: str, *children: str, **attributes) -> Markup:
    """An element. `_` in an attribute's name is `-`, one at its end is dropped; None: left out."""
    shown = [
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
        if value is not None
    ]
    inside = Markup("").join(children)
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("").join(shown), inside)


def _plain(value) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def finite(*values: float | None) -> bool:
    """None of them is absent, infinite or not a number."""
    return all(v is not None and math.isfinite(v) for v in values)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten) within low..high."""
    rough = (high - low) / max(count - 1, 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next((m for m in (1, 2, 2.5, 5) if m * unit >= rough * (1 - 1e-9)), 10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_text(values: Sequence[float]) -> list[str]:
    """The same number of decimals for all, and one letter for thousands, millions, ..."""
    largest = max(abs(v) for v in values)
    power = min(max(int(math.log10(largest) // 3), 0), 6) if largest >= 10_000 else 0
    scaled = [v / 1000.0**power for v in values]
    decimals = next((d for d in range(7) if all(abs(v - round(v, d)) < 1e-9 for v in scaled)), 7)
    minus = lambda text: text.replace("-", "\N{MINUS SIGN}")
    letter = " kMGTPE"[power].strip()
    return [minus(f"{v + 0.0:.{decimals}f}") + letter if v else "0" for v in scaled]


def span(values: Sequence[float], pad: float = 0.06) -> tuple[float, float]:
    """A range around values that is never empty."""
    low, high = min(values), max(values)
    room = (high - low) * pad or abs(high) * 0.1 or 1.0
    return low - room, high + room


def chart(width: float, height: float, describe: str, *children: str, class_="chart") -> Markup:
    """The outer element. `describe` is what someone who cannot see it is told."""
    return tag(
        "svg", tag("rect", class_="paper", width=width, height=height), *children,
        class_=class_, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=describe,
        xmlns="http://www.w3.org/2000/svg",
    )  # fmt: skip


def label(text: Text, x: float, y: float, class_: str = "label", anchor: str = "start") -> Markup:
    """A text; a tick where its class says so. A name in words shows itself on hover."""
    where = "data_word" if text.name else "data_path"
    inside = (tag("title", text.name), Markup.escape(text.text)) if text.name else (text.text,)
    return tag(
        "text", *inside, x=x, y=y, class_=class_, text_anchor=anchor, **{where: text.path or None}
    )


def legend(names: Sequence[tuple[Text, str]]) -> tuple[Markup, float]:
    """Each (name, style) with a piece of its line, in lines as needed; their height."""
    parts, x, y = [], 10.0, ROW - 4.0
    for name, style in names:
        needed = SAMPLE + 10 + LETTER * len(name.text)
        if x > 10 and x + needed > WIDTH:
            x, y = 10.0, y + ROW
        parts.append(tag("line", class_=f"line {style}", x1=x, x2=x + SAMPLE, y1=y - 4, y2=y - 4))
        parts.append(label(name, x + SAMPLE + 5, y))
        x += needed + 8
    return Markup("").join(parts), y + 10


def percent(values: Sequence[float]) -> list[str]:
    """Shares as whole percentages, or with one decimal where they are closer than that."""
    whole = all(abs(100 * v - round(100 * v)) < 1e-6 for v in values)
    return [f"{v:.0%}" if whole else f"{v:.1%}" for v in values]


def axes(
    x: Scale, y: Scale, x_name: str, y_name: str, x_text=tick_text, y_text=tick_text
) -> Markup:
    """Both axes. x_text, y_text: from values to their texts."""
    return upward(x, y, y_name, y_text) + across(x, y.start, x_name, x_text)


def upward(x: Scale, y: Scale, name: str, text=tick_text, name_at: float | None = None) -> Markup:
    """A vertical axis: grid lines over the width of x, numbers, the name above or at `name_at`."""
    parts = []
    values = ticks(y.low, y.high)
    for value, shown in zip(values, text(values), strict=True):
        at = y.at(value)
        parts.append(tag("line", class_="grid", x1=x.start, x2=x.end, y1=at, y2=at))
        parts.append(label(Text(shown), x.start - 6, at + 4, "tick", "end"))
    parts.append(label(Text(name), 10, y.end - 12 if name_at is None else name_at, "tick"))
    return Markup("").join(parts)


def across(x: Scale, height: float, name: str, text=tick_text) -> Markup:
    """A horizontal axis: its line, numbers and name."""
    parts = [tag("line", class_="axis", x1=x.start, x2=x.end, y1=height, y2=height)]
    values = ticks(x.low, x.high)
    for value, shown in zip(values, text(values), strict=True):
        at = x.at(value)
        parts.append(tag("line", class_="axis", x1=at, x2=at, y1=height, y2=height + 4))
        parts.append(label(Text(shown), at, height + 16, "tick", "middle"))
    parts.append(label(Text(name), (x.start + x.end) / 2, height + 34, "tick", "middle"))
    return Markup("").join(parts)


def polyline(
    points: Sequence[tuple[float, float]], x: Scale, y: Scale, class_: str, title: str = ""
) -> Markup:
    """A line through points. title: what it says on hover."""
    places = " ".join(f"{x.at(a):.2f},{y.at(b):.2f}" for a, b in points)
    return tag("polyline", *([tag("title", title)] if title else []), class_=class_, points=places)
