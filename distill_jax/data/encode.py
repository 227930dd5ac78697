"""Documents as token ids, with a mark on every token that is trained."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from distill_jax.data.chat import render_with_spans
from distill_jax.data.documents import Document
from distill_jax.data.limits import CHARACTERS_PER_TOKEN, LONGEST, Limits, batches, filled_by
from distill_jax.data.long_texts import encode_long
from distill_jax.data.tokenizer import Tokenizer, close_text
from distill_jax.data.turn_spans import Span
from distill_jax.types import UserError

_BATCH = 256  # documents encoded at a time; only limits memory


class Tokenized(NamedTuple):
    """All documents, concatenated.

    tokens   uint32 [n] or uint16 [n], token ids: an array, or what gives slices of one (store.py)
    trained  uint8 [n], 1 where the token is trained; as tokens
    offsets  int64 [documents + 1], document d is tokens[offsets[d]:offsets[d + 1]]
    labels   the domain label of each document
    trained_tokens  how many tokens are predicted and trained; None: not counted yet
    """

    tokens: Any
    trained: Any
    offsets: np.ndarray
    labels: Sequence[str]
    trained_tokens: int | None = None


class Encoded(NamedTuple):
    """A document, its token ids uint32 [n], and marks uint8 [n], 1 where a token is trained."""

    document: Document
    ids: np.ndarray
    marks: np.ndarray


def encode_documents(
    documents: Iterable[Document], tokenizer: Tokenizer, *, max_tokens: int = 0
) -> Iterator[Encoded]:
    """Encodes documents one after another and marks the trained tokens.

    A text is encoded by the tokenizer plus the end-of-text token, and all of it is trained; one
    that is too long for memory in windows (long_texts.py), with the same result. A
    prompt with its completion is encoded as one string in the same way; the completion is trained,
    with a token that overlaps prompt and completion and with the end-of-text token. Messages are
    rendered by the chat template, nothing added; the assistant's spans are trained, but for those
    in the turns that are given.
    max_tokens: unless 0, that many tokens are predicted; the document in which they end is cut
    there, and those after it are left out, and not encoded. Without it, documents are read and
    encoded by threads, ahead of those that are given out.
    Raises UserError if a document has messages without an assistant's turn.
    """
    predicted, full = 0, filled_by(Limits(0, max_tokens))
    left = lambda: max_tokens - predicted if max_tokens else math.inf
    ahead = iter if max_tokens else _ahead  # how much is left decides what is encoded next
    enough, last = False, None
    for batch, *encodings in ahead(
        _encodings(ahead(batches(documents, _BATCH, left)), tokenizer, left)
    ):
        for (document, _), (ids, marks) in zip(
            batch, _tokens(batch, tokenizer, *encodings), strict=True
        ):
            if left() <= 0:
                return
            kept = min(len(ids), left() + 1)
            predicted += max(kept - 1, 0)
            enough, last = enough or full(document), document
            yield Encoded(document, ids[:kept], marks[:kept])
    if enough and left() > 0:
        raise UserError(
            f"{last.name}: the text has fewer than one token per {CHARACTERS_PER_TOKEN}"
            " characters: use a limit of documents, not of tokens"
        )


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items; a thread makes the next one while one is used."""
    over = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, over)
        while (item := coming.result()) is not over:
            coming = pool.submit(next, items, over)
            yield item


def _encodings(
    groups: Iterable[list[tuple[Document, Document]]],
    tokenizer: Tokenizer,
    left: Callable[[], float],
) -> Iterator[tuple[Any, ...]]:
    """Each batch with the encodings of its plain texts, of its others, and the spans of these."""
    for batch in groups:
        documents = [document for _, document in batch]
        plain = [document for document in documents if document.text is not None]
        turns = [document for document in documents if document.messages is not None]
        chats = iter(list(render_with_spans(tokenizer, turns)))
        spanned = [_pair(*d.pair) if d.pair else next(chats) for d in documents if d.text is None]
        yield (
            batch,
            _plain(plain, tokenizer, left() + 1),
            tokenizer.offsets.encode_batch([text for text, _ in spanned]),
            [spans for _, spans in spanned],
        )


def _plain(documents: list[Document], tokenizer: Tokenizer, most: float) -> list[Any]:
    """The Encoding of each text, or the ids uint32 [n] of a long one, at least `most` if it has."""
    short = [one.text for one in documents if len(one.text) <= LONGEST]
    encodings = iter(tokenizer.backend.encode_batch_fast(short))
    return [
        next(encodings) if len(one.text) <= LONGEST
        else encode_long(one.text, tokenizer, one.name, most=most)
        for one in documents
    ]  # fmt: skip


def _tokens(
    batch: list[tuple[Document, Document]], tokenizer: Tokenizer, *encodings: list[Any]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    plain, spanned, spans = map(iter, encodings)
    for document, _ in batch:
        if document.text is not None:
            ids = _closed(next(plain), tokenizer)
            yield ids, np.ones(len(ids), np.uint8)
            continue
        encoding = next(spanned)
        ids = np.array(encoding.ids, np.uint32)
        marks = _inside(np.array(encoding.offsets, np.int64).reshape(-1, 2), next(spans))
        if document.pair is not None:
            ids, marks = _close_pair(ids, marks, tokenizer)
        elif not marks[1:].any():
            raise UserError(
                f"{document.name}: the assistant's turns are empty, so no token would be trained: "
                "remove the record"
            )
        yield ids, marks


def _closed(found: Any, tokenizer: Tokenizer) -> np.ndarray:
    """What _plain found, ids uint32 [n] with the end-of-text token."""
    if isinstance(found, np.ndarray):
        return np.concatenate([found, np.array(close_text(tokenizer, []), np.uint32)])
    return np.array(close_text(tokenizer, found.ids), np.uint32)


def _pair(prompt: str, completion: str) -> tuple[str, list[Span]]:
    return prompt + completion, [(len(prompt), len(prompt) + len(completion))]


def _inside(token_spans: np.ndarray, spans: list[Span]) -> np.ndarray:
    """uint8 [n], 1 for the tokens that share a character with a span."""
    begin, end = token_spans.T
    marks = np.zeros(len(token_spans), np.uint8)
    for start, stop in spans:
        marks |= (begin < stop) & (end > start)
    return marks


def _close_pair(
    ids: np.ndarray, marks: np.ndarray, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    before = [tokenizer.bos_id] if tokenizer.adds_bos else []
    ids = np.concatenate([before, ids, [tokenizer.eos_id]]).astype(np.uint32)
    return ids, np.concatenate([np.zeros(len(before)), marks, [1]]).astype(np.uint8)


def check_vocabulary(highest: int, tokenizer: Tokenizer, *, vocab_size: int) -> None:
    """Raises UserError if the highest token of some documents is one that an embedding lacks."""
    if highest >= vocab_size:
        raise UserError(
            f"token {highest} ({tokenizer.backend.id_to_token(highest)!r}) of the data is outside"
            f" the model's vocabulary of {vocab_size}: use the tokenizer of this model"
        )
