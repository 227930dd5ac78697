"""Tables of scores as files hold them: csv, parquet and jsonl, column by column, with row numbers.

Nothing is judged here but whether a file can be read; data/scores.py says what a column has to be.
"""

import csv
import glob
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill_jax.data.tables import read_rows
from distill_jax.types import UserError
from distill_jax.untrusted import MOST_JSON, check_file, parse_json
from distill_jax.words import first_line

GIVEN = ("{arm}", "{seed}")  # what a path may name
WILD = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}  # as regular expressions
LONGEST_FIELD = 2**30  # characters; csv's own limit would refuse a long text


class FileTable(NamedTuple):
    """What one file holds. columns: by name, as the file has them (csv: texts).

    rows  the number of each row as an editor or a spreadsheet shows it: of csv the header is row 1,
          of jsonl lines are counted, of parquet rows from 1.
    """

    path: Path
    columns: dict[str, list[Any]]
    rows: Sequence[int]


def matching_files(source: str, layout: str) -> list[tuple[Path, dict[str, str]]]:
    """Each file of a source, with the arm and the seed that its path names.

    layout: of a directory, the pattern below it.
    """
    if not source:
        raise UserError(
            "config.verdict.source is empty: give a csv, parquet or jsonl file, or a directory of "
            f"logs of lm-evaluation-harness, laid out as {layout}"
        )
    if Path(source).is_file():
        return [(Path(source), {})]
    pattern = source
    if Path(source).is_dir():
        pattern = f"{glob.escape(source.rstrip('/'))}/{layout}"
    named = wild = ""
    for part in re.split(r"(\{\w*\}|\*\*/|\*|\?|\[!?\]?[^]]*\])", pattern):
        if part in GIVEN:  # the first time a name; then the same again
            name = part[1:-1]
            named += f"(?P={name})" if f"(?P<{name}>" in named else f"(?P<{name}>[^/]+)"
            wild += "*"
        elif re.fullmatch(r"\{\w*\}", part):
            raise UserError(f"config.verdict.source has {part}: only {{arm}} and {{seed}} are read")
        else:
            if re.fullmatch(r"\[.+\]", part):  # one of some letters
                named += "[" + re.sub("^!", "^", part[1:]).replace("[", r"\[")
            else:
                named += WILD.get(part, re.escape(part))
            wild += part
    matches = [
        (path, re.fullmatch(named, path)) for path in sorted(glob.glob(wild, recursive=True))
    ]
    files = [(Path(p), m.groupdict()) for p, m in matches if m is not None and Path(p).is_file()]
    if not files and Path(source).is_dir():
        tables = [path.suffix for path in Path(source).iterdir() if path.suffix in READERS]
        if tables:
            raise UserError(
                f"config.verdict.source {source} is a directory without logs of"
                f" lm-evaluation-harness: give its files, as '{source.rstrip('/')}/*{tables[0]}'"
            )
    if not files:
        raise UserError(
            f"config.verdict.source: no file is {pattern}: give a csv, parquet or jsonl file, a "
            f"glob, or a directory of logs of lm-evaluation-harness, laid out as {layout}"
        )
    return files


def read_table_file(path: Path) -> FileTable:
    """Reads a file by its suffix. Raises UserError for another suffix and an unreadable file."""
    if path.suffix not in READERS:
        raise UserError(
            f"{path} has the suffix {path.suffix!r}: give scores as {', '.join(READERS)}"
        )
    check_file(path)
    try:
        table = READERS[path.suffix](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): convert it to UTF-8") from error
    except (OSError, csv.Error) as error:
        reason = first_line(error)
        raise UserError(f"{path} cannot be read ({reason}): write the file again") from error
    if not table.rows:
        raise UserError(f"{path} holds no rows: write a row per arm, seed and document")
    return table


def _read_csv(path: Path) -> FileTable:
    """Columns as texts without surrounding blanks; quoted fields may hold commas and new lines."""
    csv.field_size_limit(LONGEST_FIELD)
    text = path.read_bytes().decode("utf-8-sig")
    # Blank lines are no rows.
    records = [r for r in csv.reader(io.StringIO(text, newline=""), strict=True) if r]
    names, *records = records or [[]]
    names = [name.strip() for name in names]
    if len(names) == 1 and (other := re.search("[;\t|]", names[0])):
        raise UserError(
            f"{path} has one column, {names[0][:60]!r}: separate columns by commas, not"
            f" {other[0]!r}"
        )
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path} has two columns {repeated[0]!r}: give each column its own name")
    if not names:
        raise UserError(f"{path} is empty: write a header and a row per arm, seed and document")
    for number, record in enumerate(records, 2):
        if len(record) != len(names):
            raise UserError(
                f"{path} row {number} has {len(record)} fields and the header has {len(names)}: "
                "put texts with commas into double quotes"
            )
    columns = {name: [r[i].strip() for r in records] for i, name in enumerate(names)}
    return FileTable(path, columns, range(2, len(records) + 2))


def _read_parquet(path: Path) -> FileTable:
    rows = list(read_rows(path))
    names = rows[0] if rows else ()
    return FileTable(
        path, {name: [row[name] for row in rows] for name in names}, range(1, len(rows) + 1)
    )


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
        lines = iter(lambda: file.readline(MOST_JSON + 1), b"")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            record = parse_json(line, f"{path} line {number}", "write one object per line")
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
