"""Aggregates of per-token records against float64 NumPy on the raw logits."""

import json

import numpy as np
import pytest

from distill_jax.evals.aggregates import MODEL_METRICS, PAIR_METRICS, aggregate, by_slice, flips
from distill_jax.evals.records_file import Records
from tests.evals.random_records import VOCAB, columns_of, log_softmax, logits


def oracle_alone(z, labels):
    q = np.exp(log_softmax(z))
    confidence, best = q.max(-1), z.argmax(-1)
    gaps = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        gaps += abs((best == labels)[inside].sum() - confidence[inside].sum())
    nll = -np.log(q[np.arange(len(z)), labels]).mean()
    return {
        "nll": nll,
        "perplexity": np.exp(nll),
        "accuracy_top1": (best == labels).mean(),
        "entropy": -(q * np.log(q)).sum(-1).mean(),
        "ece": gaps / len(z),
        "brier": ((q - np.eye(VOCAB)[labels]) ** 2).sum(-1).mean(),
        "confident_and_wrong": ((confidence >= 0.9) & (best != labels)).mean(),
    }


def oracle(z, t, labels):
    q, p = np.exp(log_softmax(z)), np.exp(log_softmax(t))
    student_right, teacher_right = z.argmax(-1) == labels, t.argmax(-1) == labels
    top = lambda x: [set(np.argsort(-row)[:5].tolist()) for row in x]
    shared = [len(a & b) / 5 for a, b in zip(top(z), top(t), strict=True)]
    own, teacher = oracle_alone(z, labels), oracle_alone(t, labels)
    return {
        **own,
        **{f"teacher_{name}": value for name, value in teacher.items()},
        "forward_kl": (p * np.log(p / q)).sum(-1).mean(),
        "reverse_kl": (q * np.log(q / p)).sum(-1).mean(),
        "agreement_top1": (z.argmax(-1) == t.argmax(-1)).mean(),
        "overlap_top5": np.mean(shared),
        "right_to_wrong": (teacher_right & ~student_right).mean(),
        "wrong_to_right": (~teacher_right & student_right).mean(),
        "acceptance": np.minimum(p, q).sum(-1).mean(),
        "entropy_gap": own["entropy"] - teacher["entropy"],
    }


Z, T, LABELS = logits()
EXPECTED = oracle(Z, T, LABELS)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_aggregate_equals_numpy(name):
    found = aggregate(columns_of(Z, LABELS, T))
    assert found[name] == pytest.approx(EXPECTED[name], rel=1e-6, abs=1e-8)


def test_the_oracle_knows_every_metric_and_none_is_trivial():
    found = aggregate(columns_of(Z, LABELS, T))
    assert set(found) == set(EXPECTED)
    assert set(found) >= {
        *MODEL_METRICS,
        *PAIR_METRICS,
        *(f"teacher_{name}" for name in MODEL_METRICS),
    }
    assert all(value != 0 for value in found.values())
    json.dumps(found, allow_nan=False)


def test_without_a_teacher_its_metrics_are_absent():
    assert set(aggregate(columns_of(Z, LABELS))) == {*MODEL_METRICS, "perplexity"}


def test_of_no_token_nothing_is_said():
    assert aggregate(columns_of(Z[:0], LABELS[:0], T[:0])) == {}


def test_a_model_against_itself():
    found = aggregate(columns_of(T, LABELS, T))
    for name in ("forward_kl", "reverse_kl", "right_to_wrong", "wrong_to_right", "entropy_gap"):
        assert found[name] == pytest.approx(0, abs=1e-7)
    for name in ("agreement_top1", "overlap_top5", "acceptance"):
        assert found[name] == pytest.approx(1)
    for name in MODEL_METRICS:
        assert found[name] == found[f"teacher_{name}"]


def test_the_order_of_tokens_does_not_matter():
    columns = columns_of(Z, LABELS, T)
    order = np.random.default_rng(0).permutation(len(LABELS))
    shuffled = aggregate({name: column[order] for name, column in columns.items()})
    for name, value in aggregate(columns).items():
        assert shuffled[name] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("cut", [1, 57, 399])
def test_two_parts_merge_to_the_whole_by_total_and_count(cut):
    columns = columns_of(Z, LABELS, T)
    part = lambda here: {name: column[here] for name, column in columns.items()}
    halves, whole = (part(slice(cut)), part(slice(cut, None))), columns
    # Bins add up before their absolute values do: see test_calibration.py.
    for function in (*(f for n, f in MODEL_METRICS.items() if n != "ece"), *PAIR_METRICS.values()):
        a, b = map(function, halves)
        merged, expected = (a.total + b.total) / (a.count + b.count), function(whole)
        assert merged == pytest.approx(expected.total / expected.count, rel=1e-9)


def test_many_tokens_are_added_in_double_precision():
    columns = columns_of(Z[:1], LABELS[:1], T[:1])
    many = {name: np.repeat(column, 200_000, 0) for name, column in columns.items()}
    assert aggregate(many)["nll"] == pytest.approx(float(columns["nll"][0]), rel=1e-12)


def test_flips_against_another_arm():
    other = logits(seed=7)[0]
    here, there = columns_of(Z, LABELS, T), columns_of(other, LABELS, T)
    found = flips(here, there)
    a, b = Z.argmax(-1) == LABELS, other.argmax(-1) == LABELS
    assert found["right_to_wrong"] == pytest.approx((b & ~a).mean())
    assert found["wrong_to_right"] == pytest.approx((a & ~b).mean())
    back = flips(there, here)
    assert back["right_to_wrong"] == found["wrong_to_right"]
    gap = aggregate(here)["accuracy_top1"] - aggregate(there)["accuracy_top1"]
    assert found["wrong_to_right"] - found["right_to_wrong"] == pytest.approx(gap)


def test_flips_of_other_tokens_are_refused():
    columns = columns_of(Z, LABELS, T)
    moved = columns | {"token": np.roll(columns["token"], 1)}
    with pytest.raises(ValueError, match="differ in token"):
        flips(columns, moved)


def test_by_slice_is_the_aggregate_of_its_tokens():
    codes = (np.arange(len(LABELS)) % 3).astype(np.int16)
    columns = columns_of(Z, LABELS, T) | {"slice_part": codes}
    found = by_slice(Records(columns, {"part": ("x", "y", "z", "nobody")}))
    assert list(found) == ["all", "part:x", "part:y", "part:z"]
    expected = oracle(Z[1::3], T[1::3], LABELS[1::3])
    for name, value in expected.items():
        assert found["part:y"][name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    assert sum(found[f"part:{k}"]["tokens"] for k in "xyz") == found["all"]["tokens"] == 400
