"""Whether a model is right as often as it is confident: reliability and calibration error.

Everything is float64 NumPy over the columns of evals/records_file.py; `prefix` is "" for the model
itself and "teacher_" for its teacher.
"""

from typing import Any, NamedTuple

import numpy as np

from distill_jax.evals.records_file import Columns
from distill_jax.types import Mean

BINS = 15
SURE = 0.9  # confidence from which a wrong top-1 token is confident and wrong


class Bins(NamedTuple):
    """Sums over the tokens of each bin of confidence; those of two texts add up to both's."""

    count: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray


def bins(confidence_n: np.ndarray, correct_n: np.ndarray) -> Bins:
    """BINS equally wide bins (low, high] of the likeliest token's probability; 0 is in the first.

    Guo et al. 2017, 1706.04599, section 2.
    """
    confidence_n = np.asarray(confidence_n, np.float64)
    correct_n = np.asarray(correct_n, np.float64)
    bin_n = np.searchsorted(_inner_edges(), confidence_n, side="left")
    total = lambda weights: np.bincount(bin_n, weights, minlength=BINS)
    return Bins(total(np.ones_like(confidence_n)), total(confidence_n), total(correct_n))


def calibration_error(sums: Bins) -> Mean:
    """The mean over tokens of |accuracy - confidence| of their bin. 1706.04599, eq. (3)."""
    return Mean(np.abs(sums.correct - sums.confidence).sum(), sums.count.sum())


def reliability(confidence_n: np.ndarray, correct_n: np.ndarray) -> list[dict[str, Any]]:
    """The bins as rows of a diagram; the two averages of an empty bin are None."""
    sums = bins(confidence_n, correct_n)
    edges = [0.0, *_inner_edges().tolist(), 1.0]
    return [
        {
            "low": edges[i],
            "high": edges[i + 1],
            "count": int(count),
            "confidence": float(confidence / count) if count else None,
            "accuracy": float(correct / count) if count else None,
        }
        for i, (count, confidence, correct) in enumerate(zip(*sums, strict=True))
    ]


def ece(columns: Columns, prefix: str = "") -> Mean:
    """Expected calibration error of the likeliest token, BINS bins."""
    return calibration_error(bins(columns[prefix + "confidence"], right(columns, prefix)))


def confident_and_wrong(columns: Columns, prefix: str = "") -> Mean:
    """Share of all tokens whose top-1 is wrong at a confidence of SURE or more."""
    sure_n = columns[prefix + "confidence"] >= SURE
    return Mean(np.count_nonzero(sure_n & ~right(columns, prefix)), len(sure_n))


def right(columns: Columns, prefix: str = "") -> np.ndarray:
    """Whether the likeliest token is the label, bool [n]."""
    return columns[prefix + "top5"][:, 0] == columns["token"]


def _inner_edges() -> np.ndarray:
    return np.arange(1, BINS) / BINS
