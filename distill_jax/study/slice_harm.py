"""Did the treatment break something: harm on slices that were registered before the run.

Each slice that can be tested is tested one-sidedly for harm beyond the slice margin, and the p
values are adjusted by Holm (1979) over them: the chance of any false alarm stays below
1 - confidence, however many slices there are and however they depend on each other. Which can be
tested is known from weights alone, never from scores, so that choosing them costs nothing.

No test protects a mean against what was never seen: a slice of 30 documents misses what happens
in 2% of documents in 55% of studies. So a slice needs both some effective documents and some
weight (150 tokens or examples see what happens to 2% of them with 95%), and one whose harm rests
on the absence of rare large gains, of which some were seen, is not called harmed: its
contributions are skewed. What remains is said with each failure: what less than 3 / documents of
them show may have been missed.
"""

from typing import NamedTuple

import numpy as np

from distill_jax.study.paired import Paired
from distill_jax.study.uncertainty import Spread, interval, p_above, spread_of

MINIMUM_DOCUMENTS = 50  # effective ones, below which a slice is not tested
MINIMUM_WEIGHT = 150  # tokens or examples
LARGEST_SKEWNESS = 0.3  # of the mean, towards gains: p of 2.5% is then up to 5%


class SliceEffect(NamedTuple):
    """One slice's row of the forest plot; what could not be estimated is None.

    effect      per weight, treatment - baseline, as the user counts it.
    interval    not adjusted for the number of slices.
    adjusted_p  of harm beyond the slice margin, by Holm.
    harmed      the adjusted p is below 1 - confidence.
    untestable  why there is no p, or None.
    """

    slice: str
    effect: float | None
    interval: tuple[float, float] | tuple[None, None]
    adjusted_p: float | None
    weight: float
    documents: int
    effective_documents: float
    harmed: bool
    untestable: str | None


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjusted p values of a family of tests."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted.tolist()


def in_units(effect: float, bounds, sign: int):
    """(effect, interval) turned back from "negative is better" to the user's own direction."""
    low, high = bounds
    if low is None:
        return sign * effect + 0.0, bounds
    low, high = sorted((sign * low, sign * high))
    return sign * effect + 0.0, (low + 0.0, high + 0.0)  # + 0.0: no -0.0


def why_untestable(weight_U: np.ndarray, seeds: int, documents: float, weight: float) -> str | None:
    """The reason why a slice is not tested, or None; from weights alone."""
    has = int(np.count_nonzero(weight_U))
    total = float(weight_U.sum())
    effective = total**2 / float(np.sum(weight_U**2)) if has else 0.0
    if effective < documents * (1 - 1e-9):
        return f"{has} documents, {effective:.3g} effective of at least {documents:g}"
    if total < weight:
        return f"a weight (tokens, examples) of {total:g} of at least {weight:g}"
    return "one seed: how seeds differ is not known" if seeds < 2 else None


def slice_effects(
    paired: Paired,
    names: tuple[str, ...],
    *,
    slice_margin: float,
    confidence: float,
    sign: int = 1,
    minimum_documents: float = MINIMUM_DOCUMENTS,
    minimum_weight: float = MINIMUM_WEIGHT,
) -> tuple[SliceEffect, ...]:
    """The rows of the named slices, in their order. sign: -1 where higher scores are better."""
    rows: list[SliceEffect] = []
    tested: dict[int, float] = {}
    for i, name in enumerate(names):
        known = name in paired.slices
        p = paired.slices.index(name) if known else 0
        weight_U = paired.weight_PU[p] if known else np.zeros(1)
        seeds = len(paired.seeds)
        reason = why_untestable(weight_U, seeds, minimum_documents, minimum_weight)
        if not weight_U.any():
            rows.append(SliceEffect(name, None, (None, None), None, 0.0, 0, 0.0, False, reason))
            continue
        spread = spread_of(paired.total_PRU[p], weight_U)
        if reason is None:
            tested[i] = p_above(spread, slice_margin)
            reason = skewed(spread)
        effect, bounds = in_units(spread.effect, interval(spread, confidence), sign)
        about = float(weight_U.sum()), spread.documents, spread.effective_documents
        rows.append(SliceEffect(name, effect, bounds, None, *about, False, reason))
    for i, adjusted in zip(tested, holm(list(tested.values())), strict=True):
        if rows[i].untestable is None:
            rows[i] = rows[i]._replace(adjusted_p=adjusted, harmed=adjusted < 1 - confidence)
    return tuple(rows)


def skewed(spread: Spread) -> str | None:
    """Why the p of harm is not to be trusted, or None. The slice stays in Holm's family."""
    if spread.skewness >= -LARGEST_SKEWNESS:
        return None
    return (
        f"a few of its {spread.documents} documents gain far more than the others "
        f"(skewness {spread.skewness:.2f} of the mean): hold out more of them"
    )


def failures_of(rows: tuple[SliceEffect, ...], sign: int = 1) -> tuple[SliceEffect, ...]:
    """The harmed slices, the largest harm first."""
    return tuple(sorted((r for r in rows if r.harmed), key=lambda r: (-sign * r.effect, r.slice)))
