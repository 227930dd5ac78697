"""What a verdict's scores cannot carry: few or skewed documents, few seeds, one that decides."""

import numpy as np

from distill_jax.study.paired import Paired, Scores
from distill_jax.study.rules import NLL, Rules, decide
from distill_jax.study.slice_harm import LARGEST_SKEWNESS
from distill_jax.study.uncertainty import Spread, half_width, spread_of
from distill_jax.words import plural

LEFT_OUT = 3  # documents with the largest loss, gain and weight that are left out in turn
FEW_DOCUMENTS = 20  # effective ones; fewer are warned of
FEW_SEEDS = 5  # fewer are warned of
RARE_RUN = 0.2  # share of bad runs in that warning
ONE_TOKEN_SHARE = 0.9  # of documents with one counted token, from which on tokens are suspected
ONE_TOKEN_DOCUMENTS = 20  # fewer documents than this are not suspected


def warnings_of(
    scores: Scores, paired: Paired, spread: Spread, rules: Rules, label: str | None, alpha: float
) -> tuple[str, ...]:
    """Sentences. label: that of the mean; None where there were too few seeds to give one."""
    found = [*paired.warnings]
    if spread.effective_documents < FEW_DOCUMENTS:
        found.append(
            f"only {spread.effective_documents:.3g} effective documents of {spread.documents} "
            "(those of unequal size count less): the interval may be too narrow; hold out at "
            f"least {FEW_DOCUMENTS} of similar size"
        )
    for what, other in deciding_ones(paired, spread, label, rules, alpha) if label else ():
        found.append(
            f"{what} alone decides the label: without it the mean would say {other}; look at it"
        )
    if abs(spread.skewness) > LARGEST_SKEWNESS:
        found.append(
            f"a few documents {'lose' if spread.skewness > 0 else 'gain'} far more than the others "
            f"(skewness {abs(spread.skewness):.2f} of the mean), and other documents may have more "
            "or fewer of them: hold out more"
        )
    if spread.seeds < FEW_SEEDS:
        found.append(
            f"{plural(spread.seeds, 'seed')} can miss bad runs: a failure of 1 run in "
            f"{1 / RARE_RUN:.0f} is missed with chance {(1 - RARE_RUN) ** spread.seeds:.0%}; "
            f"run {FEW_SEEDS} seeds or more"
        )
    if share := one_token_share(scores, rules):
        found.append(
            f"{share:.0%} of the documents have one token: if they are the tokens of longer texts "
            "they are not independent; give the text they come from as their group"
        )
    return tuple(found)


def deciding_ones(
    paired: Paired, spread: Spread, label: str, rules: Rules, alpha: float
) -> list[tuple[str, str]]:
    """(document or seed, label without it) of those that change the label of the mean.

    Documents with the largest losses, gains and weights are left out in turn, and seeds where three
    are there; quantiles are those of all seeds, so that only the scores count.
    """
    total_RU, weight_U = paired.total_PRU[0], paired.weight_PU[0]
    moves_U = total_RU.mean(axis=0) - spread.effect * weight_U
    ends = (np.argsort(moves_U), np.argsort(-moves_U), np.argsort(-weight_U))
    rest = {
        f"document {paired.units[u]}": (np.delete(total_RU, u, 1), np.delete(weight_U, u))
        for u in np.unique([order_U[:LEFT_OUT] for order_U in ends])
    }
    if spread.seeds > 2:
        for r, seed in enumerate(paired.seeds):
            rest[f"seed {seed}"] = np.delete(total_RU, r, 0), weight_U
    found = []
    for name, (total, weight) in rest.items():
        without = spread_of(total, weight)
        if without.known:
            half = half_width(without._replace(seeds=spread.seeds), alpha / 2)
            other = decide((without.effect - half, without.effect + half), rules, without.differing)
            found += [(name, other)] if other != label else []
    return found


def one_token_share(scores: Scores, rules: Rules) -> float:
    """The share of documents that look like tokens of longer texts; 0 where none are suspected.

    Only a likelihood is suspected: an example that is right or wrong has one weight by nature.
    """
    weight_E = scores.weight_PE[0][scores.weight_PE[0] > 0]
    share = float(np.mean(weight_E <= 1))
    suspected = len(weight_E) >= ONE_TOKEN_DOCUMENTS and share >= ONE_TOKEN_SHARE
    return share if rules.unit == NLL and scores.group_E is None and suspected else 0.0
