"""The rows of a file as documents: one shape for all of them, and what is known of them counted."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from distill_jax.data.documents import Document
from distill_jax.data.records import check_object, document_of
from distill_jax.data.shapes import (
    EXTRAS,
    KINDS,
    Shape,
    Unclear,
    fits,
    recognised,
    shown,
    title,
)
from distill_jax.types import UserError
from distill_jax.words import plural

ON_ERROR = ("fail", "skip")  # data.on_error
MOST_BAD = 0.01  # share of the records that may be left out
_PLACES = 3  # that are named of what was left out
# A shape is decided by so many records, or by fewer that are so many characters.
_FIRST, _CHARACTERS = 8, 2**20
_TEXT = Shape("text", (("text", "text"),))


class How(NamedTuple):
    """How records are read.

    fields  shapes that a user gave; empty: by the names of the fields
    skip    leave bad records out and count them, instead of failing
    """

    fields: tuple[Shape, ...] = ()
    skip: bool = False


AS_NAMED = How()


class Row(NamedTuple):
    """A record and where it stands, or why it cannot be read.

    count: how many records it may be in truth, since a quote may have made one of many.
    """

    where: str
    record: Any = None
    error: UserError | None = None
    count: int = 1


class Read(NamedTuple):
    """What was read of one file, or of a source of no files.

    title    what its records were read as
    records  how many became documents
    bad      how many were left out
    places   where and why, of the first of these
    empty    how many of the documents have nothing to be trained, or white space
    """

    title: str
    records: int
    bad: int = 0
    places: tuple[str, ...] = ()
    empty: int = 0


Tell = Callable[[Read], None]


def ignore(_: Read) -> None:
    """Tells nobody."""


def documents_of(
    rows: Iterable[Row], label: str, how: How = AS_NAMED, tell: Tell = ignore
) -> Iterator[Document]:
    """The documents of a file's rows, all of the shape of the first ones. label: of most of them.

    tell: called once, when no more is read. Raises UserError for the first record that is bad,
    unless these are left out.
    """
    rows = iter(rows)
    first, shape, named = _decided(rows, how)
    records, empty, bad, places = 0, 0, 0, []
    try:
        for row in itertools.chain(first, rows):
            try:
                if row.error:
                    raise row.error
                document = _document(shape, row, label, how)
            except UserError as error:
                if not how.skip:
                    raise
                bad += row.count
                places += [str(error)] if len(places) < _PLACES else []
                continue
            records += 1
            empty += _is_empty(document)
            yield document
    finally:
        if records or bad:
            tell(Read(named, records, bad, tuple(places), empty))


def texts_of(rows: Iterable[Row], label: str, how: How, tell: Tell = ignore) -> Iterator[Document]:
    """The same of files that are a text each."""
    yield from documents_of(rows, label, How((_TEXT,), how.skip), tell)


def check_share(reads: Sequence[Read], source: str) -> None:
    """Raises UserError where more than MOST_BAD of the records were left out."""
    bad, records = sum(read.bad for read in reads), sum(read.records for read in reads)
    if bad > MOST_BAD * (bad + records):
        first = next(read.places[0] for read in reads if read.places)
        raise UserError(
            f"{source}: {bad:,} of {bad + records:,} records are bad, more than {MOST_BAD:.0%}, so"
            f" that config.data.on_error=skip does not go on; the first: {first}"
        )


def line(reads: Sequence[Read]) -> str:
    """What was read of a source, in a line: how many records, as what, and how many were not.

    >>> line([Read("text: text", 1200)])
    '1,200 records read as text: text'
    """
    titles = list(dict.fromkeys(read.title for read in reads))
    count = lambda name: sum(read.records for read in reads if read.title == name)
    parts = [f"{plural(count(name), 'record')} read as {name}" for name in titles[:_PLACES]]
    if len(titles) > _PLACES:
        parts.append(plural(len(titles) - _PLACES, "other shape"))
    if empty := sum(read.empty for read in reads):
        parts.append(f"{empty:,} of them empty")
    files = f"{len(reads):,} files, " if len(reads) > 1 else ""
    if bad := sum(read.bad for read in reads):
        places = [place[:200] for read in reads for place in read.places][:_PLACES]
        parts.append(f"{bad:,} left out as bad: {' | '.join(places)}")
    return files + "; ".join(parts)


def _decided(rows: Iterator[Row], how: How) -> tuple[list[Row], Shape | None, str]:
    """The first rows, the shape of the file, and what it is called; None of a file without rows.

    Raises UserError where no shape is found.
    """
    first, characters, failed = [], 0, None
    for row in itertools.islice(rows, _FIRST):
        first.append(row)
        if (how.fields and not row.error) or (row.error and not how.skip):
            break
        characters += len(repr(row.record))
        if characters > _CHARACTERS:
            break
    found = []
    for row in first:
        try:
            found.append((_shape_of(row, how), row.record))
        except UserError as error:
            failed = failed or error
            if not how.skip:
                break
    if failed and not found:
        raise failed
    if not found:
        return first, None, ""
    common = Counter(shape for shape, _ in found)
    usual = common.most_common(1)[0][0] if how.skip else found[0][0]
    # Of the records of Alpaca, some may lack the input that others have.
    alpaca = [shape for shape, record in found if shape.kind == "alpaca" and fits(shape, record)]
    shape = (
        alpaca[0] if alpaca and all(fits(alpaca[0], r) for s, r in found if s == usual) else usual
    )
    return first, shape, _named(shape, next(record for s, record in found if s == shape))


def _named(shape: Shape, record: dict[str, Any]) -> str:
    read = {field for _, field in shape.fields} | {shape.field(part) for part in EXTRAS}
    left = [name for name in shown(record) if name not in read | {"domain"}]
    return title(shape, record) + (f" (not read: {', '.join(left)})" if left else "")


def _shape_of(row: Row, how: How) -> Shape:
    """The shape of one row. Raises UserError where it has none."""
    if row.error:
        raise row.error
    check_object(row.record, row.where)
    for shape in how.fields:
        if {shape.field(part) for part in KINDS[shape.kind].needed} <= row.record.keys():
            return shape
    if how.fields:
        fields = [field for _, field in how.fields[0].fields]
        missing = next(field for field in fields if field not in row.record)
        raise UserError(
            f"{row.where}: no {missing!r} among the fields {shown(row.record)}, which"
            " config.data.fields names: change it"
        )
    found = recognised(row.record)
    if isinstance(found, Unclear):
        raise _unclear(found, row.where)
    return found


def _unclear(found: Unclear, where: str) -> UserError:
    given = [f"--config.data.fields={choice}" for choice in found.choices]
    given = [f"give {given[0]}", *given[1:]] if given else []
    return UserError(f"{where}: {found.says}: {', or '.join(filter(None, (found.remedy, *given)))}")


def _document(shape: Shape, row: Row, label: str, how: How) -> Document:
    check_object(row.record, row.where)
    mixed = not how.fields and not fits(shape, row.record)
    own = recognised(row.record) if mixed else shape
    if isinstance(own, Shape) and mixed:
        raise UserError(
            f"{row.where}: a record of {title(own, row.record)} among those of"
            f" {KINDS[shape.kind].title}: give each shape a file of its own, or say"
            " by config.data.fields what to read"
        )
    document = document_of(shape, row.record, where=row.where, label=label)
    if isinstance(own, Unclear):
        raise _unclear(own, row.where)
    if how.skip and _is_unanswered(document):
        raise UserError(f"{row.where}: the assistant says nothing: remove the record")
    return document


def _is_empty(document: Document) -> bool:
    """Whether what is trained of a document is nothing, or white space."""
    if document.messages is not None:
        return _is_unanswered(document)
    trained = document.pair[1] if document.pair else document.text
    return not trained or trained.isspace()


def _is_unanswered(document: Document) -> bool:
    """Whether there are turns, and none of the assistant's that are trained has anything in it."""
    return document.messages is not None and not any(
        turn["role"] == "assistant" and (turn["content"] or turn.get("tool_calls"))
        for turn in document.messages[document.given :]
    )
