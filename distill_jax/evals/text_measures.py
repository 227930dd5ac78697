"""What a model does when it writes: repetition, variety, length, answers, memorised text.

Everything is a function of token ids on the host. A measure is one function of a Sample and one
line in TEXT_MEASURES; it gives a total and a count, divided once, or None where it has no meaning.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from distill_jax.losses.tokens import finish
from distill_jax.types import Mean

Ids = Sequence[int]


class Ngrams(NamedTuple):
    """All runs of `length` tokens in a text, to be looked up by hash and then compared.

    tokens uint32 [n], the text; hashes uint64 [m], in order; starts int64 [m], the place in
    tokens of the run of each hash. About 16 bytes per token beside the text itself.
    """

    tokens: np.ndarray
    hashes: np.ndarray
    starts: np.ndarray
    length: int


class Sample(NamedTuple):
    """What one model wrote after some prompts, and what there is to compare it with.

    generated   one per prompt, without the stop token
    limit       tokens; a generation of this length was cut off before it stopped
    references  the data's continuation of each prompt, without a stop token; empty: unknown
    answers     whether a reference is all that had to be written, so that it may be matched
    scores      0..1 from a verifier, one per prompt; None without a verifier
    training    runs of the training text; None where it is not at hand
    """

    generated: Sequence[Ids]
    limit: int
    references: Sequence[Ids]
    answers: Sequence[bool]
    scores: Sequence[float] | None = None
    training: Ngrams | None = None


class TextMeasure(NamedTuple):
    """A measure, what it means, and which values are better: lower, higher, or near the teacher."""

    function: Callable[[Sample], Mean | None]
    what: str
    better: str


def text_metrics(sample: Sample) -> dict[str, float | None]:
    """Every measure by name; None where it cannot be computed."""
    means = {name: measure.function(sample) for name, measure in TEXT_MEASURES.items()}
    return {name: None if mean is None else finish(mean) for name, mean in means.items()}


def repetition(size: int) -> Callable[[Sample], Mean]:
    """1 - distinct / all n-grams within a generation, averaged over generations that have any.

    seq-rep-n of Welleck et al. 2019, 1908.04319, section 6.
    """

    def value(sample: Sample) -> Mean:
        runs = [list(_ngrams(ids, size)) for ids in sample.generated]
        shares = [1 - len(set(some)) / len(some) for some in runs if some]
        return Mean(sum(shares), len(shares))

    return value


def distinct(size: int) -> Callable[[Sample], Mean]:
    """Distinct n-grams over all n-grams of all generations together. After Li et al., 1510.03055.

    It falls as more is written: compare it only between models with the same prompts and limit.
    """

    def value(sample: Sample) -> Mean:
        runs = [gram for ids in sample.generated for gram in _ngrams(ids, size)]
        return Mean(len(set(runs)), len(runs))

    return value


def truncated(sample: Sample) -> Mean:
    """The share of generations that reached the limit without a stop token."""
    return Mean(sum(len(ids) >= sample.limit for ids in sample.generated), len(sample.generated))


def length_ratio(sample: Sample) -> Mean:
    """Tokens written over tokens of the references, where there is a reference."""
    pairs = list(_pairs(sample))
    return Mean(sum(len(ids) for ids, _ in pairs), sum(len(reference) for _, reference in pairs))


def exact_match(sample: Sample) -> Mean:
    """The share of answers that were written token by token as the data has them."""
    triples = zip(sample.generated, sample.references, sample.answers, strict=True)
    same = [list(ids) == list(reference) for ids, reference, answer in triples if answer]
    return Mean(sum(same), len(same))


def verified(sample: Sample) -> Mean | None:
    """The mean score of the verifier."""
    if sample.scores is None:
        return None
    return Mean(float(sum(sample.scores)), len(sample.scores))


def rouge_l(sample: Sample) -> Mean:
    """F1 of the longest common subsequence of tokens with the reference. Lin 2004, section 3."""
    shares = [
        2 * common_subsequence(ids, reference) / (len(ids) + len(reference))
        for ids, reference in _pairs(sample)
    ]
    return Mean(sum(shares), len(shares))


def memorised(sample: Sample) -> Mean | None:
    """The share of long runs of generated tokens that occur verbatim in the training text."""
    if sample.training is None:
        return None
    length = sample.training.length
    runs = [gram for ids in sample.generated for gram in _ngrams(ids, length)]
    found = contains(sample.training, np.array(runs, np.uint32).reshape(-1, length))
    return Mean(int(found.sum()), len(runs))


def common_subsequence(a: Ids, b: Ids) -> int:
    """Length of the longest common subsequence, one bit per token of `a`. Hyyrö 2004, figure 3."""
    places: dict[int, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        both = row & places.get(token, 0)
        row = ((row + both) | (row - both)) & full
    return len(a) - row.bit_count()


def index_ngrams(tokens: np.ndarray, offsets: np.ndarray, length: int = 16) -> Ngrams:
    """All runs of `length` tokens within documents tokens[offsets[d]:offsets[d + 1]]."""
    counts = np.maximum(np.diff(offsets) - length + 1, 0)
    before = np.cumsum(counts) - counts
    starts = np.arange(counts.sum()) + np.repeat(offsets[:-1] - before, counts)
    hashes = _hashes(tokens, length)[starts]
    order = np.argsort(hashes, kind="stable")
    return Ngrams(np.asarray(tokens, np.uint32), hashes[order], starts[order], length)


def contains(index: Ngrams, runs_MN: np.ndarray) -> np.ndarray:
    """bool [M]: which runs of tokens [M, index.length] occur in the text.

    Equal hashes are only candidates: tokens are compared, so the answer is exact.
    """
    hashes = np.array([_hashes(run, index.length)[0] for run in runs_MN], np.uint64)
    place = np.searchsorted(index.hashes, hashes, "left")
    end = np.searchsorted(index.hashes, hashes, "right")
    found = np.zeros(len(runs_MN), bool)
    while (open_M := ~found & (place < end)).any():
        starts = index.starts[place[open_M]]
        text = index.tokens[starts[:, None] + np.arange(index.length)]
        found[open_M] = (text == runs_MN[open_M]).all(-1)
        place[open_M] += 1
    return found


def _hashes(tokens: np.ndarray, length: int) -> np.ndarray:
    """uint64 [n - length + 1]: polynomials of each run of tokens, modulo 2**64."""
    mixed = (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    count = max(len(tokens) - length + 1, 0)
    hashes = np.zeros(count, np.uint64)
    for j in range(length):
        hashes = hashes * np.uint64(0xD6E8FEB86659FD93) + mixed[j : j + count]
    return hashes


def _ngrams(ids: Ids, size: int) -> Iterator[tuple[int, ...]]:
    return zip(*(ids[i:] for i in range(size)), strict=False)


def _pairs(sample: Sample) -> Iterator[tuple[Ids, Ids]]:
    pairs = zip(sample.generated, sample.references, strict=True)
    return ((ids, reference) for ids, reference in pairs if len(reference))


TEXT_MEASURES: dict[str, TextMeasure] = {
    "rep_4": TextMeasure(repetition(4), "repeated 4-grams within a text", "lower"),
    "distinct_1": TextMeasure(distinct(1), "distinct tokens over all tokens", "teacher"),
    "distinct_2": TextMeasure(distinct(2), "distinct pairs over all pairs", "teacher"),
    "distinct_3": TextMeasure(distinct(3), "distinct triples over all triples", "teacher"),
    "truncated": TextMeasure(truncated, "texts that never stopped", "teacher"),
    "length_ratio": TextMeasure(length_ratio, "tokens written over tokens of the data", "teacher"),
    "exact_match": TextMeasure(exact_match, "answers written exactly as in the data", "higher"),
    "verified": TextMeasure(verified, "mean score of the verifier", "higher"),
    "rouge_l": TextMeasure(rouge_l, "longest common subsequence with the data, F1", "higher"),
    "memorised": TextMeasure(memorised, "runs of tokens copied from training text", "lower"),
}
