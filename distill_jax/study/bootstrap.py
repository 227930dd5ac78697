"""How far an effect may be from the truth: seeds and documents resampled, tokens never.

Every seed's models read the same held-out documents: the two levels are crossed, not nested. One
draw of the bootstrap takes seeds with replacement and documents with replacement, the same for
treatment and baseline (the pigeonhole bootstrap: Owen 2007, 0712.1111). Its variance falls
into a part of the seeds and a part of the documents, and the two need different care:

- Seeds are few. Three of them allow 10 different draws, 1 of 9 of which has a single seed, so
  percentiles of draws are far too narrow. The variance of all draws is known without drawing,
  (S - 1) / S times the unbiased one; the unbiased one is taken, and its error is that of a t
  variable with S - 1 degrees of freedom.
- Documents are many but of very different lengths. They are drawn. The draws' variance is
  corrected, and its degrees of freedom counted, for the weight of the longest documents, as
  Bell and McCaffrey (2002) do for clusters.

The error of the effect is then the sum of two independent t variables (Behrens-Fisher). What
differs by seed and document at once is counted in both parts, which errs to the safe side.
"""

import math
from typing import NamedTuple

import numpy as np

from distill_jax.study.student_t import (
    T,
    detectable_shift,
    sum_quantile,
    sum_tail,
    t_table,
)

POWER = 0.95  # of the minimum detectable effect
CHUNK = 2**22  # weights of documents drawn at a time
MOST_SEEDS = 100_000  # that are ever asked for


class Spread(NamedTuple):
    """An effect and the parts of its variance, all of the mean over seeds.

    effect                nats a token, treatment - baseline; negative is better.
    seeds, documents      how many carry it.
    seed_variance         None with one seed.
    document_variance     None with one document.
    interaction_variance  the share of document_variance that falls with more seeds.
    document_dof          degrees of freedom of document_variance.
    """

    effect: float
    seeds: int
    documents: int
    seed_variance: float | None
    document_variance: float | None
    interaction_variance: float
    document_dof: float

    @property
    def known(self) -> bool:
        """Whether both variances could be estimated."""
        return self.seed_variance is not None and self.document_variance is not None


def document_weights(rng: np.random.Generator, documents: int, resamples: int):
    """Yields [b, D]: how often each document was drawn, in chunks of all resamples."""
    size = max(1, CHUNK // max(documents, 1))
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        yield rng.multinomial(documents, np.full(documents, 1 / documents), size=rows)


def drawn_effects(
    total_KD: np.ndarray, count_KD: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """[resamples, K] effects of K slices, each draw of documents shared by all of them.

    NaN where a draw holds no token of a slice.
    """
    effects = []
    for weight_bD in document_weights(rng, total_KD.shape[1], resamples):
        weight_bD = weight_bD.astype(np.float64)
        count_bK = weight_bD @ count_KD.T
        total_bK = weight_bD @ total_KD.T
        effects.append(np.where(count_bK > 0, total_bK / np.maximum(count_bK, 1), np.nan))
    return np.concatenate(effects)


def document_shares(share_D: np.ndarray) -> tuple[float, float]:
    """(correction, degrees of freedom) of a variance over documents with these shares of tokens.

    With r_d = share_d * (y_d - mean), where y has equal variance, the sum of r_d^2 falls short of
    the mean's variance by the first number, and is distributed like a scaled chi-squared variable
    with the second: trace(M)^2 / trace(M^2) for the matrix M of that quadratic form. With D equal
    shares they are D / (D - 1) and D - 1.
    """
    s2, s3, s4 = (float(np.sum(share_D**power)) for power in (2, 3, 4))
    trace = float(np.sum(share_D**2 * (1 - 2 * share_D + s2)))
    own = (1 + s2 - 2 * share_D) ** 2 - (s2 - 2 * share_D) ** 2
    square = s2**4 + 2 * s2 * s4 - 4 * s2**2 * s3 + 2 * s3**2 + float(np.sum(share_D**4 * own))
    return s2 / trace, trace**2 / square


def spread_of(total_SD: np.ndarray, count_D: np.ndarray, drawn_b: np.ndarray) -> Spread:
    """The effect of one slice and its variances.

    total_SD  nats, treatment - baseline, of each seed's document.
    count_D   tokens; documents without a token of the slice are ignored.
    drawn_b   the slice's effects by drawn_effects.
    """
    has_D = count_D > 0
    total_SD, count_D = total_SD[:, has_D], count_D[has_D]
    seeds, documents = total_SD.shape
    tokens = count_D.sum()
    effect_S = total_SD.sum(axis=1) / tokens
    seed_variance = float(effect_S.var(ddof=1) / seeds) if seeds > 1 else None
    document_variance, interaction, dof = None, 0.0, 1.0
    if documents > 1:
        correction, dof = document_shares(count_D / tokens)
        document_variance = float(np.nanvar(drawn_b) * correction)
        if seeds > 1:
            residual_SD = (total_SD - effect_S[:, None] * count_D) / tokens
            residual_SD = residual_SD - residual_SD.mean(axis=0)
            interaction = float(np.sum(residual_SD**2) / (seeds * (seeds - 1)) * correction)
            interaction = min(interaction, document_variance)
    return Spread(
        float(effect_S.mean()),
        seeds,
        documents,
        seed_variance,
        document_variance,
        interaction,
        dof,
    )


def spreads(
    total_KSD: np.ndarray, count_KD: np.ndarray, *, resamples: int, seed: int
) -> list[Spread]:
    """The Spread of each of K slices. Every slice has at least one token."""
    rng = np.random.default_rng(seed)
    drawn_bK = drawn_effects(total_KSD.mean(axis=1), count_KD, resamples, rng)
    return [spread_of(total_KSD[k], count_KD[k], drawn_bK[:, k]) for k in range(len(count_KD))]


def _errors(spread: Spread) -> tuple[T, T]:
    """The errors by seeds and by documents."""
    return (
        t_table(spread.seeds - 1, math.sqrt(spread.seed_variance)),
        t_table(spread.document_dof, math.sqrt(spread.document_variance)),
    )


def interval(spread: Spread, confidence: float) -> tuple[float, float] | tuple[None, None]:
    """(low, high) that holds the true effect with this confidence; None where unknown."""
    if not spread.known:
        return None, None
    half = sum_quantile((1 + confidence) / 2, *_errors(spread))
    return spread.effect - half, spread.effect + half


def chance_of_more(spread: Spread, margin: float) -> float | None:
    """One-sided p: how likely an effect this high is where the true one is `margin`."""
    if not spread.known:
        return None
    return sum_tail(spread.effect - margin, *_errors(spread))


def resolution(spread: Spread, confidence: float, seeds: int | None = None) -> float | None:
    """The distance from a boundary that is found with the power POWER, in nats a token.

    seeds: how many there would be; None: as many as there are. The two parts add as squares, which
    is exact where one of them is 0 and a little too large between.
    """
    if not spread.known:
        return None
    share = 1.0 if seeds is None else spread.seeds / seeds
    of_documents = spread.document_variance - spread.interaction_variance * (1 - share)
    by_seeds = detectable_shift((seeds or spread.seeds) - 1, confidence, POWER)
    by_documents = detectable_shift(spread.document_dof, confidence, POWER)
    return math.sqrt(by_seeds**2 * spread.seed_variance * share + by_documents**2 * of_documents)


def seeds_for(spread: Spread, target: float, confidence: float, minimum: int) -> int | None:
    """The fewest seeds that resolve `target`; None where no number of them does."""
    resolves = lambda seeds: resolution(spread, confidence, seeds) <= target
    if not spread.known or not resolves(MOST_SEEDS):
        return None
    low, high = minimum - 1, max(minimum, 2)
    while not resolves(high):
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if resolves(middle) else (middle, high)
    return high


def documents_for(spread: Spread, target: float, confidence: float) -> int:
    """About how many documents leave half of target^2 to the seeds, whose number is then free."""
    by_documents = detectable_shift(spread.document_dof, confidence, POWER)
    lasting = spread.document_variance - spread.interaction_variance
    return math.ceil(spread.documents * 2 * by_documents**2 * lasting / target**2)
