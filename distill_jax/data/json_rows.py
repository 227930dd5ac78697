"""The records of a JSON file that is one array, read piece by piece.

No more is held than a piece and one record, which may be as long as a line of jsonl.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from distill_jax.data.compressed import open_bytes
from distill_jax.data.rows import Row
from distill_jax.types import UserError
from distill_jax.untrusted import MOST_JSON, parse_json_at

_REMEDY = "write one array of records, or one record per line to a .jsonl file"
_PIECE = 2**16  # bytes that are read at a time, at least
_KINDS = {  # by their first character
    '"': "of type str",
    "[": "of type list",
    "n": "null",
    **dict.fromkeys("tf", "of type bool"),
    **dict.fromkeys("-0123456789", "a number"),
}
_SPACE = re.compile(r"[ \t\r\n]*")


def read_json_rows(path: Path) -> Iterator[Row]:
    """The records, each with the line on which it begins.

    Raises UserError where the file is no JSON: where the next record begins is not known then.
    """
    with open_bytes(path) as file:
        text = _Text(path, file)
        if not text.next():
            return
        if text.next() != "[":
            raise text.error("it is no array")
        text.take(1)
        number = 0
        while text.next() != "]":
            if number:
                if not text.next():
                    raise text.error(f"it ends after record {number}, without a ]")
                if text.next() != ",":
                    raise text.error(f"a , or ] is missing after record {number}")
                text.take(1)
                if text.next() == "]":
                    raise text.error(f"a , follows record {number}, the last", "remove it")
            number += 1
            text.next()
            where = f"{path}:{text.line}"
            yield Row(where, text.value(number))
        text.take(1)
        if text.next():
            raise text.error("something follows its array")


class _Text:
    """What was read of a file and is not taken yet. line: the one where that begins."""

    def __init__(self, path: Path, file: BinaryIO):
        self.line = 1
        self._path, self._file, self._text, self._at = path, file, "", 0
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def error(self, reason: str, remedy: str = _REMEDY) -> UserError:
        return UserError(f"{self._path}:{self.line}: not JSON ({reason}): {remedy}")

    def next(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            self.take(_SPACE.match(self._text, self._at).end() - self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, count: int) -> None:
        self.line += self._text.count("\n", self._at, self._at + count)
        self._at += count

    def value(self, number: int) -> object:
        """The value that begins here, taken."""
        if not self.next():
            raise self.error(f"it ends before record {number}")
        if found := _KINDS.get(self.next()):  # of these it is not known where they end
            raise UserError(
                f"{self._path}:{self.line}: record {number} is {found}, not an object: write"
                ' records such as {"text": "..."}'
            )
        if self.next() != "{":
            raise self.error(f"record {number}: Expecting value")
        while True:
            try:
                value, end = parse_json_at(self._text, self._at)
            except ValueError as error:
                if len(self._text) - self._at > MOST_JSON:
                    raise self.error(
                        f"record {number} is longer than {MOST_JSON:,} bytes, or {error}"
                    ) from None
                if not self._more():
                    raise self.error(f"record {number}: {error}") from None
            else:
                self.take(end - self._at)
                return value

    def _more(self) -> bool:
        """Reads on; as much as there is, so that a long record is looked at a few times only."""
        self._text, self._at = self._text[self._at :], 0
        data = self._file.read(max(_PIECE, len(self._text)))
        try:
            self._text += self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._path}:{self.line}: byte 0x{error.object[error.start]:02x} after this line"
                " is not UTF-8: convert the file to UTF-8"
            ) from None
        return bool(data)
