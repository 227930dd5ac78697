"""The first documents of a source, up to a number of documents or tokens, for small trials."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from distill_jax.data.documents import Document
from distill_jax.types import UserError

# No text has fewer tokens than one per so many characters. Saves reading and encoding the rest.
CHARACTERS_PER_TOKEN = 256
# Encoding takes 200 bytes and 2 microseconds per character; a batch is encoded at once. A longer
# text is encoded in windows, a longer pair or longer turns not at all.
LONGEST = 2**22
_BATCH_CHARACTERS = 2**20


class Limits(NamedTuple):
    """How much of a text is used; 0: all. tokens: predicted ones, one less than a document has."""

    documents: int = 0
    tokens: int = 0


def filled_by(limits: Limits) -> Callable[[Document], bool]:
    """A function that is given one document after another, and tells when no more are needed."""
    documents = tokens = 0

    def filled(document: Document) -> bool:
        nonlocal documents, tokens
        documents += 1
        # At least; what encoding adds makes up for the first one, which is not predicted.
        tokens += -(-characters_of(document) // CHARACTERS_PER_TOKEN)
        return 0 < limits.documents <= documents or 0 < limits.tokens <= tokens

    return filled


def characters_of(document: Document) -> int:
    """Characters of a document's content; of turns, without what a template adds."""
    if document.messages is not None:
        return sum(len(turn["content"] or "") for turn in document.messages)
    return len(document.text) if document.text is not None else sum(map(len, document.pair))


def size_of(document: Document) -> int:
    """Bytes of its content in UTF-8, without what a template adds."""
    if document.messages is not None:
        return sum(_bytes(turn["content"] or "") for turn in document.messages)
    return sum(map(_bytes, (document.text,) if document.text is not None else document.pair))


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def batches(
    documents: Iterable[Document], most: int, left: Callable[[], float]
) -> Iterator[list[tuple[Document, Document]]]:
    """Batches of at most `most` documents while left() tokens, more than 0, are wanted.

    A batch ends where its characters are several times as many as those tokens usually have. With
    each document comes what is to be encoded of it: a text that is longer by far than needed is
    cut.
    """
    documents = iter(documents)
    while (wanted := left()) > 0:
        batch, characters = [], 0
        for document in itertools.islice(documents, most):
            shortened = _shortened(document, wanted)
            batch.append((document, shortened))
            characters += characters_of(shortened)
            if document.text is None:
                check_length(characters_of(document), document.name)
            if characters > min(8 * wanted, _BATCH_CHARACTERS):
                break
        if not batch:
            return
        yield batch


def check_length(characters: int, where: str) -> None:
    """Raises UserError for a prompt, or turns, that are too long to be encoded in one piece."""
    if characters > LONGEST:
        raise UserError(
            f"{where}: it has {characters:,} characters, and at most {LONGEST:,} of a prompt with"
            " its completion, or of turns, are encoded: shorten it, or split it into several"
            " records"
        )


def _shortened(document: Document, tokens: float) -> Document:
    most = CHARACTERS_PER_TOKEN * (tokens + 2)
    if document.text is None or len(document.text) <= most:
        return document
    return document._replace(text=document.text[: int(most)])
