"""Totals of documents against loops over tokens."""

import itertools

import numpy as np
import pytest

from distill_jax.data.encode import Tokenized
from distill_jax.evals.document_totals import document_groups, document_totals
from distill_jax.evals.records_file import Records
from distill_jax.evals.slices import slice_masks
from distill_jax.types import UserError
from tests.evals.test_slices import make_text, records_of


@pytest.mark.parametrize("column", ["nll", "forward_kl"])
def test_totals_equal_a_loop_over_tokens(column):
    text = make_text(documents=12)
    records = {("kd", 1): records_of(text, 1), ("kd", 0): records_of(text, 2)}
    records |= {("sft", 10): records_of(text, 3), ("sft", 9): records_of(text, 4)}
    found = document_totals(records, column)
    masks = slice_masks(records["kd", 1])  # the first one's: borders of entropy differ
    assert found.slices[0] == "all"
    assert set(found.slices) == set(masks)
    assert {name: arm.seeds for name, arm in found.arms.items()} == {
        "kd": ("0", "1"),
        "sft": ("9", "10"),
    }
    loop = lambda values, here: values[here].astype(np.float64).sum()
    for (p, name), (e, document) in itertools.product(
        enumerate(found.slices), enumerate(found.documents)
    ):
        here = masks[name] & (records["kd", 1].columns["document"] == document)
        for arm_name, arm in found.arms.items():
            for r, seed in enumerate(arm.seeds):
                own = records[arm_name, int(seed)].columns[column]
                assert arm.weight_PRE[p, r, e] == here.sum()
                assert arm.total_PRE[p, r, e] == pytest.approx(loop(own, here), rel=1e-12)
        if column == "nll" and not p:
            teacher = loop(records["kd", 1].columns["teacher_nll"], here)
            assert found.teacher_E[e] == pytest.approx(teacher, rel=1e-12)
    assert (found.teacher_E is None) == (column == "forward_kl")
    lengths = np.array([text.trained[a + 1 : b].sum() for a, b in itertools.pairwise(text.offsets)])
    np.testing.assert_array_equal(found.documents, np.flatnonzero(lengths))
    np.testing.assert_array_equal(found.arms["kd"].weight_PRE[0, 0], lengths[lengths > 0])


def test_an_arm_on_other_tokens_keeps_its_own():
    text = make_text(documents=12)
    first = records_of(text, 1)
    part = Records({k: v[5:] for k, v in records_of(text, 2).columns.items()}, first.names)
    arms = document_totals({("kd", 0): first, ("sft", 0): part}).arms
    assert arms["kd"].weight_PRE[0].sum() == arms["sft"].weight_PRE[0].sum() + 5


def test_what_needs_a_teacher_is_an_error_without_one():
    records = {("sft", 3): records_of(make_text(documents=5), with_teacher=False)}
    assert document_totals(records).teacher_E is None
    with pytest.raises(UserError, match="records of sft seed 3 have no forward_kl"):
        document_totals(records, "forward_kl")


def test_documents_of_equal_tokens_have_one_group():
    documents = [[1, 2, 3], [1, 2], [3, 1], [1, 2, 3], [], [2, 1, 3], [1, 2], [258], [2, 1]]
    offsets = np.cumsum([0, *map(len, documents)])
    tokens = np.concatenate(documents).astype(np.uint32)
    text = Tokenized(tokens, np.ones(len(tokens), np.uint8), offsets, ("",) * len(documents))
    groups = document_groups(text)
    for a, b in itertools.product(range(len(documents)), repeat=2):
        assert (groups[a] == groups[b]) == (documents[a] == documents[b])
    assert groups[1] == "34fb5c825de7ca4a"  # the same in every process and on every machine
