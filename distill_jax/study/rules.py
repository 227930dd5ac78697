"""What is decided before the first run: margins, levels, slices, and what earns which label."""

import difflib
import math
from collections.abc import Sequence
from typing import NamedTuple

from distill_jax.types import UserError

INVALID = "INVALID"
HELPS = "HELPS"
NO_BETTER = "NO BETTER"
WORSE = "WORSE"
INCONCLUSIVE = "INCONCLUSIVE"
NLL = "nats per token"
FEWEST_DIFFERING = 10  # documents on which arms differ, below which nothing is ruled out
MOST_LOOKS = 40
LEAST_LEVEL = 1e-15  # that 1 - level can still be told from 1 by a computer
MINIMUM_DOCUMENTS = 50  # effective ones, below which a slice is not tested
MINIMUM_WEIGHT = 150  # tokens or examples


Bounds = tuple[float, float] | tuple[None, None]


class Rules(NamedTuple):
    """What is decided before the first run.

    margin            the smallest difference per weight that matters, 0 or more.
    slice_margin      harm that a slice may suffer.
    confidence        of the whole study, over all looks and comparisons.
    minimum_seeds     below which nothing is decided.
    higher_is_better  False for a likelihood, True for accuracy.
    unit              of a score per weight, for the sentences.
    look              None: the number of seeds was fixed in advance. 1, 2, ...: the how manyth
                      time that the study, to which seeds are added, is looked at.
    registered        slices to test for harm; None: all that were measured.
    known             names of slices that exist, though none of these documents is in them.
    minimum_documents, minimum_weight  below which a slice is not tested.
    non_negative      scores are 0 or more; None: where the unit is nats per token.
    furthest          apart that two scores can be, 1 for shares: no interval reaches further.
    """

    margin: float
    slice_margin: float
    confidence: float = 0.95
    minimum_seeds: int = 3
    higher_is_better: bool = False
    unit: str = NLL
    look: int | None = None
    registered: tuple[str, ...] | None = None
    known: tuple[str, ...] = ()
    minimum_documents: float = MINIMUM_DOCUMENTS
    minimum_weight: float = MINIMUM_WEIGHT
    non_negative: bool | None = None
    furthest: float = math.inf

    @property
    def sign(self) -> int:
        """Times a score: lower is better."""
        return -1 if self.higher_is_better else 1

    @property
    def likelihood(self) -> bool:
        """Whether scores are of a likelihood, of which no two models have the same."""
        return self.unit == NLL and not self.higher_is_better

    @property
    def lowest(self) -> float:
        """That a score can be, but for rounding."""
        known = self.likelihood if self.non_negative is None else self.non_negative
        return 0.0 if known else -math.inf


def check_rules(rules: Rules, treatment: str, baseline: str) -> None:
    """Refuses what would make the labels meaningless."""
    if treatment == baseline:
        raise UserError(f"treatment and baseline are both {treatment}: name two arms")
    for name in ("margin", "slice_margin", "minimum_documents", "minimum_weight"):
        value = getattr(rules, name)
        if not 0 <= value < math.inf:
            raise UserError(f"{name} is {value}: give a number of 0 or more")
    if not 0.5 <= (c := rules.confidence) < 1:
        raise UserError(f"confidence is {c}: give a share of at least 0.5 and below 1")
    if (n := rules.minimum_seeds) < 2:
        raise UserError(f"minimum_seeds is {n}: one seed cannot show how seeds differ, give 2")
    if rules.look is not None and not 1 <= rules.look <= MOST_LOOKS:
        raise UserError(f"look is {rules.look}: count looks from 1 on, to at most {MOST_LOOKS}")
    if level_at(rules.look, 1 - c) < LEAST_LEVEL:
        raise UserError(f"look {rules.look} has no level left at a confidence of {c}: look earlier")


def registered_slices(rules: Rules, slices: Sequence[str]) -> tuple[str, ...]:
    """The slices to test, of those that were measured. UserError: a name that nobody knows."""
    if rules.registered is None:
        return tuple(slices[1:])
    known = (*slices, *rules.known)
    names = tuple(name for name in dict.fromkeys(rules.registered) if name != slices[0])
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.0)[0]
            raise UserError(f"registered slice {name} is none of the slices: did you mean {near}?")
    return names


def level_at(look: int | None, alpha: float) -> float:
    """The part of the level that a look may spend: 0.8, 0.1, 0.05, 0.025, ... of alpha.

    They add up to alpha, so that a study may be looked at and given more seeds any number of times,
    and is wrong no more often than one that was looked at once. None: seeds were fixed in advance.

    >>> round(level_at(1, 0.05), 4), round(level_at(3, 0.05), 4)
    (0.04, 0.0025)
    """
    if look is None:
        return alpha
    return alpha * (0.8 if look == 1 else 0.1 * 0.5 ** (look - 2))


def possible(bounds: Bounds, rules: Rules) -> Bounds:
    """An interval of a difference without what no difference can be; (None, None) stays."""
    low, high = bounds
    return bounds if low is None else (max(low, -rules.furthest), min(high, rules.furthest))


def few_differ(rules: Rules, differing: int) -> bool:
    """Whether too few documents tell two arms apart to rule an improvement out.

    Of answers that are right or wrong, a few that differ make the interval too narrow; likelihoods
    that do not differ are of one model.
    """
    return not rules.likelihood and differing < FEWEST_DIFFERING


def decide(bounds: tuple[float, float], rules: Rules, differing: int) -> str:
    """The label of an interval; negative is better. differing: documents on which arms differ."""
    (low, high), margin = bounds, rules.margin
    if high < -margin:
        return HELPS
    if low > margin:
        return WORSE
    ruled_out = low >= -margin and not few_differ(rules, differing)
    return NO_BETTER if ruled_out else INCONCLUSIVE
