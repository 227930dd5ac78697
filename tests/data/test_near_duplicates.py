"""Near copies by MinHash, against the Jaccard index of the sets themselves."""

import random

import numpy as np
import pytest

from distill_jax.data.near_duplicates import (
    FOUND,
    PERMUTATIONS,
    WORDS,
    Signatures,
    bands_of,
    signature,
)
from distill_jax.data.ngrams import words

BAND = 0.1  # 3.5 standard deviations of an estimate at 0.8


def _runs(text: str) -> set[tuple[str, ...]]:
    found = text.split()
    n = min(WORDS, len(found))
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def _jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b)


def _pairs(rng: random.Random) -> list[tuple[str, str]]:
    """Texts and copies in which none, some or all of the words are others."""
    vocabulary = [f"w{i}" for i in range(400)]
    pairs = []
    for length in (3, 5, 12, 60, 300):
        for changes in (0, 1, 1, 2, 3, 4, 6, 8, 12, 16, 30, 300):
            for _ in range(3):
                first = rng.choices(vocabulary, k=length)
                copy = list(first)
                for place in rng.sample(range(length), min(changes, length)):
                    copy[place] = rng.choice(vocabulary)
                pairs.append((" ".join(first), " ".join(copy)))
    return pairs


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_what_is_found_is_as_alike_as_asked_for_and_none_is_missed(threshold):
    alike = unlike = 0
    for first, copy in _pairs(random.Random(0)):
        truth = _jaccard(_runs(first), _runs(copy))
        one = Signatures(threshold)
        one.add(signature(first))
        found = one.has_alike(signature(copy))
        if truth >= min(1.0, threshold + BAND):
            alike += 1
            assert found, (truth, first, copy)
        if truth < threshold - BAND:
            unlike += 1
            assert not found, (truth, first, copy)
    assert min(alike, unlike) >= 15


def test_most_unlike_texts_are_not_even_compared_and_none_is_found():
    rng = np.random.default_rng(0)
    many = Signatures(0.8)
    for row in rng.integers(0, 2**32, (3000, PERMUTATIONS), dtype=np.uint32):
        assert not many.has_alike(row)
        many.add(row)


def test_every_document_is_found_again_however_many_follow():
    """The chains are made anew where they grow."""
    rows = np.random.default_rng(1).integers(0, 2**32, (2500, PERMUTATIONS), dtype=np.uint32)
    rows[::7, :9] = rows[0, :9]  # many that share their first band and nothing else
    many = Signatures(0.8)
    for row in rows:
        many.add(row)
    assert len(many) == 2500
    assert all(many.has_alike(row) for row in rows[::5])
    near = rows.copy()
    near[:, ::10] += 1  # nine in ten values are equal
    assert np.mean([many.has_alike(row) for row in near[:300]]) > FOUND


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_the_pairs_at_the_threshold(threshold):
    bands, rows = bands_of(threshold)
    assert bands * rows <= PERMUTATIONS
    assert 1 - (1 - threshold**rows) ** bands >= FOUND


def test_a_signature_is_of_the_words_in_their_order_alone():
    text = "one two three four five six seven"
    assert (signature(text) == signature("  one two\nthree four\tfive six seven\n")).all()
    assert (signature(text) == signature(text + " one two three four five six seven")).mean() < 1
    assert (signature("a b") != signature("b a")).any()
    assert signature(" \n") is None
    # Fixed for ever: a run that goes on finds the same documents.
    assert signature(text)[:2].tolist() == [1038228828, 407372657]


def test_sums_that_differ_in_a_sign_are_different():
    assert (signature("What is 12 + 7 ?") != signature("What is 12 - 7 ?")).any()


def test_a_character_is_a_word_where_none_are_spaced():
    assert words("你好 world, สวัสดี") == ["你", "好", "world,", *"สวัสดี"]
    long = "中文没有空格所以每一个字都算一个词" * 3
    other = long[:20] + "不" + long[20:]
    one = Signatures(0.7)
    one.add(signature(long))
    assert one.has_alike(signature(other)) == (
        _jaccard(_runs(" ".join(long)), _runs(" ".join(other))) >= 0.7
    )
