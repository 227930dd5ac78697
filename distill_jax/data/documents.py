"""Documents, their fingerprint, and their split into train and held out."""

import hashlib
import json
from typing import Any, NamedTuple

from distill_jax.types import UserError

# Cuts a text into documents.
CUT = "split -C 100k --additional-suffix=.txt FILE part-"


class Document(NamedTuple):
    """One example; exactly one of text, pair and messages is set.

    name      where it came from, for error messages
    label     its domain, for results by domain
    text      plain text, every token is trained
    pair      (prompt, completion), only the completion is trained
    messages  chat turns {"role", "content", ...}, only the assistant's are trained; content is a
              string, or None in a turn that calls tools
    given     the first so many of the turns are a prompt, of which nothing is trained
    tools     JSON schemas of the tools that the chat template shows
    """

    name: str
    label: str
    text: str | None = None
    pair: tuple[str, str] | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    given: int = 0
    tools: tuple[dict[str, Any], ...] | None = None


def as_chat(document: Document) -> Document:
    """A pair as the turn of a user and the assistant's answer; other documents as they are."""
    if document.pair is None:
        return document
    prompt, completion = document.pair
    turns = (
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": completion},
    )
    return document._replace(pair=None, messages=turns, given=1)


def content_hash(document: Document) -> bytes:
    """sha256 of a document's content, without its name and label."""
    content = [document.text, document.pair, document.messages]
    # Left out where there is none of it: the hash of most documents is older than these fields.
    if document.given or document.tools:
        content += [document.given, document.tools]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()


def fingerprint(documents: list[Document]) -> str:
    """sha256 in hex of the documents in their order, with labels, for a run's provenance."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(content_hash(document))
        digest.update(hashlib.sha256(document.label.encode()).digest())
    return digest.hexdigest()


def split_documents(
    documents: list[Document], *, held_out_fraction: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """Splits into (train, held out) by a hash of each document's content and the seed.

    A document's part depends only on its content, the fraction and the seed, not on its position
    or on other documents. Equal documents are in the same part. Only if a part would be empty does
    the document nearest to the border change parts. Order is kept. Raises UserError if the fraction
    is not between 0 and 1 or there are fewer than two different documents.
    """
    if not 0 < held_out_fraction < 1:
        raise UserError(
            f"config.data.held_out_fraction is {held_out_fraction} and there is no other text to"
            " hold out: use more than 0 and less than 1, or give --config.data.eval_source=FILE"
        )
    places = [place_of(document, seed) for document in documents]
    distinct = sorted(set(places))
    if len(distinct) < 2:
        raise UserError(
            "the text is one document (copies count once), which cannot be split into train and"
            " held out: give more, or --config.data.eval_source=FILE; a .txt file is one document,"
            f" which `{CUT}` cuts into several"
        )
    border = min(max(held_out_fraction, distinct[1]), distinct[-1])
    train = [d for d, place in zip(documents, places, strict=True) if place >= border]
    held_out = [d for d, place in zip(documents, places, strict=True) if place < border]
    return train, held_out


def place_of(document: Document, seed: int) -> float:
    """Where in [0, 1) the content of a document falls; below the fraction, it is held out."""
    salted = f"{seed}:".encode() + content_hash(document)
    return int.from_bytes(hashlib.sha256(salted).digest()[:6], "big") / 2**48
