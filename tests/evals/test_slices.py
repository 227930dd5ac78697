"""Slices: what each code means, that they are known before the run, and their totals."""

import numpy as np
import pytest

from distill_jax.data.encode import Tokenized
from distill_jax.data.pack import pack
from distill_jax.evals import slices
from distill_jax.evals.slices import (
    ENTROPY_BANDS,
    KINDS,
    SLICES,
    Tokens,
    add_slices,
    registered,
    slice_masks,
    training_counts,
)
from tests.evals.random_records import VOCAB, columns_of


def tokens(token_n, counts_V, *, position=None, document=None, lengths=(50,), labels=("a",)):
    token_n = np.asarray(token_n)
    zeros = np.zeros(len(token_n), int)
    return Tokens(
        zeros if document is None else np.asarray(document),
        zeros + 1 if position is None else np.asarray(position),
        token_n,
        None,
        np.asarray(counts_V),
        np.asarray(lengths),
        labels,
    )


def make_text(seed=0, documents=40, labels=3):
    r = np.random.default_rng(seed)
    lengths = r.integers(1, 200, documents)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.minimum(r.zipf(1.5, offsets[-1]) - 1, VOCAB - 1).astype(np.uint32)
    trained = (r.random(offsets[-1]) < 0.7).astype(np.uint8)
    return Tokenized(ids, trained, offsets, tuple(f"l{i % labels}" for i in range(documents)))


def records_of(text, seed=0, with_teacher=True):
    """Records of random models on the counted tokens of a text."""
    document, position, token = slices._counted(text)
    r = np.random.default_rng(seed)
    z, t = r.normal(size=(2, len(token), VOCAB)) * 3
    columns = columns_of(z, token, t if with_teacher else None)
    columns |= {"document": document.astype(np.int32), "position": position.astype(np.int32)}
    return add_slices(
        columns,
        training_counts_V=training_counts(text),
        document_lengths=np.diff(text.offsets),
        document_labels=text.labels,
    )


def test_deciles_hold_equal_shares_of_the_held_out_tokens():
    r = np.random.default_rng(0)
    counts_V = r.permutation(5000)
    token_n = r.integers(0, 5000, 20_000)
    names, code_n = slices.frequency(tokens(token_n, counts_V))
    assert names[0] == "1 of 10"
    assert len(names) == 10
    np.testing.assert_allclose(np.bincount(code_n, minlength=10) / 20_000, 0.1, atol=0.001)
    # The rarest in training come first.
    highest = [counts_V[token_n[code_n == c]].max() for c in range(10)]
    lowest = [counts_V[token_n[code_n == c]].min() for c in range(10)]
    assert all(a < b for a, b in zip(highest, lowest[1:], strict=False))


def test_equal_counts_stay_together_and_what_training_never_saw_is_rarest():
    counts_V = [7, 7, 7, 0, 100]
    _, code_n = slices.frequency(tokens([0, 1, 2, 3, 9, 99, 4, 4, 4, 4, 4, 4], counts_V))
    assert len(set(code_n[:3])) == 1
    assert len(set(code_n[3:6])) == 1  # absent, and beyond the counted ids
    assert code_n[3] < code_n[0] < code_n[6]
    assert list(code_n) == [3] * 3 + [1] * 3 + [7] * 6


def test_a_decile_does_not_depend_on_the_order_of_tokens():
    r = np.random.default_rng(1)
    token_n, counts_V = r.integers(0, 50, 500), r.integers(0, 9, 50)
    order = r.permutation(500)
    code_n = slices.frequency(tokens(token_n, counts_V)).code_n
    again = slices.frequency(tokens(token_n[order], counts_V)).code_n
    np.testing.assert_array_equal(code_n[order], again)


@pytest.mark.parametrize(
    ("value", "name"),
    [(1, "1-16"), (16, "1-16"), (17, "17-32"), (32, "17-32"), (33, "33-64"), (4096, "2049-4096"),
     (4097, "4097 or more"), (10**6, "4097 or more")],
)  # fmt: skip
def test_positions_are_cut_at_powers_of_two(value, name):
    names, code_n = slices.position(tokens([0], [1], position=[value], lengths=[10**6 + 1]))
    assert names[code_n[0]] == name


def test_buckets_reach_as_far_as_the_documents():
    names, _ = slices.position(tokens([0], [1], position=[5], lengths=[33, 20]))
    assert names == ("1-16", "17-32", "33-64")
    names, code_n = slices.length(tokens([0, 0], [1], document=[0, 1], lengths=[64, 65]))
    assert names == ("1-64", "65-128")
    assert list(code_n) == [0, 1]


def test_many_labels_keep_the_largest_and_one_for_the_rest():
    kinds = 30
    document = np.repeat(np.arange(kinds), np.arange(kinds, 0, -1))
    labels = [f"kind {i:02d}" for i in range(kinds)]
    names, code_n = slices.label(
        tokens(np.zeros(len(document), int), [1], document=document, labels=labels)
    )
    assert len(names) == KINDS
    assert names[:2] == ("kind 00", "kind 01")
    assert names[-1] == "other"
    for code in range(KINDS - 1):
        assert set(document[code_n == code]) == {code}
    assert set(document[code_n == KINDS - 1]) == set(range(KINDS - 1, kinds))


@pytest.mark.parametrize("place", [0, 25])
def test_a_label_called_other_is_one_of_the_rest(place):
    labels = [f"kind {i:02d}" for i in range(30)]
    labels[place] = "other"
    document = np.repeat(np.arange(30), np.arange(30, 0, -1))
    names, code_n = slices.label(
        tokens(np.zeros(len(document), int), [1], document=document, labels=labels)
    )
    assert names.count("other") == 1
    assert names[-1] == "other"
    assert set(code_n[document == place]) == {len(names) - 1}


def test_bands_of_the_teachers_entropy():
    given = tokens(np.zeros(7, int), [1])
    names, code_n = slices.entropy(given._replace(entropy_n=np.array([0, 0.1, 0.3, 0.5, 1, 4, 9])))
    assert names[0] == "below 0.1 nats"
    assert names[-1] == "4 nats or more"
    assert len(names) == len(ENTROPY_BANDS) + 1
    assert list(code_n) == [0, 1, 1, 2, 3, 5, 5]


@pytest.mark.parametrize("with_teacher", [True, False])
def test_every_slice_is_known_before_the_run(with_teacher):
    text = make_text()
    names = registered(text, training_counts_V=training_counts(text), with_teacher=with_teacher)
    records = records_of(text, with_teacher=with_teacher)
    found = [name for name in slice_masks(records) if name != "all"]
    assert len(set(names)) == len(names)
    kind = lambda name: name.split(":")[0]
    assert {kind(n) for n in names} == {*SLICES} - (set() if with_teacher else {"entropy"})
    assert set(found) <= set(names)
    assert {n for n in names if kind(n) != "entropy"} <= set(found)
    assert ("slice_entropy" in records.columns) == with_teacher


def test_a_slice_of_everything_is_not_registered():
    text = make_text(labels=1)
    names = registered(text, training_counts_V=training_counts(text), with_teacher=False)
    assert not [name for name in names if name.startswith("label:")]


def test_each_slicing_is_a_partition():
    records = records_of(make_text())
    masks = slice_masks(records)
    assert masks["all"].all()
    for name, values in records.names.items():
        assert records.columns[f"slice_{name}"].dtype == np.int16
        parts = [masks[f"{name}:{v}"] for v in values if f"{name}:{v}" in masks]
        np.testing.assert_array_equal(np.sum(parts, 0), 1)


def test_training_counts_are_those_of_the_packed_labels():
    text = make_text(seed=3)
    rows = pack(text, seq_len=32, seed=0)
    expected = np.zeros(VOCAB, int)
    for i in range(len(rows)):
        np.add.at(expected, rows[i].labels_BT[rows[i].weight_BT > 0], 1)
    counts = training_counts(text)
    np.testing.assert_array_equal(counts, expected[: len(counts)])
    assert not expected[len(counts) :].any()
