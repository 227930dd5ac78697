"""Tables of scores as files hold them: csv, parquet and jsonl, column by column, with row numbers.

Nothing is judged here but whether a file can be read; data/scores.py says what a column has to be.
"""

import csv
import glob
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from distill_jax.types import UserError


class FileTable(NamedTuple):
    """What one file holds. columns: by name, as the file has them (csv: texts).

    rows  the number of each row as an editor or a spreadsheet shows it: of csv the header is row 1,
          of jsonl lines are counted, of parquet rows from 1.
    """

    path: Path
    columns: dict[str, list[Any]]
    rows: Sequence[int]


def matching_files(source: str, layout: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """Each file of a source, with the arm and the seed that its path names.

    layout: of a directory, the pattern below it.
    """
    if not source:
        raise UserError(
            "config.verdict.source is empty: give a csv, parquet or jsonl file, or a directory of "
            f"logs of lm-evaluation-harness, laid out as {layout}"
        )
    if Path(source).is_file():
        yield Path(source), {}
        return
    pattern = source
    if Path(source).is_dir():
        pattern = f"{glob.escape(source.rstrip('/'))}/{layout}"
    seen, named, wild = set(), "", ""
    for part in re.split(r"(\{\w*\}|\*\*/|\*|\?|\[!?\]?[^]]*\])", pattern):
        if part in ("{arm}", "{seed}"):
            named += f"(?P={part[1:-1]})" if part in seen else f"(?P<{part[1:-1]}>[^/]+)"
            seen.add(part)
            wild += "*"
        elif re.fullmatch(r"\{\w*\}", part):
            raise UserError(f"config.verdict.source has {part}: only {{arm}} and {{seed}} are read")
        else:
            special = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
            if re.fullmatch(r"\[.+\]", part):  # one of some letters
                special[part] = "[" + re.sub("^!", "^", part[1:]).replace("[", r"\[")
            named += special.get(part, re.escape(part))
            wild += part
    matches = [
        (path, re.fullmatch(named, path)) for path in sorted(glob.glob(wild, recursive=True))
    ]
    files = [(Path(p), m.groupdict()) for p, m in matches if m is not None and Path(p).is_file()]
    if not files:
        raise UserError(
            f"config.verdict.source: no file is {pattern}: give a csv, parquet or jsonl file, a "
            f"glob, or a directory of logs of lm-evaluation-harness, laid out as {layout}"
        )
    yield from files


def read_table_file(path: Path) -> FileTable:
    """Reads a file by its suffix. Raises UserError for another suffix and an unreadable file."""
    if path.suffix not in READERS:
        raise UserError(
            f"{path} has the suffix {path.suffix!r}: give scores as {', '.join(READERS)}"
        )
    try:
        table = READERS[path.suffix](path)
    except (pa.ArrowException, OSError, csv.Error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read ({reason}): write the file again") from error
    if not table.rows:
        raise UserError(f"{path} holds no rows: write a row per arm, seed and document")
    return table


def _read_csv(path: Path) -> FileTable:
    """Columns as texts without surrounding blanks; quoted fields may hold commas and new lines."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), [])
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): convert it to UTF-8") from error
    names = [name.strip() for name in names]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path} has two columns {repeated[0]!r}: give each column its own name")
    if not names:
        raise UserError(f"{path} is empty: write a header and a row per arm, seed and document")
    ragged: list[pa.csv.InvalidRow] = []

    def note(row: pa.csv.InvalidRow) -> str:
        ragged.append(row)
        return "skip"

    table = pa.csv.read_csv(
        path,
        pa.csv.ReadOptions(use_threads=False, skip_rows=1, column_names=names),
        pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
        pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    if ragged:
        first = ragged[0]
        raise UserError(
            f"{path} row {first.number} has {first.actual_columns} fields and the header has "
            f"{first.expected_columns}: put texts with commas into double quotes"
        )
    columns = {
        name: pa.compute.utf8_trim_whitespace(table[name]).to_pylist()
        for name in table.schema.names
    }
    return FileTable(path, columns, range(2, len(table) + 2))


def _read_parquet(path: Path) -> FileTable:
    table = pa.parquet.read_table(path, partitioning=None)
    columns = {name: table[name].to_pylist() for name in table.schema.names}
    return FileTable(path, columns, range(1, len(table) + 1))


def _read_jsonl(path: Path) -> FileTable:
    records = read_json_lines(path)
    names = dict.fromkeys(name for _, record in records for name in record)
    columns = {name: [record.get(name) for _, record in records] for name in names}
    return FileTable(path, columns, [number for number, _ in records])


def read_json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not blank. Raises UserError for other lines."""
    records = []
    with open(path, "rb") as file:
        # Split at \n only: other line separators are legal inside a JSON string.
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:  # of JSON or of UTF-8
                raise UserError(
                    f"{path} line {number} is not JSON ({error}): write one object per line"
                ) from error
            if not isinstance(record, dict):
                raise UserError(
                    f"{path} line {number} is a {type(record).__name__}: write one object per line"
                )
            records.append((number, record))
    return records


READERS: dict[str, Callable[[Path], FileTable]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
}
