"""Which single document or seed the label hangs on."""

import numpy as np

from distill_jax.study.paired import Paired
from distill_jax.study.rules import decide
from distill_jax.study.uncertainty import Spread, half_width, spread_of

LEFT_OUT = 3  # documents with the largest loss, gain and weight that are left out in turn


def deciding_ones(
    paired: Paired, spread: Spread, label: str, margin: float, alpha: float
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
            other = decide((without.effect - half, without.effect + half), margin)
            found += [(name, other)] if other != label else []
    return found
