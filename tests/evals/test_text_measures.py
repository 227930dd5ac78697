"""Measures of generated texts: known values, laws, and oracles that count in the plainest way."""

import math
from collections import Counter

import numpy as np
import pytest

from distill_jax.evals import text_measures
from distill_jax.evals.text_measures import (
    TEXT_MEASURES,
    Sample,
    common_subsequence,
    contains,
    index_ngrams,
    text_metrics,
)

TRAINING = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [1, 2, 3, 9]]


def text(documents):
    offsets = np.cumsum([0, *map(len, documents)])
    return np.concatenate([np.array(d, np.uint32) for d in documents]), offsets


def sample(generated, references=None, answers=None, limit=10, scores=None, training=None):
    references = [[] for _ in generated] if references is None else references
    answers = [False] * len(generated) if answers is None else answers
    return Sample(generated, limit, references, answers, scores, training)


def random_sample(seed, rows=12, limit=9, vocab=4):
    r = np.random.default_rng(seed)
    some = lambda least: [
        r.integers(0, vocab, r.integers(least, limit + 1)).tolist() for _ in range(rows)
    ]
    generated, references = some(0), some(0)
    references[0] = list(generated[0])
    documents = [r.integers(0, vocab, r.integers(0, 30)).tolist() for _ in range(6)]
    return Sample(
        generated=generated,
        limit=limit,
        references=references,
        answers=[bool(x) for x in r.integers(0, 2, rows)],
        scores=r.random(rows).tolist(),
        training=index_ngrams(*text(documents), length=3),
    ), documents


def grams(ids, n):
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def lcs(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i in range(len(a)):
        for j in range(len(b)):
            above = max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = table[i, j] + 1 if a[i] == b[j] else above
    return int(table[-1, -1])


def oracle(s, documents):
    """Every measure, written from its definition alone."""
    mean = lambda values: float(np.mean(values)) if len(values) else None
    pairs = [(g, r) for g, r in zip(s.generated, s.references, strict=True) if r]
    four = [grams(g, 4) for g in s.generated if len(g) >= 4]
    expected = {
        "rep_4": mean([sum(c - 1 for c in Counter(f).values()) / len(f) for f in four]),
        "truncated": mean([len(g) == s.limit for g in s.generated]),
        "length_ratio": sum(len(g) for g, _ in pairs) / sum(len(r) for _, r in pairs),
        "exact_match": mean(
            [g == r for g, r, a in zip(s.generated, s.references, s.answers, strict=True) if a]
        ),
        "verified": mean(s.scores),
        "rouge_l": mean([_f1(lcs(g, r), len(g), len(r)) for g, r in pairs]),
    }
    for n in (1, 2, 3):
        every = [gram for g in s.generated for gram in grams(g, n)]
        expected[f"distinct_{n}"] = len(set(every)) / len(every)
    known = {gram for d in documents for gram in grams(d, 3)}
    expected["memorised"] = mean([gram in known for g in s.generated for gram in grams(g, 3)])
    return expected


def _f1(common, mine, theirs):
    if not common:
        return 0.0
    precision, recall = common / mine, common / theirs
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("seed", range(20))
def test_every_measure_equals_its_definition(seed):
    s, documents = random_sample(seed)
    expected = oracle(s, documents)
    found = text_metrics(s)
    assert set(found) == set(expected) == set(TEXT_MEASURES)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_prompts_changes_nothing(seed):
    s, _ = random_sample(seed)
    order = np.random.default_rng(seed).permutation(len(s.generated))
    turned = s._replace(
        **{
            name: [getattr(s, name)[i] for i in order]
            for name in ("generated", "references", "answers", "scores")
        }
    )
    assert text_metrics(turned) == pytest.approx(text_metrics(s))


@pytest.mark.parametrize("name", TEXT_MEASURES)
def test_what_cannot_be_computed_is_absent(name):
    assert text_metrics(sample([]))[name] is None


def test_absence_is_of_each_measure_alone():
    found = text_metrics(sample([[1, 2, 3]]))
    absent = {name for name, value in found.items() if value is None}
    assert absent == {"rep_4", "length_ratio", "exact_match", "verified", "rouge_l", "memorised"}


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("rep_4", sample([[1, 2, 3, 4, 1, 2, 3, 4]]), 1 / 5),
        ("rep_4", sample([[5] * 8, [1, 2, 3, 4], [1]]), (4 / 5 + 0) / 2),
        ("distinct_1", sample([[1, 1, 2], [2]]), 2 / 4),
        ("distinct_2", sample([[1, 2, 1, 2], [1, 2]]), 2 / 4),
        ("truncated", sample([[1] * 10, [1] * 9, []]), 1 / 3),
        ("length_ratio", sample([[1] * 6, [1]], [[2] * 3, []]), 2.0),
        ("exact_match", sample([[1, 2], [1]], [[1, 2], [1, 2]], [True, True]), 0.5),
        ("exact_match", sample([[1, 2], [1]], [[1, 2], [1, 2]], [False, True]), 0.0),
        ("rouge_l", sample([[1, 2, 3, 4]], [[2, 9, 4]]), 4 / 7),
        ("rouge_l", sample([[]], [[2, 9, 4]]), 0.0),
        ("rouge_l", sample([[7, 8]], [[7, 8]]), 1.0),
    ],
)
def test_known_values(name, given, value):
    assert text_metrics(given)[name] == pytest.approx(value)


def test_runs_do_not_reach_over_documents_or_generations():
    training = index_ngrams(*text(TRAINING), length=3)
    inside = sample([[2, 3, 4]], training=training)
    across = sample([[5, 6, 7], [6, 7, 8], [9, 1, 2], [1, 2], [3]], training=training)
    assert text_metrics(inside)["memorised"] == 1
    assert text_metrics(across)["memorised"] == 0


def test_a_copied_document_is_memorised_and_one_changed_token_costs_its_runs():
    r = np.random.default_rng(0)
    document = r.integers(0, 1000, 60)
    training = index_ngrams(document, np.array([0, 60]))
    assert training.length == 16
    assert text_metrics(sample([document.tolist()], training=training))["memorised"] == 1
    changed = document.copy()
    changed[30] = 1001
    runs = 60 - 16 + 1
    found = text_metrics(sample([changed.tolist()], training=training))["memorised"]
    assert found == pytest.approx(1 - 16 / runs)


@pytest.mark.parametrize("hashes", ["whole", "few", "one"])
def test_lookup_is_exact_whatever_the_hashes(monkeypatch, hashes):
    """With hashes that collide on purpose, a run must still be found exactly where it stands."""
    whole = text_measures._hashes
    divisor = {"whole": None, "few": 3, "one": 1}[hashes]
    if divisor:
        coarse = lambda tokens, length: whole(tokens, length) % np.uint64(divisor)
        monkeypatch.setattr(text_measures, "_hashes", coarse)
    r = np.random.default_rng(1)
    documents = [r.integers(0, 3, n).tolist() for n in (40, 0, 3, 4, 25)]
    index = index_ngrams(*text(documents), length=4)
    known = {gram for d in documents for gram in grams(d, 4)}
    every = np.stack(np.meshgrid(*[range(3)] * 4), -1).reshape(-1, 4).astype(np.uint32)
    assert len(index.starts) == sum(max(len(d) - 3, 0) for d in documents)
    found = contains(index, every)
    assert found.tolist() == [tuple(run) in known for run in every.tolist()]
    assert 0 < found.sum() < len(every)


def test_a_text_shorter_than_a_run_holds_none():
    index = index_ngrams(*text([[1, 2]]), length=16)
    assert len(index.starts) == 0
    assert not contains(index, np.ones((1, 16), np.uint32)).any()


@pytest.mark.parametrize("seed", range(10))
def test_common_subsequence_against_the_table(seed):
    r = np.random.default_rng(seed)
    a, b = (r.integers(0, 5, r.integers(0, 90)).tolist() for _ in range(2))
    assert common_subsequence(a, b) == common_subsequence(b, a) == lcs(a, b)


def test_every_measure_says_what_it_is():
    for measure in TEXT_MEASURES.values():
        assert measure.what
        assert measure.better in ("lower", "higher", "teacher")
    assert all(
        value is None or math.isfinite(value)
        for value in text_metrics(random_sample(3)[0]).values()
    )
