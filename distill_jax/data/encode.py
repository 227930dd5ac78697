"""Documents as token ids, with a mark on every token that is trained."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from distill_jax.data.chat import Rendered, render_with_spans
from distill_jax.data.documents import Document
from distill_jax.data.limits import CHARACTERS_PER_TOKEN, Limits, batches, filled_by
from distill_jax.data.tokenizer import Tokenizer, close_text
from distill_jax.data.turn_spans import Span
from distill_jax.types import Advance, UserError, silent

_BATCH = 256  # documents encoded at a time; only limits memory


class Tokenized(NamedTuple):
    """All documents, concatenated.

    tokens   uint32 [n], token ids
    trained  uint8 [n], 1 where the token is trained
    offsets  int64 [documents + 1], document d is tokens[offsets[d]:offsets[d + 1]]
    labels   the domain label of each document
    """

    tokens: np.ndarray
    trained: np.ndarray
    offsets: np.ndarray
    labels: tuple[str, ...]


def tokenize_documents(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    *,
    max_tokens: int = 0,
    advance: Advance = silent,
) -> Tokenized:
    """Encodes documents and marks the trained tokens.

    A text is encoded by the tokenizer plus the end-of-text token, and all of it is trained. A
    prompt with its completion is encoded as one string in the same way; the completion is trained,
    with a token that overlaps prompt and completion and with the end-of-text token. Messages are
    rendered by the chat template, nothing added; the assistant's spans are trained, but for those
    in the turns that are given.
    max_tokens: unless 0, that many tokens are predicted; the document in which they end is cut
    there, and those after it are left out, and not encoded. advance: told of every so many
    documents, or of the tokens where there is a limit of them.
    Raises UserError if a document has messages without an assistant's turn.
    """
    tokens, trained, predicted = [], [], 0
    left = lambda: max_tokens - predicted if max_tokens else math.inf
    chats = render_with_spans(tokenizer, [d for d in documents if d.messages is not None])
    for batch in batches(documents, _BATCH, left):
        for ids, marks in _encode_batch(batch, tokenizer, chats):
            if left() <= 0:
                break
            kept = min(len(ids), left() + 1)
            tokens.append(ids[:kept])
            trained.append(marks[:kept])
            predicted += max(kept - 1, 0)
        if max_tokens:
            advance("tokens", predicted, max_tokens)
        else:
            advance("documents", len(tokens), len(documents))
    used = documents[: len(tokens)]
    if left() > 0 and max_tokens and any(map(filled_by(Limits(0, max_tokens)), used)):
        raise UserError(
            f"{used[-1].name}: the text has fewer than one token per {CHARACTERS_PER_TOKEN}"
            " characters: use a limit of documents, not of tokens"
        )
    offsets = np.zeros(len(tokens) + 1, np.int64)
    np.cumsum([len(ids) for ids in tokens], out=offsets[1:])
    return Tokenized(
        tokens=np.concatenate(tokens),
        trained=np.concatenate(trained),
        offsets=offsets,
        labels=tuple(document.label for document in used),
    )


def _encode_batch(
    documents: Sequence[Document], tokenizer: Tokenizer, chats: Iterator[Rendered]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    plain = [document.text for document in documents if document.text is not None]
    plain_encodings = iter(tokenizer.backend.encode_batch_fast(plain))
    spanned = [_pair(*d.pair) if d.pair else next(chats) for d in documents if d.text is None]
    spanned_encodings = iter(tokenizer.offsets.encode_batch([text for text, _ in spanned]))
    spans = iter([spans for _, spans in spanned])
    for document in documents:
        if document.text is not None:
            ids = close_text(tokenizer, next(plain_encodings).ids)
            yield np.array(ids, np.uint32), np.ones(len(ids), np.uint8)
            continue
        encoding = next(spanned_encodings)
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


def check_vocabulary(tokenized: Tokenized, tokenizer: Tokenizer, *, vocab_size: int) -> None:
    """Raises UserError if the documents hold a token that the model's embedding lacks."""
    highest = int(tokenized.tokens.max(initial=0))
    if highest >= vocab_size:
        place = int(np.argmax(tokenized.tokens >= vocab_size))
        token = int(tokenized.tokens[place])
        raise UserError(
            f"token {token} ({tokenizer.backend.id_to_token(token)!r}) of the data is outside the "
            f"model's vocabulary of {vocab_size}: use the tokenizer of this model"
        )
