"""Documents from files: records in jsonl and parquet, one document per text file."""

import glob
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distill_jax.data.documents import Document
from distill_jax.data.formats import format_of, not_text, unreadable
from distill_jax.data.records import document_from_record
from distill_jax.data.turns import without_nulls
from distill_jax.types import UserError
from distill_jax.words import first_line

_MORE = ("tools", "label", "domain")
# Columns that make a document, in the order in which records are tried.
_CONTENTS = (("messages",), ("prompt", "completion"), ("text",))


def read_files(pattern: str, form: str = "") -> Iterator[Document]:
    """Documents of the file, or of every file that the glob matches, in the order of the paths.

    form: how to read all of them; empty: each by its suffix. A document's label is its record's,
    otherwise the file's name without suffix.
    Raises UserError if nothing matches, if the format of any file is not known, before the first
    is read, or if a file cannot be read.
    """
    yield from read_all(files_of(pattern), form)


def files_of(pattern: str) -> list[Path]:
    """The file, or every file that the glob matches. Raises UserError where there is none."""
    paths = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
    files = [Path(path) for path in paths if Path(path).is_file()]
    if not files:
        what = "is a directory" if Path(pattern).is_dir() else "matches no file"
        raise UserError(f"{pattern!r} {what}: give a file or a glob such as 'texts/*.jsonl'")
    return files


def read_all(files: list[Path], form: str = "") -> Iterator[Document]:
    """Documents of files in their order."""
    formats = [format_of(path, form) for path in files]
    for path, name in zip(files, formats, strict=True):
        try:
            yield from READERS[name](path)
        except OSError as error:
            raise unreadable(path, error) from error


def _read_jsonl(path: Path) -> Iterator[Document]:
    with open(path, "rb") as file:
        # Split at \n only: other line separators are legal inside a JSON string.
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            text = _decoded(line, where)
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{where}: not JSON ({error.msg} at column {error.colno}): "
                    "write one record per line"
                ) from error
            yield document_from_record(record, where=where, label=path.stem)


def _read_parquet(path: Path) -> Iterator[Document]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            whole = any(set(columns) <= set(names) for columns in _CONTENTS)
            # Without what makes a document, all are read so that the error can name them.
            known = {name for columns in _CONTENTS for name in columns} | set(_MORE)
            columns = [name for name in names if name in known] if whole else None
            number = 0
            for batch in file.iter_batches(columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    where = f"{path}:{number}"
                    record = {name: without_nulls(value) for name, value in record.items()}
                    yield document_from_record(record, where=where, label=path.stem)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = first_line(error)
        raise UserError(f"{path}: unreadable parquet ({reason}): write the file again") from error


def _read_text(path: Path) -> Iterator[Document]:
    content = path.read_bytes()
    if error := not_text(content, str(path)):
        raise error
    if content:
        yield Document(str(path), path.stem, text=content.decode("utf-8-sig"))


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_text(line, where) from error


READERS = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}
