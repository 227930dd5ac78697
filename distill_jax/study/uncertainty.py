"""How far an effect may be from the truth: seeds and documents are chance, tokens never.

Every seed's models read the same documents: the two are crossed, not nested (Owen 2007,
0712.1111). The variance of the effect is V_s + V_d - V_i:

  V_s  of the mean over seeds, from the seeds' own effects, with R - 1 degrees of freedom. It
       holds all that changes from run to run, and what differs by seed and document at once.
  V_d  over documents, of the mean over seeds, corrected and its degrees of freedom counted for
       unequal weights as Bell and McCaffrey (2002) do for clusters.
  V_i  what differs by seed and document at once; it is in both of them, and counted once.

Half the interval is sqrt(t_s^2 V_s + t_d^2 max(V_d - V_i, 0)), with the quantiles of Student's t
(Cochran 1964 for two variances that are known with different precision). Nothing is drawn: the
same scores give the same interval, bit for bit, whatever documents are called.
Letters as in paired.py: R seeds, U units.
"""

import math
from bisect import bisect_left
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import nctdtr, stdtrit
from scipy.stats import chi2

POWER = 0.95  # of the smallest effect, and of the plan
FAR = 1e4  # standard errors
PLAN_BOUND = 0.85  # one-sided confidence of the seed variance that a plan assumes
FEWEST_EFFECTIVE = 1.01  # below it one document is all, and has no variance
SMALLEST_P = 1e-15
MOST_SEEDS = 100_000  # that are ever asked for


class Spread(NamedTuple):
    """An effect and its variances, all of the mean over seeds.

    effect                per weight, treatment - baseline; negative is better.
    documents             units with weight.
    effective_documents   1 / sum(share^2): as many equal ones would vary as much.
    seed_variance         None with one seed.
    document_variance     None with one document, or where one is nearly all of the weight.
    interaction_variance  the part of document_variance that is in seed_variance too.
    document_dof          degrees of freedom of document_variance.
    skewness              of the mean over documents; negative: a few gain far more than others.
    differing             units on which the arms have different scores in any seed.
    """

    effect: float
    seeds: int
    documents: int
    effective_documents: float
    seed_variance: float | None
    document_variance: float | None
    interaction_variance: float
    document_dof: float
    skewness: float
    differing: int

    @property
    def known(self) -> bool:
        """Whether both variances could be estimated."""
        return self.seed_variance is not None and self.document_variance is not None

    @property
    def lasting_variance(self) -> float:
        """What documents add that no number of seeds removes."""
        return max(self.document_variance - self.interaction_variance, 0.0)


def document_shares(share_U: np.ndarray) -> tuple[float, float]:
    """(correction, degrees of freedom) of a variance over documents with these shares of weight.

    With r_u = share_u * (y_u - mean), where y has equal variance, the sum of r_u^2 falls short of
    the mean's variance by the first number, and is distributed like a scaled chi-squared variable
    with the second: trace(M)^2 / trace(M^2) for the matrix M of that quadratic form. With U equal
    shares they are U / (U - 1) and U - 1.
    """
    s2, s3, s4 = (float(np.sum(share_U**power)) for power in (2, 3, 4))
    trace = float(np.sum(share_U**2 * (1 - 2 * share_U + s2)))
    own = (1 + s2 - 2 * share_U) ** 2 - (s2 - 2 * share_U) ** 2
    square = s2**4 + 2 * s2 * s4 - 4 * s2**2 * s3 + 2 * s3**2 + float(np.sum(share_U**4 * own))
    return s2 / trace, trace**2 / square


def spread_of(total_RU: np.ndarray, weight_U: np.ndarray) -> Spread:
    """The effect of one slice and its variances; units without weight are ignored.

    total_RU: treatment - baseline; at least one unit has weight.
    """
    has_U = weight_U > 0
    total_RU, weight_U = total_RU[:, has_U], weight_U[has_U]
    order_U = np.lexsort((*total_RU, weight_U))  # sums then do not depend on the documents' order
    weight = float(weight_U[order_U].sum())
    total_RU, share_U = total_RU[:, order_U] / weight, weight_U[order_U] / weight
    seeds, documents = total_RU.shape
    effect_R = total_RU.sum(axis=1)
    effect = float(effect_R.mean())
    seed_variance = float(effect_R.var(ddof=1) / seeds) if seeds > 1 else None
    effective = 1 / float(np.sum(share_U**2))
    document_variance, interaction, dof, skewness = None, 0.0, 1.0, 0.0
    if documents > 1 and effective >= FEWEST_EFFECTIVE:
        correction, dof = document_shares(share_U)
        residual_RU = total_RU - effect_R[:, None] * share_U
        residual_U = residual_RU.mean(axis=0)
        square = float(np.sum(residual_U**2))
        document_variance = square * correction
        skewness = skewness_of(residual_U, share_U)
        if seeds > 1:
            by_both = float(np.sum((residual_RU - residual_U) ** 2)) / (seeds * (seeds - 1))
            interaction = min(by_both * correction, document_variance)
    variances = seed_variance, document_variance, interaction
    differing = int(np.count_nonzero((total_RU != 0).any(axis=0)))
    return Spread(effect, seeds, documents, effective, *variances, dof, skewness, differing)


def skewness_of(residual_U: np.ndarray, share_U: np.ndarray) -> float:
    """The skewness of a mean over documents, residual_U being what each contributes.

    Of two estimates the smaller, or 0 where they differ in sign: sum(r^3) / sum(r^2)^1.5, which
    sees every long document as skewed, and that of the scores times sum(s^3) / sum(s^2)^1.5, which
    sees every odd score of a short one.
    """
    score_U = residual_U / share_U
    own = _third(residual_U, np.ones(len(share_U)))
    by_score = _third(score_U, share_U) * _third(share_U, np.ones(len(share_U)))
    return math.copysign(min(abs(own), abs(by_score)), own) if own * by_score > 0 else 0.0


def _third(values_U: np.ndarray, weight_U: np.ndarray) -> float:
    scale = float(np.sum(weight_U * values_U**2)) ** 1.5
    return float(np.sum(weight_U * values_U**3)) / scale if scale > 0 else 0.0


def half_width(spread: Spread, tail: float) -> float:
    """The distance that the error exceeds with the chance `tail` on one side."""
    by_seeds = stdtrit(spread.seeds - 1, tail) ** 2 * spread.seed_variance
    return math.sqrt(by_seeds + stdtrit(spread.document_dof, tail) ** 2 * spread.lasting_variance)


def interval(spread: Spread, confidence: float) -> tuple[float, float] | tuple[None, None]:
    """(low, high) that holds the true effect with this confidence; None where unknown.

    >>> total_RU = np.array([[2.0, 4.0, 3.0], [3.0, 4.0, 4.0]])  # two seeds, three documents
    >>> [round(end, 2) for end in interval(spread_of(total_RU, np.ones(3)), 0.95)]
    [-1.25, 7.92]
    """
    if not spread.known:
        return None, None
    half = half_width(spread, (1 - confidence) / 2)
    return spread.effect - half, spread.effect + half


def p_above(spread: Spread, bound: float) -> float:
    """One-sided p of a true effect of at most `bound`: the tail at which the interval touches it.

    Not below 1e-15. Without any variance it is 0 or 1.
    """
    distance = spread.effect - bound
    if distance == 0 or half_width(spread, 0.25) == 0:
        return 0.5 if half_width(spread, 0.25) else float(distance <= 0)
    beyond = lambda log_tail: half_width(spread, math.exp(log_tail)) - abs(distance)
    lowest = math.log(SMALLEST_P)
    small = math.exp(brentq(beyond, lowest, math.log(0.5)) if beyond(lowest) > 0 else lowest)
    return small if distance > 0 else 1 - small


def p_below(spread: Spread, bound: float) -> float:
    """One-sided p of a true effect of at least `bound`."""
    return p_above(spread._replace(effect=-spread.effect), -bound)


def detectable_shift(dof: float, tail: float) -> float:
    """The true effect, in standard errors, that a t test finds with the power POWER.

    tail: of its one side. The noncentral t distribution.
    """
    critical = -stdtrit(dof, tail)
    if critical > FAR:  # the normal part no longer counts, and scipy gives NaN
        return float(critical * math.sqrt(chi2.ppf(POWER, dof) / dof))
    missed = lambda shift: nctdtr(dof, shift, critical) - (1 - POWER)
    high = critical + 4.0
    while missed(high) > 0:
        high *= 2
    return float(brentq(missed, 0.0, high, xtol=1e-6))


def resolution(
    spread: Spread, confidence: float, *, seeds: int | None = None, factor: float = 1.0
) -> float:
    """The distance from a boundary that is found with the power POWER.

    seeds: how many there would be; None: as many as there are. factor: of the seed variance. The
    two parts add as squares, which is exact where one of them is 0 and near it between.
    """
    seeds, tail = seeds or spread.seeds, (1 - confidence) / 2
    by_seeds = detectable_shift(seeds - 1, tail) ** 2 * spread.seed_variance * spread.seeds / seeds
    by_documents = detectable_shift(spread.document_dof, tail) ** 2 * spread.lasting_variance
    return math.sqrt(by_seeds * factor + by_documents)


def variance_factor(seeds: int, tail: float) -> float:
    """Times the variance that so many seeds show, the true one is exceeded with chance `tail`."""
    return float((seeds - 1) / chi2.ppf(tail, seeds - 1))


def seeds_for(spread: Spread, target: float, confidence: float, minimum: int) -> int | None:
    """The fewest seeds that resolve `target`; None where no number of them does.

    The seed variance is taken at its upper bound of confidence PLAN_BOUND: that of three seeds
    may easily be a tenth of the true one.
    """
    factor = variance_factor(spread.seeds, 1 - PLAN_BOUND)
    resolves = lambda n: resolution(spread, confidence, seeds=n, factor=factor) <= target
    if not resolves(MOST_SEEDS - 1):
        return None
    candidates = range(minimum, MOST_SEEDS)
    return candidates[bisect_left(candidates, True, key=resolves)]


def documents_for(spread: Spread, target: float, confidence: float) -> int:
    """About how many documents let a moderate number of seeds resolve `target`.

    Of resolution^2, a sum of two parts, the documents' then is half of target^2.
    """
    by_documents = detectable_shift(spread.document_dof, (1 - confidence) / 2)
    return math.ceil(spread.documents * 2 * by_documents**2 * spread.lasting_variance / target**2)
