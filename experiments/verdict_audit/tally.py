"""Counts of studies against what is promised, and how a drawn study is put to the verdict."""

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from distill_jax.study.verdict import verdict
from experiments.verdict_audit import worlds
from experiments.verdict_audit.worlds import BASELINE, TREATMENT, Part, World

SLICE_MARGIN = 0.05


class Tally(NamedTuple):
    """count of studies, and the rate that is promised: at most, or at least."""

    question: str
    world: str
    size: str
    count: int
    studies: int
    at_most: float | None = None
    at_least: float | None = None
    mean: float | None = None  # of a width or a number of seeds, where the question has one

    @property
    def bounds(self) -> tuple[float, float]:
        """The exact 95% binomial interval of the rate (Clopper and Pearson 1934)."""
        k, n = self.count, self.studies
        low = stats.beta.ppf(0.025, k, n - k + 1) if k else 0.0
        high = stats.beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
        return float(low), float(high)

    @property
    def kept(self) -> bool:
        """Whether the rate can be what was promised, as far as chance lets one say."""
        low, high = self.bounds
        too_often = self.at_most is not None and low > self.at_most
        too_seldom = self.at_least is not None and high < self.at_least
        return not (too_often or too_seldom)


def tally(question: str, world: str, size: str, hits: Sequence[bool], **promised) -> Tally:
    return Tally(question, world, size, sum(map(bool, hits)), len(hits), **promised)


def generators(name: str, studies: int) -> Iterator[np.random.Generator]:
    """One generator a study, the same in every run, so that two engines see the same studies."""
    start = zlib.crc32(name.encode())
    for i in range(studies):
        yield np.random.default_rng([start, i])


def sides(name: str, studies: int) -> Iterator[tuple[int, np.random.Generator]]:
    """The same, by turns for a treatment that is better (1) and one that is worse (-1)."""
    for i, rng in enumerate(generators(name, studies)):
        yield (-1 if i % 2 else 1), rng


def improvement(world: World, size: float) -> float:
    """The effect, treatment - baseline, of a treatment better by `size`."""
    return size if world.higher_is_better else -size


def wrong(label: str, side: int) -> bool:
    """Whether more was claimed than the margin, where the effect is the margin on that side."""
    return label == ("HELPS" if side > 0 else "WORSE")


def has_interval(v) -> bool:
    return v.interval is not None and None not in v.interval


def width(v) -> float:
    return v.interval[1] - v.interval[0]


def first_seeds(part: Part, seeds: int) -> Part:
    return part._replace(value_ARE=part.value_ARE[:, :seeds])


def judge(*parts: Part, world: World, group_E=None, names_E=None, **options):
    """The verdict on one study; options go to it as they are."""
    return verdict(
        worlds.table(*parts, group_E=group_E, names_E=names_E),
        treatment=TREATMENT,
        baseline=BASELINE,
        higher_is_better=world.higher_is_better,
        **{"margin": world.margin, "slice_margin": SLICE_MARGIN, **options},
    )
