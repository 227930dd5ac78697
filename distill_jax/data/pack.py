"""Tokenized documents as rows of a fixed length. The only place that shifts labels against inputs.

A document x_0 .. x_n gives the inputs x_0 .. x_{n-1} and the labels x_1 .. x_n, cut into windows
of at most `seq_len` inputs. Nothing is dropped: every token but a document's first is the label of
exactly one input. A window (a piece) is one segment of a row: attention stays in it and positions
start at 0.
"""

import bisect
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from distill_jax.data.encode import Tokenized
from distill_jax.data.store import join
from distill_jax.types import Batch, UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Packed rows, stored as references to pieces; rows[i] builds row i on demand.

    Row r has the pieces row_starts[r] to row_starts[r + 1] - 1; a piece has its document, the index
    of its first input in tokenized.tokens, and its length in inputs. All int64.
    sizes: how many rows each source has, one source after another. weights: how many rows of each
    are trained on, in proportion; empty: as many as there are.
    """

    tokenized: Tokenized
    seq_len: int
    row_starts: np.ndarray
    piece_documents: np.ndarray
    piece_starts: np.ndarray
    piece_lengths: np.ndarray
    sizes: tuple[int, ...]
    weights: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.row_starts) - 1

    def __getitem__(self, i: int) -> Batch:
        """Row i as a Batch of arrays [T], without the batch axis."""
        row, place = empty_row(self.seq_len), 0
        for segment, piece in enumerate(range(*self.row_starts[i : i + 2]), start=1):
            start, length = self.piece_starts[piece], self.piece_lengths[piece]
            here, inputs = slice(place, place + length), slice(start, start + length)
            labels = slice(start + 1, start + length + 1)
            row.tokens_BT[here] = self.tokenized.tokens[inputs]
            row.labels_BT[here] = self.tokenized.tokens[labels]
            row.weight_BT[here] = self.tokenized.trained[labels]
            row.segment_BT[here] = segment
            row.position_BT[here] = np.arange(length)
            row.document_BT[here] = self.piece_documents[piece]
            place += length
        return row

    def padding(self) -> Batch:
        """An empty row, to fill up a batch."""
        return empty_row(self.seq_len)


def empty_row(seq_len: int) -> Batch:
    """A row [T] of padding only."""
    integers = lambda value: np.full(seq_len, value, np.int32)
    return Batch(
        tokens_BT=integers(0),
        labels_BT=integers(0),
        weight_BT=np.zeros(seq_len, np.float32),
        segment_BT=integers(0),
        position_BT=integers(0),
        document_BT=integers(-1),
    )


def pack(tokenized: Tokenized, *, seq_len: int, seed: int | None) -> Rows:
    """Packs documents into rows of `seq_len` inputs, each piece where it leaves the least space.

    With a seed, pieces are placed from long to short, equal lengths in random order; rows are then
    full to within a few tenths of a percent, given enough short pieces. With None they are placed
    in the order of the documents, for evaluation. Documents of one token predict nothing and are in
    no row. Raises UserError if all are such.
    """
    documents, starts, lengths = _pieces(tokenized, seq_len)
    if not len(lengths):
        raise UserError("no document has two tokens, so none can be predicted: give longer texts")
    order = np.arange(len(lengths))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
        order = order[np.argsort(-lengths[order], kind="stable")]
    row_of_placed = _best_fit(lengths[order].tolist(), seq_len)
    order = order[np.argsort(row_of_placed, kind="stable")]
    return Rows(
        tokenized=tokenized,
        seq_len=seq_len,
        row_starts=np.concatenate([[0], np.cumsum(np.bincount(row_of_placed))]),
        piece_documents=documents[order],
        piece_starts=starts[order],
        piece_lengths=lengths[order],
        sizes=(int(row_of_placed.max()) + 1,),
    )


def mixed(parts: Sequence[Rows], weights: Sequence[float] = ()) -> Rows:
    """The rows of several sources, one source after another."""
    if len(parts) == 1:
        return parts[0]
    texts = [part.tokenized for part in parts]
    before = lambda sizes: np.cumsum([0, *sizes])[:-1]  # of all parts before each
    documents = before(len(text.labels) for text in texts)
    tokens = before(len(text.tokens) for text in texts)
    pieces = before(len(part.piece_lengths) for part in parts)
    shifted = lambda name, shifts: np.concatenate(
        [getattr(part, name) + shift for part, shift in zip(parts, shifts, strict=True)]
    )
    inner = [part.row_starts[1:] + shift for part, shift in zip(parts, pieces, strict=True)]
    return Rows(
        tokenized=join(texts),
        seq_len=parts[0].seq_len,
        row_starts=np.concatenate([[0], *inner]),
        piece_documents=shifted("piece_documents", documents),
        piece_starts=shifted("piece_starts", tokens),
        piece_lengths=np.concatenate([part.piece_lengths for part in parts]),
        sizes=tuple(len(part) for part in parts),
        weights=tuple(weights),
    )


def _pieces(tokenized: Tokenized, seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(document, first input, length) of every window, in the order of the documents."""
    inputs = np.maximum(np.diff(tokenized.offsets) - 1, 0)
    windows = -(-inputs // seq_len)
    documents = np.repeat(np.arange(len(inputs)), windows)
    window = np.arange(len(documents)) - np.repeat(np.cumsum(windows) - windows, windows)
    lengths = np.minimum(inputs[documents] - window * seq_len, seq_len)
    return documents, tokenized.offsets[documents] + window * seq_len, lengths


def _best_fit(lengths: list[int], capacity: int) -> np.ndarray:
    """The row of each length in turn: the open row with the least sufficient space."""
    rows_by_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces: list[int] = []  # sorted, those that some row has
    placed = np.zeros(len(lengths), np.int64)
    n_rows = 0
    for i, length in enumerate(lengths):
        at = bisect.bisect_left(spaces, length)
        if at < len(spaces):
            space = spaces[at]
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                del spaces[at]
        else:
            space, row, n_rows = capacity, n_rows, n_rows + 1
        placed[i] = row
        left = space - length
        if left:
            if not rows_by_space[left]:
                bisect.insort(spaces, left)
            rows_by_space[left].append(row)
    return placed


def places(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """(document_NT, position_NT) of the label at every position of N rows, int32.

    The document is its index in the source, -1 for padding; the position is the label's within its
    whole document, regardless of windows: 1 for the second token, 0 for padding.
    """
    lengths = rows.piece_lengths
    before = np.cumsum(lengths) - lengths  # inputs of all pieces before this one
    row_of_piece = np.repeat(np.arange(len(rows)), np.diff(rows.row_starts))
    in_row = before - before[rows.row_starts[:-1]][row_of_piece]
    within = np.arange(lengths.sum()) - np.repeat(before, lengths)
    index = np.repeat(row_of_piece * rows.seq_len + in_row, lengths) + within
    first = rows.piece_starts - rows.tokenized.offsets[rows.piece_documents]
    shape = (len(rows), rows.seq_len)
    document_NT, position_NT = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    document_NT.flat[index] = np.repeat(rows.piece_documents, lengths)
    position_NT.flat[index] = np.repeat(first + 1, lengths) + within
    return document_NT, position_NT


class Epoch(NamedTuple):
    """The size of one pass over packed rows, for the log."""

    rows: int
    fill: float  # fraction of positions that hold an input
    tokens: int  # predicted
    trained_tokens: int  # predicted and trained


def describe(rows: Rows) -> Epoch:
    """The size of one pass over the rows."""
    tokens = int(rows.piece_lengths.sum())
    return Epoch(
        rows=len(rows),
        fill=tokens / (len(rows) * rows.seq_len),
        tokens=tokens,
        trained_tokens=_trained(rows.tokenized),
    )


def _trained(tokenized: Tokenized) -> int:
    if tokenized.trained_tokens is not None:
        return tokenized.trained_tokens
    offsets, trained = tokenized.offsets, tokenized.trained
    first_tokens = offsets[:-1][np.diff(offsets) > 0]  # these are never predicted
    return int(np.count_nonzero(trained) - np.count_nonzero(trained[first_tokens]))
