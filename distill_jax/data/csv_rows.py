"""The records of tables in text: a header that names the columns, and a record per row."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from distill_jax.data.compressed import open_bytes
from distill_jax.data.formats import not_text
from distill_jax.data.rows import Row
from distill_jax.types import UserError
from distill_jax.untrusted import MOST_JSON

COLUMNS = 1000
_LINES = 2**18  # of a record
# Of a cell, the standard library's limit is that of all readers of a process, and 131,072.
csv.field_size_limit(MOST_JSON)


def read_csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    """The records, each with the line on which it begins. A cell that is empty is null.

    Cells may be quoted by ", which is doubled within, and then hold new lines.
    Raises UserError for a file without a header, or a record that is too long to be read.
    """
    with open_bytes(path) as file:
        lines = _Lines(path, file)
        table = csv.reader(lines, delimiter=delimiter, strict=True)
        header = _header(path, table, delimiter)
        while True:
            lines.begin()
            try:
                cells = next(table)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(lines.where, error=UserError(f"{lines.where}: {error}: mend the quotes"))
                continue
            if not cells:
                continue
            if len(cells) != len(header):
                reason = f"{len(cells):,} cells, and the header names {len(header)} columns"
                error = UserError(f'{lines.where}: {reason}: mend this row, or put " around cells')
                yield Row(lines.where, error=error)
                continue
            yield Row(lines.where, {k: v or None for k, v in zip(header, cells, strict=True) if k})


def _header(path: Path, table: Iterator[list[str]], delimiter: str) -> list[str]:
    try:
        header = next(table, [])
    except csv.Error as error:
        raise UserError(
            f"{path}:1: {error}: write a first line with the names of columns"
        ) from None
    names = [name for name in header if name]
    if len(header) > COLUMNS:
        raise UserError(f"{path}:1: {len(header):,} columns, and at most {COLUMNS:,} are read")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}:1: two columns are named {twice[:40]!r}: rename one")
    other = next((c for c in (";", "\t", ",", "|") if c != delimiter and c in "".join(header)), "")
    if len(header) == 1 and other:
        raise UserError(
            f"{path}:1: one column, named {header[0][:40]!r}: write the table with"
            f" {delimiter!r} between cells instead of {other!r}"
            + (", or give --config.data.format=tsv" if other == "\t" else "")
        )
    return header


class _Lines:
    """The lines of a file; those of one record are as many bytes as a line of jsonl, at most."""

    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._file, self._number = path, file, 0
        self.begin()

    def begin(self) -> None:
        """The next line begins a record."""
        self._first, self._taken = self._number + 1, 0
        self.where = f"{self._path}:{self._first}"

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._file.readline(MOST_JSON + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self._taken += len(line)
        where = f"{self._path}:{self._number}"
        if self._taken > MOST_JSON or self._number - self._first > _LINES:
            raise UserError(
                f"{self.where}: the record is longer than {MOST_JSON:,} bytes or {_LINES:,} lines:"
                ' look for a " that is not closed'
            )
        if error := not_text(line, where):
            raise error
        return line.decode("utf-8-sig" if self._number == 1 else "utf-8")
