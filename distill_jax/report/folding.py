"""Texts that models wrote: empty lines in a row as one that counts them, nothing of them lost."""

import re
from itertools import groupby

from markupsafe import Markup

LEAST = 3  # empty lines in a row that are folded


def folded(text: str) -> Markup:
    """The text, escaped. White space that is folded stays in the element, not displayed.

    A text of white space alone, or of nothing, says so.
    """
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    if not text.strip():
        return _fold(text, _only_white_space(lines) if text else "nothing")
    parts = []
    for empty, run in groupby(lines, key=lambda line: not line.strip()):
        inside = list(run)
        joined = "".join(inside)
        fold = empty and len(inside) >= LEAST
        parts.append(_fold(joined, f"{len(inside)} empty lines") if fold else Markup.escape(joined))
    return Markup("").join(parts)


def _only_white_space(lines: list[str]) -> str:
    count = sum(line.endswith("\n") for line in lines)
    return (
        f"only white space, {count} empty line{'s' * (count > 1)}" if count else "only white space"
    )


def _fold(hidden: str, said: str) -> Markup:
    return Markup('<span class="fold" data-fold="{}"><span>{}</span></span>').format(said, hidden)
