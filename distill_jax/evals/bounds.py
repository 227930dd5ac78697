"""The values that a measure can have at all, for intervals that should not leave them.

One line in BOUNDS for every measure of the registries; a benchmark's by the name of its metric.
"""

import math

Bounds = tuple[float, float]  # the least and the largest value

SHARE = (0.0, 1.0)
POSITIVE = (0.0, math.inf)
ANY = (-math.inf, math.inf)


def bounds_of(name: str) -> Bounds:
    """Of a measure by its name: of a teacher's (`teacher_` + name) and a benchmark's (TASK/METRIC).

    Anything where nothing is known, as of another's score.

    >>> bounds_of("teacher_ece"), bounds_of("arc_easy/acc_norm"), bounds_of("entropy_gap")
    ((0.0, 1.0), (0.0, 1.0), (-inf, inf))
    """
    task, _, metric = name.rpartition("/")
    if task:
        metric = metric.split(",")[0]  # the harness' filter is behind a comma
        return POSITIVE if metric.endswith("_stderr") else TASK_BOUNDS.get(metric, ANY)
    return BOUNDS.get(name.removeprefix("teacher_"), ANY)


def within(low: float, high: float, bounds: Bounds, mean: float) -> Bounds:
    """An interval without what lies beyond the bounds.

    The truth never lies there, so the interval holds it exactly as often as before; a transformed
    scale would move the other end, too, and has none for a mean on a bound. The mean stays inside,
    also where rounding put it beyond a bound.

    >>> within(-0.0016, 0.0058, (0.0, 1.0), 0.0021)
    (0.0, 0.0058)
    """
    least, largest = bounds
    return max(low, min(least, mean)), min(high, max(largest, mean))


def of_difference(bounds: Bounds) -> Bounds:
    """What two such values can differ by."""
    return bounds[0] - bounds[1], bounds[1] - bounds[0]


# Metrics of lm-evaluation-harness that are shares of examples. Others, such as f1, have another
# scale in some tasks.
TASK_BOUNDS: dict[str, Bounds] = {"acc": SHARE, "acc_norm": SHARE, "exact_match": SHARE}

BOUNDS: dict[str, Bounds] = {
    # of tokens
    "nll": POSITIVE,
    "perplexity": (1.0, math.inf),
    "accuracy_top1": SHARE,
    "entropy": POSITIVE,
    "ece": SHARE,
    "brier": (0.0, 2.0),  # over the whole distribution: all of the mass on one wrong token
    "confident_and_wrong": SHARE,
    "forward_kl": POSITIVE,
    "reverse_kl": POSITIVE,
    "agreement_top1": SHARE,
    "overlap_top5": SHARE,
    "right_to_wrong": SHARE,
    "wrong_to_right": SHARE,
    "acceptance": SHARE,
    "entropy_gap": ANY,
    # of what a model writes
    "rep_4": SHARE,
    "distinct_1": SHARE,
    "distinct_2": SHARE,
    "distinct_3": SHARE,
    "truncated": SHARE,
    "length_ratio": POSITIVE,
    "exact_match": SHARE,
    "verified": ANY,  # the user's own score
    "rouge_l": SHARE,
    "memorised": SHARE,
    "kl_own": POSITIVE,
    "kl_data": POSITIVE,
    "exposure_gap": ANY,
}
