"""The first documents of a source, up to a number of documents or tokens, for small trials."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from distill_jax.data.documents import Document

# No text has fewer tokens than one per so many characters. Saves reading and encoding the rest.
CHARACTERS_PER_TOKEN = 256


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


def batches(
    documents: Sequence[Document], most: int, left: Callable[[], float]
) -> Iterator[list[Document]]:
    """Batches of at most `most` documents while left() tokens, more than 0, are wanted.

    A batch ends where its characters are several times as many as those tokens usually have. A
    text that is longer by far than needed is cut.
    """
    start = 0
    while start < len(documents) and (wanted := left()) > 0:
        batch, characters = [], 0
        for document in documents[start : start + most]:
            batch.append(_shortened(document, wanted))
            characters += characters_of(document)
            if characters > 8 * wanted:
                break
        yield batch
        start += len(batch)


def _shortened(document: Document, tokens: float) -> Document:
    most = CHARACTERS_PER_TOKEN * (tokens + 2)
    if document.text is None or len(document.text) <= most:
        return document
    return document._replace(text=document.text[: int(most)])
