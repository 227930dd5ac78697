"""A source read as a stream: what of it stays, how many documents each part has, what is held out.

What a scan gives is JSON, since it is remembered for files that do not change.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

from ml_collections import ConfigDict

from distill_jax.config import choose
from distill_jax.data.cleaning import Cleaner, Judge, Removed, judged, packed
from distill_jax.data.documents import Document, border_of, place_of
from distill_jax.data.formats import FORMATS
from distill_jax.data.limits import Limits, filled_by, size_of
from distill_jax.data.rows import ON_ERROR, How
from distill_jax.data.shapes import parse_fields
from distill_jax.data.sources import read_documents
from distill_jax.setup.cleaning import check_left
from distill_jax.setup.hearing import DEAF, TELL_S, Hear

# Fixed: every seed of a study holds out the same documents.
SPLIT_SEED = 0
FORM = 1  # of what a scan gives: one more where its entries change, so that older ones are not read


def scan(
    c: ConfigDict,
    source: str,
    fraction: float | None,
    limits: Sequence[Limits],
    cleaner: Cleaner | None,
    hear: Hear = DEAF,
) -> dict[str, Any]:
    """Reads a source up to the document with which the limits of all parts are reached, if any.

    Gives the number of documents of each part, cut at its limit, their bytes, and whether all are
    texts; the border between the parts; a line on what the source was read as; which documents
    stay, of how many, and what was removed.
    """
    border, lines, stay = None, [], bytearray()
    removed = dict.fromkeys(cleaner.asked if cleaner else (), Removed())
    clean = lambda documents: cleaner.judged(documents, stay, removed) if cleaner else documents
    if fraction is not None:
        if cleaner and next(clean(read(c, source)), None) is None:
            check_left(0, removed, f"of {source}")
        places = (place_of(document, SPLIT_SEED) for document in clean(read(c, source)))
        border = border_of(places, fraction)
    with closing(read(c, source, lines.append)) as documents:
        found = _count(clean(documents), lambda document: part_of(document, border), limits, hear)
    check_left(sum(found["counts"]), removed, f"of {source}")
    return {"border": border, **found, "read": lines, **_judged(stay, removed)}


def scan_again(
    documents: Iterable[Document],
    judge: Judge,
    asked: Iterable[str],
    limit: Limits,
    hear: Hear = DEAF,
) -> dict[str, Any]:
    """The same of the training part of a source, once what is held out is known. asked: steps."""
    stay, removed = bytearray(), dict.fromkeys(asked, Removed())
    found = _count(judged(documents, judge, stay, removed), lambda document: 0, [limit], hear)
    check_left(*found["counts"], removed, "to train on")
    return found | _judged(stay, removed)


def part_of(document: Document, border: float | None) -> int:
    """0, or 1 where it is held out."""
    return 0 if border is None else int(place_of(document, SPLIT_SEED) < border)


def removed_of(found: dict[str, Any]) -> dict[str, Removed]:
    """What a scan says was removed."""
    return {
        name: Removed(documents, characters, tuple(names))
        for name, (documents, characters, names) in found["removed"].items()
    }


def read(
    c: ConfigDict, source: str, tell: Callable[[str], None] = lambda line: None
) -> Generator[Document]:
    """The documents of a source. tell: of what it was read as, at the end."""
    form = c.data.format and choose("data.format", c.data.format, FORMATS)
    return read_documents(source, form, how_of(c), tell)


def how_of(c: ConfigDict) -> How:
    """How the records of a config's sources are read. Raises UserError for what is no shape."""
    skip = choose("data.on_error", c.data.on_error, ON_ERROR) == "skip"
    return How(parse_fields(c.data.fields), skip)


def _count(
    documents: Iterator[Document],
    part: Callable[[Document], int],
    limits: Sequence[Limits],
    hear: Hear,
) -> dict[str, Any]:
    counts, sizes = [0] * len(limits), [0] * len(limits)
    texts_only, full = [True] * len(limits), [False] * len(limits)
    filled, told = [filled_by(some) for some in limits], time.monotonic()
    for document in documents:
        number = part(document)
        full[number] = filled[number](document)
        if not 0 < limits[number].documents <= counts[number]:
            counts[number] += 1
            sizes[number] += size_of(document)
            texts_only[number] &= document.text is not None
        if all(full):
            break
        if (now := time.monotonic()) - told > TELL_S:
            told = now
            hear.how_far(f"{sum(counts):,} documents, {sum(sizes) / 1e6:,.0f} MB")
    return {"counts": counts, "sizes": sizes, "texts_only": texts_only}


def _judged(stay: bytearray, removed: dict[str, Removed]) -> dict[str, Any]:
    counts = {name: [one.documents, one.characters, [*one.names]] for name, one in removed.items()}
    return {"stay": packed(stay), "judged": len(stay), "removed": counts}
