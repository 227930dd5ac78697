"""The scores that a study compares, against loops over tokens and examples."""

import itertools
import math

import numpy as np
import pytest

from distill_jax.data.encode import Tokenized
from distill_jax.evals.document_totals import document_groups
from distill_jax.evals.lm_eval_tasks import TaskExamples
from distill_jax.evals.records_file import Records
from distill_jax.evals.slices import slice_masks
from distill_jax.report.scores import example_scores, token_scores
from distill_jax.study.results import Measure
from tests.evals.test_slices import make_text, records_of

NLL = Measure("nll", "nats per token")
TASK = Measure("task", "score per example", higher_is_better=True)


def with_copies(text):
    """The text, twice: document d + n is a copy of document d."""
    shift = text.offsets[-1]
    return Tokenized(
        np.tile(text.tokens, 2), np.tile(text.trained, 2),
        np.concatenate([text.offsets, shift + text.offsets[1:]]), text.labels * 2,
    )  # fmt: skip


def without_the_first_token(records):
    return Records({name: x[1:] for name, x in records.columns.items()}, records.names)


@pytest.mark.parametrize("column", ["nll", "forward_kl"])
def test_token_scores_equal_a_loop_over_tokens(column):
    text = make_text(documents=12)
    keys = list(itertools.product(("sft", "kd"), (0, 1)))
    records = {key: records_of(text, seed) for seed, key in enumerate(keys)}
    found = token_scores(NLL, column, records, document_groups(text))
    masks = slice_masks(records[keys[0]])
    assert set(found.scores.slices) == set(masks)
    assert {name: arm.seeds for name, arm in found.scores.arms.items()} == {
        "sft": ("0", "1"),
        "kd": ("0", "1"),
    }
    of_teacher = records[keys[0]].columns.get(f"teacher_{column}")
    assert (found.teacher_E is None) == (of_teacher is None)
    places = enumerate(found.scores.documents)
    for (p, name), (e, document) in itertools.product(enumerate(found.scores.slices), places):
        here = masks[name] & (records["kd", 0].columns["document"] == int(document))
        assert found.scores.weight_PE[p, e] == here.sum()
        for arm, seed in keys:
            total = records[arm, seed].columns[column][here].astype(np.float64).sum()
            value = found.scores.arms[arm].total_PRE[p, seed, e]
            assert value == pytest.approx(total, rel=1e-12)
        if of_teacher is not None and not p:
            total = of_teacher[here].astype(np.float64).sum()
            assert found.teacher_E[e] == pytest.approx(total, rel=1e-12)


def test_copies_of_a_document_have_one_group():
    once = make_text(documents=9)
    once.trained[: once.offsets[1]] = 0  # a document without scores moves the places of the others
    text = with_copies(once)
    records = {("kd", 0): records_of(text)}
    scores = token_scores(NLL, "nll", records, document_groups(text)).scores
    documents = np.array(scores.documents, int)
    for (a, i), (b, j) in itertools.combinations(enumerate(documents), 2):
        assert (scores.group_E[a] == scores.group_E[b]) == (i % 9 == j % 9)


def test_an_arm_on_other_tokens_than_kd_is_left_out_with_the_reason():
    text = make_text(documents=12)
    short = without_the_first_token(records_of(text, 1))
    records = {("odd", 0): records_of(text), ("odd", 1): short}
    records |= {("kd", 0): records_of(text, 2), ("kd", 1): records_of(text, 3)}
    found = token_scores(NLL, "nll", records, document_groups(text))
    assert set(found.scores.arms) == {"kd"}
    assert set(found.left_out) == {"odd"}
    assert found.left_out["odd"].startswith("odd seed 1 was measured on other tokens than kd")


def test_runs_without_the_column_have_no_scores():
    text = make_text(documents=5)
    records = {("kd", 0): records_of(text, with_teacher=False)}
    found = token_scores(NLL, "forward_kl", records, document_groups(text))
    assert not found.scores.arms
    assert not example_scores(TASK, {}).scores.arms


def examples(values, *, metric="exact_match", higher=True, ids=("0", "1", "2")):
    return TaskExamples("task", metric, higher, ids, ("a", "b", "a"), np.array(values))


def test_example_scores_are_the_values_with_weight_1():
    keys = list(itertools.product(("kd", "sft"), (0, 1)))
    values = np.random.default_rng(0).random((len(keys), 3))
    runs = {key: examples(row) for key, row in zip(keys, values, strict=True)}
    found = example_scores(TASK, runs)
    assert found.scores.slices == ("all",)
    assert found.scores.documents == ("0", "1", "2")
    assert found.scores.group_E.tolist() == ["a", "b", "a"]
    np.testing.assert_array_equal(found.scores.weight_PE, np.ones((1, 3)))
    for (arm, seed), row in zip(keys, values, strict=True):
        own = found.scores.arms[arm]
        np.testing.assert_array_equal(own.total_PRE[0, own.seeds.index(str(seed))], row)


@pytest.mark.parametrize(("metric", "higher"), [("exact_match,strict", True), ("ter", False)])
def test_unit_and_direction_come_from_the_task(metric, higher):
    run = examples([0.0, 1.0, 1.0], metric=metric, higher=higher)
    found = example_scores(TASK, {("kd", 0): run}).measure
    assert found == Measure("task", f"{metric} per example", higher)


@pytest.mark.parametrize(("metric", "furthest"), [("exact_match,strict", 1.0), ("ter", math.inf)])
def test_how_far_apart_two_scores_can_be_comes_from_the_metric(metric, furthest):
    run = examples([0.0, 1.0, 1.0], metric=metric)
    assert example_scores(TASK, {("kd", 0): run}).furthest == furthest


def test_an_arm_on_other_examples_is_left_out_with_the_reason():
    runs = {("kd", 0): examples([0.0, 1.0, 1.0]), ("odd", 0): examples([1.0, 1.0, 0.0])}
    runs["odd", 1] = examples([1.0, 1.0, 0.0], ids=("0", "1", "5"))
    found = example_scores(TASK, runs)
    assert set(found.scores.arms) == {"kd"}
    assert found.left_out == {"odd": "odd seed 1 answered other examples than the first run"}
