"""Documents from files: records in jsonl and parquet, one document per file for any other text."""

import glob
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distill_jax.data.documents import Document, document_from_record
from distill_jax.types import UserError

_PARQUET_COLUMNS = ("messages", "prompt", "completion", "text", "label", "domain")


def read_files(pattern: str) -> Iterator[Document]:
    """Documents of the file, or of every file that the glob matches, in the order of the paths.

    A document's label is its record's, otherwise the file's name without suffix.
    Raises UserError if nothing matches or a file cannot be read.
    """
    paths = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
    files = [Path(path) for path in paths if Path(path).is_file()]
    if not files:
        what = "is a directory" if Path(pattern).is_dir() else "matches no file"
        raise UserError(f"{pattern!r} {what}: give a file or a glob such as 'texts/*.jsonl'")
    for path in files:
        yield from read_file(path)


def read_file(path: Path) -> Iterator[Document]:
    """Documents of one file, read by its suffix."""
    return READERS.get(path.suffix, _read_text)(path)


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
            # Without a known column, all are read so that the error can list them.
            columns = [name for name in _PARQUET_COLUMNS if name in names] or None
            number = 0
            for batch in file.iter_batches(columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    where = f"{path}:{number}"
                    yield document_from_record(record, where=where, label=path.stem)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: unreadable parquet ({reason}): write the file again") from error


def _read_text(path: Path) -> Iterator[Document]:
    yield Document(str(path), path.stem, text=_decoded(path.read_bytes(), str(path)))


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: byte {error.start} (0x{content[error.start]:02x}) is not UTF-8: "
            "convert the file to UTF-8"
        ) from error


READERS = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
