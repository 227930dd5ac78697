"""Per-token records become numbers: how good a model is, and how close to its teacher.

A metric of one model is a function of (columns, prefix) and a line in MODEL_METRICS, measured of
the teacher too; one of student and teacher is a function of columns and a line in PAIR_METRICS.
Each gives the total and count of a mean in float64. Columns: evals/records_file.py.
"""

from collections.abc import Callable

import numpy as np

from distill_jax.evals.calibration import confident_and_wrong, ece, right
from distill_jax.evals.likelihood import perplexity
from distill_jax.evals.records_file import OF_TEACHER, Columns, Records
from distill_jax.evals.slices import slice_masks
from distill_jax.losses.tokens import finish
from distill_jax.types import Mean


def accuracy_top1(columns: Columns, prefix: str = "") -> Mean:
    """Share of tokens whose likeliest prediction is the label."""
    return _share(right(columns, prefix))


def overlap_top5(columns: Columns) -> Mean:
    """Share of the teacher's five likeliest tokens that are among the student's five."""
    student_n5, teacher_n5 = columns["top5"], columns[OF_TEACHER + "top5"]
    among_n5 = (teacher_n5[:, :, None] == student_n5[:, None, :]).any(-1)
    return _mean(among_n5.mean(-1))


def right_to_wrong(columns: Columns) -> Mean:
    """Share of all tokens that the teacher has right and the student wrong."""
    return _share(right(columns, OF_TEACHER) & ~right(columns))


def wrong_to_right(columns: Columns) -> Mean:
    """Share of all tokens that the teacher has wrong and the student right."""
    return _share(~right(columns, OF_TEACHER) & right(columns))


def acceptance(columns: Columns) -> Mean:
    """1 - total variation: acceptance rate in speculative decoding. 2211.17192, section 3.2."""
    return _mean(1.0 - columns["total_variation"].astype(np.float64))


def entropy_gap(columns: Columns) -> Mean:
    """Student entropy minus teacher entropy, in nats; below 0 the student is more confident."""
    student_n = columns["entropy"].astype(np.float64)
    return _mean(student_n - columns[OF_TEACHER + "entropy"].astype(np.float64))


def aggregate(columns: Columns) -> dict[str, float]:
    """Every metric by name; those of or against a teacher are absent where there is none.

    The teacher's own are called `teacher_` + the name. Empty where there is no token.
    """
    if not len(columns["token"]):
        return {}
    means = {name: function(columns) for name, function in MODEL_METRICS.items()}
    if OF_TEACHER + "nll" in columns:
        means |= {name: function(columns) for name, function in PAIR_METRICS.items()}
        means |= {
            OF_TEACHER + name: function(columns, OF_TEACHER)
            for name, function in MODEL_METRICS.items()
        }
    numbers = {name: finish(mean) for name, mean in means.items()}
    for prefix in ("", OF_TEACHER):
        if prefix + "nll" in numbers:
            numbers[prefix + "perplexity"] = perplexity(numbers[prefix + "nll"])
    return numbers


def flips(columns: Columns, reference: Columns) -> dict[str, float]:
    """Shares of all tokens that another model has right and this one wrong, and the reverse.

    Raises ValueError where the two are not about the same tokens.
    """
    for name in ("document", "position", "token"):
        if not np.array_equal(columns[name], reference[name]):
            raise ValueError(f"the records differ in {name}: compare models on the same text")
    here_n, there_n = right(columns), right(reference)
    return {
        "right_to_wrong": finish(_share(there_n & ~here_n)),
        "wrong_to_right": finish(_share(~there_n & here_n)),
    }


def by_slice(records: Records) -> dict[str, dict[str, float]]:
    """Every metric on every slice that has a token, and how many tokens it has."""
    rows = {}
    for name, mask_n in slice_masks(records).items():
        part = {key: column[mask_n] for key, column in records.columns.items()}
        rows[name] = aggregate(part) | {"tokens": int(mask_n.sum())}
    return rows


def _mean(value_n: np.ndarray) -> Mean:
    return Mean(value_n.sum(dtype=np.float64), len(value_n))


def _mean_of(name: str) -> Callable[..., Mean]:
    """The mean of a column: records_file.py says what each is."""
    return lambda columns, prefix="": _mean(columns[prefix + name])


def _share(hit_n: np.ndarray) -> Mean:
    return Mean(np.count_nonzero(hit_n), len(hit_n))


MODEL_METRICS: dict[str, Callable[..., Mean]] = {
    "nll": _mean_of("nll"),
    "accuracy_top1": accuracy_top1,
    "entropy": _mean_of("entropy"),
    "ece": ece,
    "brier": _mean_of("brier"),
    "confident_and_wrong": confident_and_wrong,
}

PAIR_METRICS: dict[str, Callable[[Columns], Mean]] = {
    "forward_kl": _mean_of("forward_kl"),
    "reverse_kl": _mean_of("reverse_kl"),
    "agreement_top1": _mean_of("agreement_top1"),
    "overlap_top5": overlap_top5,
    "right_to_wrong": right_to_wrong,
    "wrong_to_right": wrong_to_right,
    "acceptance": acceptance,
    "entropy_gap": entropy_gap,
}
