"""Documents, their fingerprint, and their split into train and held out."""

import hashlib
import json
from collections.abc import Iterable
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
    input     of a pair in Alpaca's form, what its prompt ends in after the instruction and a new
              line; empty where there is none. None: of another form
    rejected  of a preference pair the answer, (prompt, answer) or turns that were not chosen. They
              are not trained, and no part of what identifies a document
    """

    name: str
    label: str
    text: str | None = None
    pair: tuple[str, str] | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    given: int = 0
    tools: tuple[dict[str, Any], ...] | None = None
    input: str | None = None
    rejected: str | tuple[Any, ...] | None = None


def as_chat(document: Document) -> Document:
    """A pair as the turn of a user and the assistant's answer; other documents as they are."""
    if document.pair is None:
        return document
    prompt, completion = document.pair
    turns = (
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": completion},
    )
    return document._replace(pair=None, input=None, messages=turns, given=1)


def content_hash(document: Document) -> bytes:
    """sha256 of a document's content, without its name and label."""
    content = [document.text, document.pair, document.messages]
    # Left out where there is none of it: the hash of most documents is older than these fields.
    if document.given or document.tools:
        content += [document.given, document.tools]
    if document.input is not None:
        content += [{"input": document.input}]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()


class Fingerprint:
    """What identifies documents in their order, with labels, for a run's provenance."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def add(self, document: Document) -> None:
        """One more document."""
        self.add_hash(content_hash(document), document.label)

    def add_hash(self, content: bytes, label: str) -> None:
        """The same by the content_hash of a document."""
        self._digest.update(content)
        self._digest.update(hashlib.sha256(label.encode()).digest())

    def hexdigest(self) -> str:
        """sha256 in hex of the documents so far."""
        return self._digest.hexdigest()


def fingerprint(documents: Iterable[Document]) -> str:
    """The Fingerprint of documents."""
    found = Fingerprint()
    for document in documents:
        found.add(document)
    return found.hexdigest()


def border_of(places: Iterable[float], held_out_fraction: float) -> float:
    """The place in [0, 1) below which documents are held out, from those of all documents.

    It is the fraction, so that a document's part depends only on its content and the fraction, and
    not on its position or on other documents. Only if a part would be empty does the document
    nearest to the border change parts. No more places are taken than it needs.
    Raises UserError if the fraction is not between 0 and 1 or there are fewer than two different
    documents.
    """
    if not 0 < held_out_fraction < 1:
        raise UserError(
            f"config.data.held_out_fraction is {held_out_fraction} and there is no other text to"
            " hold out: use more than 0 and less than 1, or give --config.data.eval_source=FILE"
        )
    lowest, highest = [], 0.0  # the two lowest
    for place in places:
        lowest, highest = sorted({*lowest, place})[:2], max(highest, place)
        if lowest[0] < held_out_fraction <= highest:
            return held_out_fraction
    if len(lowest) < 2:
        raise UserError(
            "the text is one document (copies count once), which cannot be split into train and"
            " held out: give more, or --config.data.eval_source=FILE; a .txt file is one document,"
            f" which `{CUT}` cuts into several"
        )
    return lowest[1] if lowest[0] >= held_out_fraction else highest


def place_of(document: Document, seed: int) -> float:
    """Where in [0, 1) the content of a document falls; below the border, it is held out.

    Equal documents have one place.
    """
    salted = f"{seed}:".encode() + content_hash(document)
    return int.from_bytes(hashlib.sha256(salted).digest()[:6], "big") / 2**48
