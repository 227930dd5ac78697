"""The records of tables in text: a header that names the columns, and a record per row."""

import csv
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, BinaryIO

from distill_jax.data.compressed import open_bytes
from distill_jax.data.formats import not_text
from distill_jax.data.rows import Row
from distill_jax.types import UserError
from distill_jax.untrusted import MOST_JSON, parse_json
from distill_jax.words import plural

COLUMNS = 1000
_LINES = 2**18  # of a record
# Of a cell, the standard library's limit is that of all readers of a process, and 131,072.
csv.field_size_limit(MOST_JSON)


def read_csv_rows(path: Path, delimiter: str, turns: Set[str] = frozenset()) -> Iterator[Row]:
    """The records, each with the line on which it begins. A cell that is empty is null.

    Cells may be quoted by ", which is doubled within, and then hold new lines. turns: columns
    whose cells are JSON.
    Raises UserError for a file without a header, a record that is too long to be read, or a quote
    that is not closed: where the next record begins is not known then.
    """
    records = taken = 0  # that are whole, and their lines
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
                if lines.ended:
                    raise UserError(
                        f'{lines.where}: a " is not closed, with which lines {lines.first} to'
                        f" {lines.last} are one record: close it, or write it twice where it is of"
                        " the text"
                    ) from None
                says = UserError(f"{lines.where}: {lines.many}{_told(error)}")
                yield Row(lines.where, None, says, _lost(lines.count, records, taken))
                continue
            if not cells:
                continue
            lost = _lost(lines.count, records, taken)
            if len(cells) != len(header):
                reason = f"{plural(len(cells), 'cell')}, and the header names"
                says = f"{lines.where}: {lines.many}{reason} {plural(len(header), 'column')}"
                error = UserError(f'{says}: mend this row, or put " around cells')
                yield Row(lines.where, None, error, lost)
                continue
            records, taken = records + 1, taken + lines.count
            record = {k: v or None for k, v in zip(header, cells, strict=True) if k}
            try:
                record |= {k: _value(record[k], k, lines.where) for k in turns & record.keys()}
            except UserError as error:
                yield Row(lines.where, None, error, lost)
                continue
            yield Row(lines.where, record, None, lost)


def _value(cell: str | None, column: str, where: str) -> Any:
    """What a cell of JSON says."""
    remedy = "write turns as JSON, with json.dumps in Python"
    return None if cell is None else parse_json(cell, f"{where}: its {column!r}", remedy)


def _lost(lines: int, records: int, taken: int) -> int:
    """How many records so many lines would be, by the lines that whole records take.

    What follows a quote is one record up to the next quote, however much that is.
    """
    return max(1, lines * records // taken if taken else lines)


def _told(error: csv.Error) -> str:
    """What is wrong with a record, and what to do."""
    if "new-line character" in str(error):
        return (
            "a carriage return that ends no line: if all lines end in one, as of old Excel for"
            " Mac, convert the file with tr '\\r' '\\n' < FILE > NEW; else put \" around the cell"
        )
    return f"{error}: mend the quotes"


def _header(path: Path, table: Iterator[list[str]], delimiter: str) -> list[str]:
    try:
        header = next(table, [])
    except csv.Error as error:
        raise UserError(f"{path}:1: in the names of columns, {_told(error)}") from None
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
    """The lines of a file; those of one record are as many bytes as a line of jsonl, at most.

    first, last: numbers of the lines of the record that is read. ended: the file has no more.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._file, self.last = path, file, 0
        self.ended = False
        self.begin()

    def begin(self) -> None:
        """The next line begins a record."""
        self.first, self._taken = self.last + 1, 0
        self.where = f"{self._path}:{self.first}"

    @property
    def count(self) -> int:
        """How many lines the record has taken."""
        return self.last + 1 - self.first

    @property
    def many(self) -> str:
        """The lines of a record that has more than one, before what is said of it."""
        return f"lines {self.first} to {self.last}: " if self.count > 1 else ""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._file.readline(MOST_JSON + 1)
        if not line:
            self.ended = True
            raise StopIteration
        self.last += 1
        self._taken += len(line)
        where = f"{self._path}:{self.last}"
        if self._taken > MOST_JSON or self.last - self.first > _LINES:
            raise UserError(
                f"{self.where}: the record is longer than {MOST_JSON:,} bytes or {_LINES:,} lines:"
                ' look for a " that is not closed'
            )
        if error := not_text(line, where):
            raise error
        return line.decode("utf-8-sig" if self.last == 1 else "utf-8")
