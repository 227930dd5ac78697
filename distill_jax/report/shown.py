"""Parts of a report as elements of its page, each with the path where it stands (see page.py)."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from markupsafe import Markup

from distill_jax import words
from distill_jax.report.folding import folded
from distill_jax.report.number_formats import FORMATS, is_number

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

    def command(self, *parts: Part) -> Markup:
        """A command or flags, a line of which ends at a space alone, not after the dashes."""
        words = [
            Markup('<span class="unbroken">{}</span>').format(x) for x in self.at(*parts).split(" ")
        ]
        return Markup('<span data-path="{}">{}</span>').format(
            path(*parts), Markup(" ").join(words)
        )

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
