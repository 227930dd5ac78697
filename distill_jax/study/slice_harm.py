"""Did the treatment break something: harm on slices that were registered before the run.

Each slice that can be tested is tested one-sidedly for harm beyond the slice margin, and the p
values are adjusted by Holm (1979) over them: the chance of any false alarm stays below
1 - confidence, however many slices there are and however they depend on each other. Which can be
tested is known from weights alone, never from scores, so that choosing them costs nothing.

No test of a mean protects against what was never seen: 30 documents miss what happens in 2% of
documents in 55% of studies, and if that is a large gain, a slice without harm seems harmed. So
  - a slice needs 50 effective documents, and a weight of 150: so many independent tokens or
    examples show what happens to 2% of them with 95%;
  - a slice in which a few documents gain far more than the others is not called harmed, since the
    next documents may have more of them.
What remains: gains that come by whole documents, 2% of them, are missed by 50 documents in 36% of
studies, by 100 in 13%, by 150 in 5%. Each failure therefore says how rare a kind of document it
may have missed (3 / effective documents).
"""

from typing import NamedTuple

import numpy as np

from distill_jax.study.paired import Paired
from distill_jax.study.rules import Rules, possible
from distill_jax.study.uncertainty import Spread, interval, p_above, spread_of
from distill_jax.words import plural

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
    effect: float | None = None
    interval: tuple[float, float] | tuple[None, None] = (None, None)
    adjusted_p: float | None = None
    weight: float = 0.0
    documents: int = 0
    effective_documents: float = 0.0
    harmed: bool = False
    untestable: str | None = None


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjusted p values of a family of tests."""
    p_T = np.array(p_values)  # T tests
    order_T = np.argsort(p_T, kind="stable")
    adjusted_T = np.empty(len(p_T))
    adjusted_T[order_T] = np.maximum.accumulate(p_T[order_T] * np.arange(len(p_T), 0, -1))
    return np.minimum(adjusted_T, 1.0).tolist()


def in_units(effect: float, bounds, sign: int):
    """(effect, interval) turned back from "negative is better" to the user's own direction."""
    low, high = bounds
    if low is None:
        return sign * effect + 0.0, bounds
    low, high = sorted((sign * low, sign * high))
    return sign * effect + 0.0, (low + 0.0, high + 0.0)  # + 0.0: no -0.0


def why_untestable(weight_U: np.ndarray, seeds: int, rules: Rules) -> str | None:
    """The reason why a slice is not tested, or None; from weights alone."""
    has = int(np.count_nonzero(weight_U))
    total = float(weight_U.sum())
    effective = total**2 / float(np.sum(weight_U**2)) if has else 0.0
    if effective < rules.minimum_documents * (1 - 1e-9):
        least = f"at least {rules.minimum_documents:g}"
        return f"{plural(has, 'document')}, {effective:.3g} effective of {least}"
    if total < rules.minimum_weight:
        return f"a weight (tokens, examples) of {total:g} of at least {rules.minimum_weight:g}"
    return "one seed: how seeds differ is not known" if seeds < 2 else None


def slice_effects(
    paired: Paired, names: tuple[str, ...], rules: Rules, confidence: float
) -> tuple[SliceEffect, ...]:
    """The rows of the named slices, in their order. confidence: see level_at."""
    rows: list[SliceEffect] = []
    tested: dict[int, float] = {}
    for i, name in enumerate(names):
        known = name in paired.slices
        p = paired.slices.index(name) if known else 0
        weight_U = paired.weight_PU[p] if known else np.zeros(1)
        reason = why_untestable(weight_U, len(paired.seeds), rules)
        if not weight_U.any():
            rows.append(SliceEffect(name, untestable=reason))
            continue
        spread = spread_of(paired.total_PRU[p], weight_U)
        if reason is None:
            tested[i] = p_above(spread, rules.slice_margin)
            reason = skewed(spread)
        bounds = possible(interval(spread, confidence), rules)
        effect, bounds = in_units(spread.effect, bounds, rules.sign)
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
        f"a few of its {plural(spread.documents, 'document')} gain far more than the others "
        f"(skewness {spread.skewness:.2f} of the mean): hold out more of them"
    )


def failures_of(rows: tuple[SliceEffect, ...], sign: int) -> tuple[SliceEffect, ...]:
    """The harmed slices, the largest harm first."""
    return tuple(sorted((r for r in rows if r.harmed), key=lambda r: (-sign * r.effect, r.slice)))
