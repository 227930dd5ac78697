"""Simulated studies whose truth is known: tables of measured documents by arm, seed and slice."""

import numpy as np

from distill_jax.study.paired import Arm, Scores

LENGTHS = {
    "equal": lambda rng, d: np.full(d, 200),
    "lognormal": lambda rng, d: 1 + rng.lognormal(4.0, 1.2, d).astype(int),
    "pareto": lambda rng, d: np.minimum(20 * (1 + rng.pareto(1.3, d)), 200_000).astype(int),
}


def study(
    rng,
    *,
    seeds=3,
    documents=100,
    by_seed=0.02,
    by_document=0.2,
    by_both=0.1,
    effect=0.0,
    lengths="lognormal",
    weight_D=None,
):
    """The table of kd and sft. by_*: nats per token, deviations of the arms' difference."""
    if weight_D is None:
        weight_D = LENGTHS[lengths](rng, documents)
    hard_D = rng.normal(20.0, 0.5, documents)
    nll_ASD = np.tile(hard_D, (2, seeds, 1))
    nll_ASD += rng.normal(0, by_seed / np.sqrt(2), (2, seeds, 1))
    nll_ASD += rng.normal(0, by_both / np.sqrt(2), nll_ASD.shape)
    nll_ASD[0] += effect + rng.normal(0, by_document, documents)
    return as_table(nll_ASD, weight_D)


def as_table(nll_ASD, weight_D, arms=("kd", "sft"), name="all"):
    """Rows of one slice. nll_ASD: nats per token."""
    a, s, d = (index.ravel() for index in np.indices(nll_ASD.shape))
    return {
        "arm": np.array(arms)[a],
        "seed": s,
        "document": d,
        "slice": np.full(len(a), name),
        "total": (nll_ASD * weight_D).ravel(),
        "weight": np.broadcast_to(weight_D, nll_ASD.shape).ravel(),
    }


def as_scores(nll_ASD, weight_D, arms=("kd", "sft")):
    """The same for the engine that takes arrays."""
    seeds = tuple(str(s) for s in range(nll_ASD.shape[1]))
    total_APSD = (nll_ASD * weight_D)[:, None]
    found = {name: Arm(seeds, total_PSD) for name, total_PSD in zip(arms, total_APSD, strict=True)}
    return Scores(("all",), weight_D[None].astype(float), found)


def joined(*tables):
    return {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}


def rows(table, keep):
    return {name: column[keep] for name, column in table.items()}


def sliced(rng, *, slices=30, seeds=3, documents=200, by_seed=0.02, by_both=0.05, effect=0.0):
    """Whole documents and their parts in `slices` slices; returns arrays to change and tabulate.

    nll_ASKD nats per token, weight_KD tokens. Every slice has own differences by seed, beside one
    that all slices share.
    """
    weight_KD = rng.poisson(rng.lognormal(1.0, 1.0, (slices, documents)))
    nll_ASKD = np.tile(rng.normal(20.0, 0.5, (slices, documents)), (2, seeds, 1, 1))
    nll_ASKD += rng.normal(0, by_seed / 2, (2, seeds, 1, 1))
    nll_ASKD += rng.normal(0, by_seed / 2, (2, seeds, slices, 1))
    nll_ASKD += rng.normal(0, by_both / np.sqrt(2), nll_ASKD.shape)
    nll_ASKD[0] += effect
    return nll_ASKD, weight_KD


def sliced_table(nll_ASKD, weight_KD):
    """The table of `sliced`: each slice, and the whole as their sum."""
    weight_D = weight_KD.sum(axis=0)
    total_ASD = (nll_ASKD * weight_KD).sum(axis=2)
    parts = [
        as_table(nll_ASKD[:, :, k], weight_KD[k], name=f"part:{k}") for k in range(len(weight_KD))
    ]
    return joined(as_table(total_ASD / np.maximum(weight_D, 1), weight_D), *parts)
