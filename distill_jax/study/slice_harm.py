"""Did the treatment break something: harm on slices that were registered before the run.

Each slice is tested one-sidedly for harm beyond the slice margin, and the p values are adjusted by
Holm (1979) over all registered slices, tested or not: the chance of any false alarm stays
below 1 - confidence, however many slices there are and however they depend on each other.
"""

from typing import NamedTuple

import numpy as np

from distill_jax.study.bootstrap import Spread, chance_of_more, interval, spreads
from distill_jax.study.pairing import Paired, pair

MINIMUM_DOCUMENTS = 5  # below it a variance over documents says nothing
MINIMUM_TOKENS = 50


class Failure(NamedTuple):
    """A slice on which the treatment does harm beyond the margin."""

    slice: str
    effect: float  # nats a token, treatment - baseline
    interval: tuple[float, float]  # not adjusted for the number of slices
    adjusted_p: float


class SliceEffect(NamedTuple):
    """One slice's row of the forest plot; what could not be estimated is None.

    harmed: the adjusted p is below 1 - confidence. untestable: why there is no p, or None.
    """

    slice: str
    effect: float | None
    interval: tuple[float, float] | tuple[None, None]
    adjusted_p: float | None
    tokens: int
    documents: int
    harmed: bool
    untestable: str | None


def holm(p_values: list[float], family: int) -> list[float]:
    """Holm's step-down adjusted p values of some members of a family of tests."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (family - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted.tolist()


def why_untestable(
    spread: Spread | None, tokens: int, documents: int, minimum_documents: int, minimum_tokens: int
) -> str | None:
    """The reason why a slice is not tested, or None."""
    if documents < minimum_documents:
        return f"{documents} documents of at least {minimum_documents}"
    if tokens < minimum_tokens:
        return f"{tokens} tokens of at least {minimum_tokens}"
    if spread is None or not spread.known:
        return "one seed: how seeds differ is not known"
    return None


def effects_of(
    paired: Paired,
    found: dict[str, Spread],
    slice_margin: float,
    confidence: float,
    minimum_documents: int,
    minimum_tokens: int,
) -> tuple[SliceEffect, ...]:
    """The rows of all registered slices, in their order. found: the Spread of those with tokens."""
    rows, p_values = [], {}
    for name, count_D in zip(paired.slices[1:], paired.count_KD[1:], strict=True):
        tokens, documents = int(count_D.sum()), int((count_D > 0).sum())
        spread = found.get(name)
        reason = why_untestable(spread, tokens, documents, minimum_documents, minimum_tokens)
        bounds = (None, None) if spread is None else interval(spread, confidence)
        if reason is None:
            p_values[name] = chance_of_more(spread, slice_margin)
        effect = None if spread is None else spread.effect
        rows.append(SliceEffect(name, effect, bounds, None, tokens, documents, False, reason))
    adjusted = dict(zip(p_values, holm(list(p_values.values()), len(rows)), strict=True))
    return tuple(
        row._replace(adjusted_p=adjusted[row.slice], harmed=adjusted[row.slice] < 1 - confidence)
        if row.slice in adjusted
        else row
        for row in rows
    )


def failures_of(rows: tuple[SliceEffect, ...]) -> tuple[Failure, ...]:
    """The harmed slices, the largest harm first."""
    harmed = sorted((row for row in rows if row.harmed), key=lambda row: (-row.effect, row.slice))
    return tuple(Failure(row.slice, row.effect, row.interval, row.adjusted_p) for row in harmed)


def spreads_by_slice(paired: Paired, resamples: int, seed: int) -> dict[str, Spread]:
    """The Spread of each slice that has a token, the whole included."""
    has = np.flatnonzero(paired.count_KD.sum(axis=1) > 0)
    found = spreads(paired.total_KSD[has], paired.count_KD[has], resamples=resamples, seed=seed)
    return {paired.slices[k]: spread for k, spread in zip(has, found, strict=True)}


def slice_effects(
    table,
    *,
    treatment: str = "kd",
    baseline: str = "sft",
    slice_margin: float,
    confidence: float = 0.95,
    seed: int = 0,
    registered: tuple[str, ...] | None = None,
    resamples: int = 2000,
    minimum_documents: int = MINIMUM_DOCUMENTS,
    minimum_tokens: int = MINIMUM_TOKENS,
    one_token_documents: bool = False,
) -> tuple[SliceEffect, ...]:
    """Every registered slice's effect, interval and adjusted p. Arguments: see verdict.

    Raises Incomparable where verdict says INVALID.
    """
    paired = pair(table, treatment, baseline, registered, one_token_documents)
    found = spreads_by_slice(paired, resamples, seed)
    return effects_of(paired, found, slice_margin, confidence, minimum_documents, minimum_tokens)
