"""Reads a page with html.parser: every text with the elements around it."""

import json
import re
from html.parser import HTMLParser
from typing import NamedTuple

from distill_jax.report import shown
from distill_jax.words import labelled, named

VOID = {"meta", "link", "br", "img", "input", "hr"}
LETTERS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
PLACED = {"data-path", "data-key", "data-word", "data-key-word"}
UNSEEN = {"style", "title", "script"}


class Element(NamedTuple):
    """An element with the text inside it."""

    tag: str
    attributes: dict
    text: list


class Walk(HTMLParser):
    """elements: all, in order; texts: (text, the elements around it from the outside in)."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.open = [], [], []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, (tag, self.open[-1])
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element.text.append(data)
        self.texts.append((data, list(self.open)))


def text_of(element):
    """All the text inside."""
    return "".join(element.text)


def at(report, path):
    """What stands at a data-path."""
    value = report
    for part in path.split("."):
        key = part.replace("~1", ".").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def stray(walk):
    """Texts with a digit that neither stand in the report nor are a tick of an axis."""
    return [
        text.strip()
        for text, around in walk.texts
        if re.search(r"\d", text)
        and not any(e.tag in UNSEEN for e in around)
        and not any(PLACED & set(e.attributes) for e in around)
        and not any("tick" in (e.attributes.get("class") or "").split() for e in around)
    ]


def agrees_in_words(element, report):
    """Whether an element shows the words for a name, and the name itself on hover."""
    where = element.attributes.get("data-word")
    if where is None:
        where = element.attributes["data-key-word"]
        at(report, where)
        name = where.split(".")[-1].replace("~1", ".").replace("~0", "~")
    else:
        name = at(report, where)
    title, text = element.attributes.get("title"), text_of(element)
    if title is None:  # of a chart it is an element
        title, text = element.text[0], "".join(element.text[1:])
    return name == title and text == named(labelled(name))


def agrees(element, report):
    """Whether an element shows what its path says: an exact value, and a correct rounding of it."""
    there, text = at(report, element.attributes["data-path"]), text_of(element)
    if "data-value" not in element.attributes:
        return text == there
    value = json.loads(element.attributes["data-value"])
    if value != there or type(value) is not type(there):
        return False
    if value is None:
        return text == shown.ABSENT
    if isinstance(value, bool):
        return text == ("yes" if value else "no")
    return rounds(text, value)


def rounds(text, value):
    """Whether a text is a number within half a unit of its last digit of value."""
    plain = (
        text.replace("\N{MINUS SIGN}", "-")
        .replace(",", "")
        .replace("\N{NARROW NO-BREAK SPACE}", "")
    )
    match = re.fullmatch(
        r"\$?([+-]?\d+)(\.\d+)?(e[+-]?\d+)?([kMGTPE%]?)(B?|\N{MULTIPLICATION SIGN})", plain
    )
    if not match:
        return False
    whole, decimals, power, letter, _ = match.groups()
    scale = LETTERS.get(letter, 0.01 if letter == "%" else 1.0) * float("1" + (power or ""))
    shown = float(whole + (decimals or "")) * scale
    unit = scale * 10.0 ** -(len(decimals or ".") - 1)
    return abs(shown - value) <= unit * 0.5000001 + abs(value) * 1e-12
