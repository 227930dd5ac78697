"""Documents from files: records of every format, one document per text file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from distill_jax.data.compressed import check_packed, open_bytes, plain_name
from distill_jax.data.csv_rows import read_csv_rows
from distill_jax.data.directories import files_of
from distill_jax.data.documents import Document
from distill_jax.data.formats import format_of, not_text, unreadable
from distill_jax.data.json_rows import read_json_rows
from distill_jax.data.rows import AS_NAMED, How, Row, Tell, documents_of, ignore, texts_of
from distill_jax.data.tables import read_rows
from distill_jax.data.turns import without_nulls
from distill_jax.types import UserError
from distill_jax.untrusted import MOST_JSON, parse_json

_MOST_EMPTY = 2**22  # lines of a file
_MOST_UNPACKED = 2**26  # bytes of a text that is packed
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
    yield from read_all(files_of(pattern, form), form, how, tell)


def read_all(
    files: list[Path], form: str = "", how: How = AS_NAMED, tell: Tell = ignore
) -> Iterator[Document]:
    """Documents of files in their order."""
    formats = [format_of(path, form) for path in files]
    for path, name in zip(files, formats, strict=True):
        documents = texts_of if name == "text" else documents_of
        try:
            rows = READERS[name](path, how)
            yield from _unpacked(path, documents(rows, plain_name(path).stem, how, tell))
        except OSError as error:
            raise unreadable(path, error) from error


def _unpacked(path: Path, documents: Iterator[Document]) -> Iterator[Document]:
    """The same. Of a file that is unpacked wrongly this is the error, and not what comes of it."""
    try:
        yield from documents
    except UserError:
        check_packed(path)
        raise


def _read_jsonl(path: Path, _: How) -> Iterator[Row]:
    empty = 0
    with open_bytes(path) as file:
        # Split at \n only: other line separators are legal inside a JSON string.
        lines = iter(lambda: file.readline(MOST_JSON + 1), b"")
        for number, line in enumerate(lines, start=1):
            if not line.strip(b"\xef\xbb\xbf \t\r\n"):
                empty += 1
                if empty > _MOST_EMPTY:
                    raise UserError(f"{path}: more than {_MOST_EMPTY:,} empty lines: remove them")
                continue
            where = f"{path}:{number}"
            error = not_text(line, where) if len(line) <= MOST_JSON else None
            try:
                text = line.decode("utf-8-sig", errors="replace").rstrip("\r\n")
                record = None if error else parse_json(text, where, "write one record per line")
            except UserError as raised:
                if len(line) > MOST_JSON:  # where the next record begins is not known
                    raise
                error = raised
            yield Row(where, None if error else record, error)


def _read_table(path: Path, how: How, kind: str) -> Iterator[Row]:
    rows = read_rows(path, *_columns(how), kind=kind)
    for number, record in enumerate(rows, start=1):
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


def _turn_columns(how: How) -> set[str]:
    """The columns whose cells are turns: a table in text can have them as JSON only."""
    given = {shape.field("messages") for shape in how.fields if shape.kind == "turns"}
    return given if how.fields else {"messages"}


def _read_text(path: Path, _: How) -> Iterator[Row]:
    with open_bytes(path, _MOST_UNPACKED) as file:
        content = file.read()
    error = not_text(content, str(path))
    if content:
        text = None if error else {"text": content.decode("utf-8-sig")}
        yield Row(str(path), text, error)


READERS = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "json": lambda path, _: read_json_rows(path),
    "csv": lambda path, how: read_csv_rows(path, ",", _turn_columns(how)),
    "tsv": lambda path, how: read_csv_rows(path, "\t", _turn_columns(how)),
    "parquet": lambda path, how: _read_table(path, how, "parquet"),
    "arrow": lambda path, how: _read_table(path, how, "arrow"),
}
