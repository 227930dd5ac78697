"""Slices, copies and names: where a verdict goes wrong although its arithmetic is right."""

import numpy as np

from experiments.verdict_audit import worlds
from experiments.verdict_audit.tally import (
    SLICE_MARGIN,
    Tally,
    generators,
    judge,
    sides,
    tally,
    width,
    wrong,
)
from experiments.verdict_audit.worlds import WORLDS, Part

NORMAL = WORLDS["normal"]


def null_slices(seeds: int, documents: int, slices: int, studies: int, harm=SLICE_MARGIN):
    """Any failure, where every slice suffers exactly its margin (or `harm`) and the whole nothing.

    Half of the tokens lie in no slice and gain what the slices lose.
    """
    hits = [
        judge(*sliced(rng, seeds, documents, np.full(slices, harm)), world=NORMAL).failures
        for rng in generators(f"null slices {seeds} {documents} {slices} {harm}", studies)
    ]
    where = f"{slices} slices, each {harm:+.2f}"
    return [tally("any slice falsely failed", where, f"{seeds} x {documents}", hits, at_most=0.05)]


def sliced(rng, seeds, documents, harm_G) -> list[Part]:
    """A study with slices of these effects (G of them), of 2 tokens in each document.

    The whole has no effect. Runs vary as a whole and in each slice by itself.
    """
    shared_ARE = worlds.crossed(rng, seeds, documents, [0.0], seed=0.01, document=0.03)
    parts = []
    for name, effect in [
        ("outside", -float(np.mean(harm_G))),
        *((f"slice{g}", harm) for g, harm in enumerate(harm_G)),
    ]:
        own_ARE = worlds.crossed(rng, seeds, documents, [effect], seed=0.02, document=0.1)
        each = 2 * len(harm_G) if name == "outside" else 2
        parts.append(Part(name, shared_ARE + own_ARE, np.full(documents, each)))
    return [whole(*parts), *parts[1:]]


def whole(*parts: Part) -> Part:
    weight_E = sum(part.weight_E for part in parts)
    return Part("all", sum(part.value_ARE * part.weight_E for part in parts) / weight_E, weight_E)


def heavy_tokens(seeds: int, documents: int, studies: int, share: float = 0.02) -> list[Tally]:
    """A slice of one token in each document, which suffers exactly the margin on average.

    2% of its tokens gain 5, so that the others lose more than the margin; in many studies none of
    those is seen, and nothing in the scores tells.
    """
    failed, untestable = [], []
    for rng in generators(f"heavy tokens {seeds} {documents}", studies):
        noise_ARE = worlds.crossed(
            rng, seeds, documents, [SLICE_MARGIN], seed=0.01, document=0.02, interaction=0.02
        )
        noise_ARE[1] += 5 * (share - (rng.random(documents) < share))
        rare = Part("rare", 6 + noise_ARE, np.ones(documents, int))
        rest_ARE = worlds.crossed(rng, seeds, documents, [0.0])
        rest = Part("rest", rest_ARE, np.full(documents, 60))
        v = judge(whole(rare, rest), rare, world=NORMAL)
        failed.append(bool(v.failures))
        untestable.append(any(s.untestable is not None for s in v.slices))
    where, size = f"2% heavy tokens of {documents}", f"{seeds} x {documents}"
    return [
        tally("any slice falsely failed", where, size, failed, at_most=0.05),
        tally("slice called untestable", where, size, untestable),
    ]


def absent_slices(seeds: int, documents: int, studies: int, absent: int = 16) -> list[Tally]:
    """One harmed slice is found as often beside registered ones with a single token as alone."""
    alone, beside = [], []
    for rng in generators(f"absent slices {seeds} {documents}", studies):
        everything, harmed = sliced(rng, seeds, documents, np.array([0.1]))
        one_E = np.zeros(documents, int)
        one_E[0] = 1
        empty = [Part(f"absent{g}", harmed.value_ARE, one_E) for g in range(absent)]
        for parts, found in (([harmed], alone), ([harmed, *empty], beside)):
            registered = tuple(part.name for part in parts)
            v = judge(everything, *parts, world=NORMAL, registered=registered)
            found.append(any(failure.slice == harmed.name for failure in v.failures))
    size, rate = f"{seeds} x {documents}", sum(alone) / studies
    return [
        tally("harmed slice found", "alone", size, alone),
        tally("harmed slice found", f"beside {absent} absent ones", size, beside, at_least=rate),
    ]


COPIED_SEEDS = {
    "one seed twice": lambda rng, v_ARE: np.concatenate([v_ARE[:, :-1], v_ARE[:, :1]], 1),
    "one seed throughout": lambda rng, v_ARE: np.repeat(v_ARE[:, :1], v_ARE.shape[1], 1),
    "one seed throughout, to 6 digits": lambda rng, v_ARE: (
        np.repeat(v_ARE[:, :1], v_ARE.shape[1], 1) + 1e-6 * rng.standard_normal(v_ARE.shape)
    ),
    "one seed throughout, treatment alone": lambda rng, v_ARE: np.stack(
        [v_ARE[0], np.repeat(v_ARE[1, :1], v_ARE.shape[1], 0)]
    ),
}


def copied_seeds(studies: int, seeds: int = 5) -> list[Tally]:
    """Several seeds with the same records, or nearly so, are refused.

    Right-or-wrong answers to a few questions may agree by chance: there it takes more of them.
    """
    tallies = []
    for name, documents in {"normal": 100, "accuracy": 400}.items():
        for way, copy in COPIED_SEEDS.items():
            if name == "accuracy" and "digits" in way:
                continue  # right or wrong has none
            hits = []
            for rng in generators(f"copied seeds {name} {way}", studies):
                part = WORLDS[name].draw(rng, seeds, documents, 0.0)
                part = part._replace(value_ARE=copy(rng, part.value_ARE))
                hits.append(judge(part, world=WORLDS[name]).label == "INVALID")
            where, size = f"{name}, {way}", f"{seeds} x {documents}"
            tallies.append(tally("copied seeds are INVALID", where, size, hits, at_least=1.0))
    return tallies


def copied_documents(studies: int, seeds: int = 5, documents: int = 40) -> list[Tally]:
    """Every document five times under one `group`: as many errors as with one of each.

    mean: the interval's width by that of the study without copies.
    """
    group_E = np.repeat(np.arange(documents), 5)
    tallies = []
    for way, noise in {"the same scores": 0.0, "noise of their own": 0.05}.items():
        hits, ratios = [], []
        for side, rng in sides(f"copied documents {way}", studies):
            part = NORMAL.draw(rng, seeds, documents, -side * NORMAL.margin)
            value_ARE = np.repeat(part.value_ARE, 5, 2)
            value_ARE += worlds.normal(rng, noise, *value_ARE.shape)
            copies = Part("all", value_ARE, np.repeat(part.weight_E, 5))
            v = judge(copies, world=NORMAL, group_E=group_E)
            hits.append(wrong(v.label, side))
            ratios.append(width(v) / width(judge(part, world=NORMAL)))
        where, mean = f"5 copies of a document, {way}", float(np.mean(ratios))
        size = f"{seeds} x {documents}"
        tallies.append(tally("false label", where, size, hits, at_most=0.025, mean=mean))
    return tallies


def renamed(studies: int, seeds: int = 4, documents: int = 50) -> list[Tally]:
    """Documents get other names and another order; the interval ends just beside the margin."""
    labels, intervals = [], []
    for rng in generators("renamed", studies):
        part = NORMAL.draw(rng, seeds, documents, 0.0)
        v = judge(part, world=NORMAL)
        beside = rng.uniform(-1e-3, 1e-3) * width(v)
        part.value_ARE[1] += -NORMAL.margin - v.interval[1] + beside
        order_E = rng.permutation(documents)
        mixed = Part("all", part.value_ARE[:, :, order_E], part.weight_E[order_E])
        names_E = np.char.add("text", rng.permutation(documents).astype(str))
        one, other = judge(part, world=NORMAL), judge(mixed, world=NORMAL, names_E=names_E)
        labels.append(one.label != other.label)
        intervals.append(not np.allclose(one.interval, other.interval, rtol=0, atol=1e-9))
    where, size = "documents renamed", f"{seeds} x {documents}"
    return [
        tally("the label moves", where, size, labels, at_most=0.0),
        tally("the interval moves", where, size, intervals, at_most=0.0),
    ]
