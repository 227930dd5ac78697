"""Letters that would steer a terminal or turn the order of a page's letters, as ones to be seen."""

import re

# Control characters but newline and tab, what turns the direction of text or ends a line unseen,
# and halves of characters.
HIDDEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    r"""The same with a code in the place of every such letter. Files of JSON keep the letters.

    >>> visible("\x1b[2Jgone")
    '\\x1b[2Jgone'
    """
    return HIDDEN.sub(_code, text)


def _code(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
