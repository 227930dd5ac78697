"""report.html from the numbers of report.json: one file, no network, no script.

Every number and every text of the report is an element that carries the path where it stands
there (data-path: keys joined by `.`; in a key `~` is `~0` and `.` is `~1`), numbers their full
precision too (data-value). A name that is shown in words (words.py) has its path in data-word.
Nothing is computed here: what is shown is what the report holds.
"""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from distill_jax import words
from distill_jax.report import charts, learning_curves, svg_models
from distill_jax.report.charts import TEMPLATES, tone
from distill_jax.report.folding import folded
from distill_jax.report.number_formats import FORMATS, is_number


def page(report: dict[str, Any]) -> str:
    """The page of a study or of a single run; everything a model or a data set wrote is escaped."""
    report = finite(report)
    sections = [s for s in SECTIONS if s.present(report)]
    left_out = [s for s in SECTIONS if s not in sections]
    return render("report.html.j2", report, sections=sections, left_out=left_out)


def render(template: str, report: dict[str, Any], **more: Any) -> str:
    """A template of a report, which sees it as `r`, and what is given more."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = Shown(report)
    environment.globals.update(
        n=shown.number, t=shown.text, prose=shown.prose, k=shown.key, v=shown.value,
        yes=shown.yes, w=shown.word, kw=shown.key_word, some=shown.some, plural_s=shown.plural,
        interval=shown.interval, ends=shown.ends, leaves=leaves, charts=charts,
        curves=learning_curves, meter=svg_models.meter, heat=heat, tone=tone, glyph=glyph,
        costs=COSTS, by_prompt=by_prompt, named=words.named, labelled=words.labelled,
    )  # fmt: skip
    return environment.get_template(template).render(r=report, **more)


def finite(value: Any) -> Any:
    """The same with None for every number that is infinite or not a number."""
    if isinstance(value, dict):
        return {key: finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


ABSENT = "\N{EN DASH}"  # what stands in the place of a number that was not measured

Part = str | int | tuple["Part", ...]  # keys and indices, one by one or several together


def flat(parts: tuple[Part, ...]) -> Iterator[str | int]:
    """Every key and index, in order."""
    for part in parts:
        if isinstance(part, tuple):
            yield from flat(part)
        else:
            yield part


def path(*parts: Part) -> str:
    """Where something stands in the report."""
    return ".".join(str(p).replace("~", "~0").replace(".", "~1") for p in flat(parts))


def leaves(value: Any, *before: str | int) -> Iterator[tuple[str | int, ...]]:
    """The paths of every text, number and truth value in a part of the report."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, *before, key)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from leaves(inner, *before, i)
    else:
        yield before


class Shown(NamedTuple):
    """Shows parts of one report by their paths."""

    report: dict[str, Any]

    def at(self, *parts: Part) -> Any:
        """What stands there. KeyError where the report has no such place."""
        value = self.report
        for part in flat(parts):
            value = value[part]
        return value

    def number(self, style: str, *parts: Part) -> Markup:
        """A number as a style of FORMATS writes it; a dash where it is null."""
        value = self.at(*parts)
        if value is None:
            return Markup(
                '<span class="n absent" title="not measured" data-path="{}" data-value="null">'
                "{}</span>"
            ).format(path(*parts), ABSENT)
        return Markup('<span class="n" data-path="{}" data-value="{}">{}</span>').format(
            path(*parts), json.dumps(value), FORMATS[style](value)
        )

    def text(self, *parts: Part) -> Markup:
        """A text, escaped."""
        return Markup('<span data-path="{}">{}</span>').format(path(*parts), self.at(*parts))

    def prose(self, *parts: Part) -> Markup:
        """A text that a model or a data set wrote, its empty lines folded."""
        return Markup('<span data-path="{}">{}</span>').format(
            path(*parts), folded(self.at(*parts))
        )

    def key(self, *parts: Part) -> Markup:
        """The last of the keys that lead there, as text."""
        self.at(*parts)
        return Markup('<span data-key="{}">{}</span>').format(path(*parts), list(flat(parts))[-1])

    def word(self, *parts: Part) -> Markup:
        """A name in words, itself on hover; a text like any other where there are no words for it.

        A verdict's label, too.
        """
        return self._named(self.at(*parts), "data-word", path(*parts)) or self.text(*parts)

    def key_word(self, *parts: Part) -> Markup:
        """The last of the keys that lead there, in words."""
        self.at(*parts)
        last = list(flat(parts))[-1]
        return self._named(last, "data-key-word", path(*parts)) or self.key(*parts)

    def _named(self, name: str, attribute: str, where: str) -> Markup | None:
        shown = words.named(words.labelled(name))
        if shown == name:
            return None
        return Markup('<span {}="{}" title="{}">{}</span>').format(
            Markup(attribute), where, name, shown
        )

    def some(self, *parts: Part) -> bool:
        """Whether there is anything: not where the place is missing or null, or all in it is."""
        try:
            value = self.at(*parts)
        except (KeyError, IndexError, TypeError):
            return False
        found = value.values() if isinstance(value, dict) else (value,)
        return any(x is not None for x in found)

    def plural(self, *parts: Part) -> str:
        """The end of a word behind a number: nothing after 1."""
        return "" if self.at(*parts) == 1 else "s"

    def yes(self, *parts: Part) -> Markup:
        """A truth value as yes or no."""
        value = self.at(*parts)
        return Markup('<span data-path="{}" data-value="{}">{}</span>').format(
            path(*parts), json.dumps(value), "yes" if value else "no"
        )

    def interval(self, style: str, *parts: Part) -> Markup:
        """A mean, and below it from where to where it lies; a dash for a null."""
        value = self.at(*parts)
        if value is None or is_number(value):
            return self.number(style, *parts)
        mean = self.number(style, *parts, "mean")
        if value["low"] is None or value["high"] is None:
            return mean
        return Markup('{}<span class="range">{}</span>').format(mean, self.ends(style, *parts))

    def ends(self, style: str, *parts: Part) -> Markup:
        """From where to where an interval lies; one dash where it has no ends."""
        low, high = (self.number(style, *parts, end) for end in ("low", "high"))
        none = self.at(*parts, "low") is None and self.at(*parts, "high") is None
        return low if none else Markup("{} to {}").format(low, high)

    def value(self, *parts: Part) -> Markup:
        """Whatever stands there, in full."""
        value = self.at(*parts)
        if value is None or is_number(value):
            return self.number("full", *parts)
        return self.yes(*parts) if isinstance(value, bool) else self.text(*parts)


def heat(value: float | None) -> str:
    """The class of a token's background: h0 up to 0.1 nats, h1, h2, h3 up to 0.3, 1 and 3, h4."""
    return f"h{sum(value > end for end in HEAT)}" if value is not None else "h0"


def by_prompt(samples: list[dict[str, Any]]) -> list[list[int]]:
    """The places of the samples, those of one prompt together."""
    prompts: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        prompts.setdefault(sample["prompt"], []).append(i)
    return list(prompts.values())


def glyph(text: str) -> str:
    """A sign for a token of which nothing could be seen."""
    return (
        ""
        if text.strip()
        else "".join(GLYPHS.get(c, "\N{OPEN BOX}") for c in text) or "\N{EMPTY SET}"
    )


class Section(NamedTuple):
    """A part of the page: its template, its heading, and whether the report has anything for it."""

    name: str
    title: str
    present: Callable[[dict[str, Any]], Any]
    why_not: str  # of a study


HEAT = (0.1, 0.3, 1.0, 3.0)  # nats
GLYPHS = {"\n": "\N{RETURN SYMBOL}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}

# Rows of the table of serving: words and style of each key; another key stands under its own name.
COSTS = {
    "parameters": ("parameters", "letters"),
    "bytes": ("bytes", "bytes"),
    "first_token_ms": ("first token, ms", "ms"),
    "decode_tokens_per_s_1": ("tokens/s, batch of one", "speed"),
    "decode_tokens_per_s_8": ("tokens/s, batch of eight", "speed"),
    "cost_per_million_tokens": ("per million tokens", "money"),
}

# In the order of the page. A section stands in templates/NAME.j2.
SECTIONS = (
    Section("evidence", "Evidence", lambda r: r["arms"] or r["models"] or r["curves"],
            "no arm has finished"),
    Section("slices", "Slices", lambda r: r["slices"], "no slices were registered for this study"),
    Section("behaviour", "Behaviour", lambda r: r["behaviour"] or r["samples"],
            "the models were given no prompts to continue"),
    Section("calibration", "Calibration", lambda r: r["calibration"],
            "no records of confidence were kept"),
    Section("cost", "Cost and quality", lambda r: r["cost"], "serving was not timed"),
    Section("diagnose", "Diagnose", lambda r: r["diagnose"],
            "there is no teacher whose distribution the student could differ from"),
    Section("options", "Options", lambda r: r["options"],
            "no number of this study passed a trigger"),
    Section("defaults", "What differs from the defaults", lambda r: True, ""),
    Section("provenance", "Provenance", lambda r: r["provenance"], "nothing was recorded"),
)  # fmt: skip
