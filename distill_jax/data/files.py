"""Documents from files: records in jsonl and parquet, one document per text file."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from distill_jax.data.documents import Document
from distill_jax.data.formats import format_of, not_text, unreadable
from distill_jax.data.parquet import read_rows
from distill_jax.data.rows import AS_NAMED, How, Row, Tell, documents_of, ignore, texts_of
from distill_jax.data.turns import without_nulls
from distill_jax.types import UserError
from distill_jax.untrusted import MOST_JSON, check_file, parse_json

# Columns that make a document, in the order in which records are tried, and those beside them.
_CONTENTS = (("messages",), ("prompt", "completion"), ("text",))
_MORE = ("tools", "label", "domain")


def read_files(
    pattern: str, form: str = "", how: How = AS_NAMED, tell: Tell = ignore
) -> Iterator[Document]:
    """Documents of the file, or of every file that the glob matches, in the order of the paths.

    form: how to read all of them; empty: each by its suffix. how: their records. tell: called
    after each file. A document's label is its record's, otherwise the file's name without suffix.
    Raises UserError if nothing matches, if the format of any file is not known, before the first
    is read, or if a file cannot be read.
    """
    yield from read_all(files_of(pattern), form, how, tell)


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


def read_all(
    files: list[Path], form: str = "", how: How = AS_NAMED, tell: Tell = ignore
) -> Iterator[Document]:
    """Documents of files in their order."""
    formats = [format_of(path, form) for path in files]
    for path, name in zip(files, formats, strict=True):
        documents = texts_of if name == "text" else documents_of
        try:
            yield from documents(READERS[name](path, how), path.stem, how, tell)
        except OSError as error:
            raise unreadable(path, error) from error


def _read_jsonl(path: Path, _: How) -> Iterator[Row]:
    with open(path, "rb") as file:
        # Split at \n only: other line separators are legal inside a JSON string.
        lines = iter(lambda: file.readline(MOST_JSON + 1), b"")
        for number, line in enumerate(lines, start=1):
            if not line.strip(b"\xef\xbb\xbf \t\r\n"):
                continue
            where = f"{path}:{number}"
            error = not_text(line, where) if len(line) <= MOST_JSON else None
            try:
                text = line.decode("utf-8-sig", errors="replace")
                record = None if error else parse_json(text, where, "write one record per line")
            except UserError as raised:
                if len(line) > MOST_JSON:  # where the next record begins is not known
                    raise
                error = raised
            yield Row(where, None if error else record, error)


def _read_parquet(path: Path, how: How) -> Iterator[Row]:
    for number, record in enumerate(read_rows(path, *_columns(how)), start=1):
        record = {name: without_nulls(value) for name, value in record.items()}
        yield Row(f"{path}:{number}", record)


def _columns(how: How) -> tuple[Sequence[Sequence[str]], Sequence[str]]:
    """The groups of columns that make a record, and those that are read with any of them.

    A file that has no whole group is read with all of its columns, by which its shape is found.
    """
    if not how.fields:
        return _CONTENTS, _MORE
    fields = [[field for _, field in shape.fields] for shape in how.fields]
    return fields, _MORE


def _read_text(path: Path, _: How) -> Iterator[Row]:
    content = path.read_bytes()
    error = not_text(content, str(path))
    if content:
        text = None if error else {"text": content.decode("utf-8-sig")}
        yield Row(str(path), text, error)


READERS = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}
