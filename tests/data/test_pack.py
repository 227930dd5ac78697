import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.data.encode import Tokenized
from distill_jax.data.pack import describe, empty_row, pack
from distill_jax.types import UserError

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(lambda n: max(n) > 1)
SEQ_LEN = st.integers(1, 17)
LAW = settings(deadline=None)
SEED = st.none() | st.integers(0, 3)


def documents_of(lengths, rng=None):
    """Documents whose tokens are all different, so that each token says where it came from."""
    rng = rng or np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(offsets[-1])
    return Tokenized(
        tokens=(1000 + np.arange(n)).astype(np.uint32),
        trained=rng.integers(0, 2, n).astype(np.uint8),
        offsets=offsets,
        labels=("x",) * len(lengths),
    )


def all_rows(rows):
    return jax.tree.map(lambda *x: np.stack(x), *(rows[i] for i in range(len(rows))))


@LAW
@given(LENGTHS, SEQ_LEN, SEED)
def test_every_token_but_a_documents_first_is_predicted_once(lengths, seq_len, seed):
    tokenized = documents_of(lengths)
    batch = all_rows(pack(tokenized, seq_len=seq_len, seed=seed))
    predicted = np.sort(batch.labels_BT[batch.segment_BT > 0])
    first = tokenized.tokens[tokenized.offsets[:-1][np.diff(tokenized.offsets) > 0]]
    np.testing.assert_array_equal(predicted, np.setdiff1d(tokenized.tokens, first))


@LAW
@given(LENGTHS, SEQ_LEN, SEED)
def test_a_label_is_the_token_after_its_input_in_the_same_document(lengths, seq_len, seed):
    tokenized = documents_of(lengths)
    batch = all_rows(pack(tokenized, seq_len=seq_len, seed=seed))
    real = batch.segment_BT > 0
    inputs, labels = batch.tokens_BT[real] - 1000, batch.labels_BT[real] - 1000
    np.testing.assert_array_equal(labels, inputs + 1)
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    np.testing.assert_array_equal(document_of[inputs], batch.document_BT[real])
    np.testing.assert_array_equal(document_of[labels], batch.document_BT[real])
    np.testing.assert_array_equal(batch.weight_BT[real], tokenized.trained[labels])


@LAW
@given(LENGTHS, SEQ_LEN, SEED)
def test_pieces_are_whole_windows_side_by_side(lengths, seq_len, seed):
    tokenized = documents_of(lengths)
    rows = pack(tokenized, seq_len=seq_len, seed=seed)
    for i in range(len(rows)):
        row = rows[i]
        changes = np.flatnonzero(np.diff(row.segment_BT, prepend=0, append=0))
        n_pieces = row.segment_BT.max()
        assert n_pieces >= 1
        for piece in range(1, n_pieces + 1):
            place = np.flatnonzero(row.segment_BT == piece)
            np.testing.assert_array_equal(place, np.arange(place[0], place[-1] + 1))
            np.testing.assert_array_equal(row.position_BT[place], np.arange(len(place)))
            start = row.tokens_BT[place[0]] - 1000 - tokenized.offsets[row.document_BT[place[0]]]
            assert start % seq_len == 0
        filled = np.count_nonzero(row.segment_BT)
        assert changes[0] == 0
        padding = jax.tree.leaves(row)
        empty = jax.tree.leaves(empty_row(seq_len - filled))
        for got, expected in zip(padding, empty, strict=True):
            np.testing.assert_array_equal(got[filled:], expected)


@LAW
@given(LENGTHS, SEQ_LEN, SEED)
def test_description_counts_what_the_rows_hold(lengths, seq_len, seed):
    rows = pack(documents_of(lengths), seq_len=seq_len, seed=seed)
    batch = all_rows(rows)
    epoch = describe(rows)
    assert epoch.rows == len(batch.tokens_BT)
    assert epoch.tokens == np.count_nonzero(batch.segment_BT)
    assert epoch.trained_tokens == batch.weight_BT.sum()
    assert epoch.fill == pytest.approx(np.mean(batch.segment_BT > 0))


@LAW
@given(LENGTHS, SEQ_LEN, SEED)
def test_no_two_rows_would_fit_into_one(lengths, seq_len, seed):
    rows = pack(documents_of(lengths), seq_len=seq_len, seed=seed)
    filled = sorted(np.count_nonzero(rows[i].segment_BT) for i in range(len(rows)))
    assert len(filled) < 2 or filled[0] + filled[1] > seq_len


def test_packing_is_a_function_of_the_seed():
    tokenized = documents_of(np.random.default_rng(0).integers(2, 30, 200))
    pieces = {s: pack(tokenized, seq_len=32, seed=s).piece_starts.tolist() for s in (None, 0, 1)}
    assert pieces[0] == pack(tokenized, seq_len=32, seed=0).piece_starts.tolist()
    assert len({tuple(order) for order in pieces.values()}) == 3


def test_without_a_seed_rows_begin_in_the_order_of_documents():
    tokenized = documents_of(np.random.default_rng(0).integers(2, 30, 200))
    rows = pack(tokenized, seq_len=32, seed=None)
    first = [rows[i].document_BT[0] for i in range(len(rows))]
    assert first == sorted(first)


def test_rows_of_mixed_lengths_are_nearly_full():
    lengths = np.random.default_rng(0).integers(2, 700, 2000)
    assert describe(pack(documents_of(lengths), seq_len=256, seed=0)).fill > 0.99
    assert describe(pack(documents_of(lengths), seq_len=256, seed=None)).fill > 0.95


def test_types_are_those_of_a_batch():
    row = pack(documents_of([5]), seq_len=4, seed=0)[0]
    fields = row._asdict()
    assert fields.pop("targets") is None
    for name, value in fields.items():
        assert value.dtype == (np.float32 if name == "weight_BT" else np.int32)


def test_documents_of_one_token_alone_are_an_error():
    with pytest.raises(UserError, match="no document has two tokens"):
        pack(documents_of([1, 0, 1]), seq_len=4, seed=0)
