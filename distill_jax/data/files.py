"""Documents from files: records in jsonl and parquet, one document per text file."""

import glob
from collections.abc import Iterator
from pathlib import Path

from distill_jax.data.documents import Document
from distill_jax.data.formats import format_of, not_text, unreadable
from distill_jax.data.parquet import read_rows
from distill_jax.data.records import document_from_record
from distill_jax.data.turns import without_nulls
from distill_jax.types import UserError
from distill_jax.untrusted import MOST_JSON, check_file, parse_json

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
        if paths and not Path(pattern).is_dir():
            check_file(Path(paths[0]))  # says what it is
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
        lines = iter(lambda: file.readline(MOST_JSON + 1), b"")
        for number, line in enumerate(lines, start=1):
            if not line.strip(b"\xef\xbb\xbf \t\r\n"):
                continue
            where = f"{path}:{number}"
            if len(line) <= MOST_JSON and (error := not_text(line, where)):
                raise error
            text = line.decode("utf-8-sig", errors="replace")
            record = parse_json(text, where, "write one record per line")
            yield document_from_record(record, where=where, label=path.stem)


def _read_parquet(path: Path) -> Iterator[Document]:
    # Without what makes a document, all are read so that the error can name them.
    for number, record in enumerate(read_rows(path, _CONTENTS, _MORE), start=1):
        where = f"{path}:{number}"
        record = {name: without_nulls(value) for name, value in record.items()}
        yield document_from_record(record, where=where, label=path.stem)


def _read_text(path: Path) -> Iterator[Document]:
    content = path.read_bytes()
    if error := not_text(content, str(path)):
        raise error
    if content:
        yield Document(str(path), path.stem, text=content.decode("utf-8-sig"))


READERS = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}
