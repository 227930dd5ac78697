"""Paired ratios, their intervals, and the limit that each is held to."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from distill_jax.losses.divergences import DIVERGENCES
from experiments.benchmarks.contenders import PARTS, PEAKS, PRODUCTS
from experiments.benchmarks.shapes import Shape
from experiments.benchmarks.timing import Sample

RESAMPLES = 10_000
FORWARD_KL_LIMIT = {256: 1.25, 1024: 1.10}  # by the student's width
ELEMENTWISE_LIMIT = {256: 1.6, 1024: 1.20}
NAIVE_LIMIT = {32_000: 0.70, 128_000: 0.63}  # by the vocabulary
PARTS_LIMIT, EAGER_LIMIT, COMPILE_LIMIT = 1.10, 0.90, 1.0
PEER_LIMIT = 0.66  # published trainers
CACHED_LIMIT = {"cached_hidden": 0.70, "cached_top64": 0.60}
PEAK_SHARE = 0.65
Seconds = dict[str, dict[int, tuple[float, float]]]  # name -> round -> wall, CPU


class Spec(NamedTuple):
    """Seconds of `top`, added, over those of `bottom`, times `factor`; None: no limit is set."""

    what: str
    top: tuple[str, ...]
    bottom: tuple[str, ...]
    limit: float | None
    at_least: bool = False
    factor: float = 1.0


class Ratio(NamedTuple):
    """A median over rounds and the bounds of its 95% interval; `cpu` the median in CPU seconds.

    Bounds and cpu are None where a number was read and not timed.
    """

    what: str
    shape: str
    median: float
    low: float | None
    high: float | None
    cpu: float | None
    limit: float | None
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """met or missed, by the median; empty without a limit."""
        if self.limit is None:
            return ""
        met = self.median >= self.limit if self.at_least else self.median <= self.limit
        return "met" if met else "missed"


def paired(spec: Spec, shape: str, seconds: Seconds) -> Ratio | None:
    """One ratio per round, over the rounds that timed everything; None where there is none."""
    names = spec.top + spec.bottom
    if any(name not in seconds for name in names):
        return None
    rounds = sorted(set.intersection(*(set(seconds[name]) for name in names)))
    total = lambda names: sum(np.array([seconds[n][r] for r in rounds]) for n in names)
    wall, cpu = (spec.factor * total(spec.top) / total(spec.bottom)).T
    low, high = interval(wall)
    return Ratio(
        spec.what, shape, float(np.median(wall)), low, high, float(np.median(cpu)),
        spec.limit, spec.at_least,
    )  # fmt: skip


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the median over resampled rounds (Efron 1979)."""
    r = np.random.default_rng(seed)
    drawn = r.choice(values, (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)


def by_name(samples: Iterable[Sample]) -> Seconds:
    """Samples by name and round."""
    seconds: Seconds = {}
    for sample in samples:
        seconds.setdefault(sample.name, {})[sample.round] = (sample.wall_s, sample.cpu_s)
    return seconds


def ratios(shape: Shape, samples: Iterable[Sample], flops: dict[str, int]) -> list[Ratio]:
    """Every ratio that the timed programs allow. `flops`: of the step and of the peak products."""
    seconds = by_name(samples)
    specs = loss_specs(shape, seconds) + step_specs(shape)
    if "step" in seconds and set(PEAKS) <= set(seconds):
        seconds["peak"] = _seconds_per_flop(seconds, flops)
        what = "share of the matrix-product peak in the step"
        specs.append(Spec(what, ("peak",), ("step",), PEAK_SHARE, True, flops["step"]))
    found = [paired(spec, shape.name, seconds) for spec in specs]
    return [ratio for ratio in found if ratio]


def loss_specs(shape: Shape, seconds: Seconds) -> list[Spec]:
    """Each loss over the faster form of its matrix products."""
    timed = [name for name in PRODUCTS if name in seconds]
    if not timed:
        return []
    floor = min(timed, key=lambda name: np.median([wall for wall, _ in seconds[name].values()]))
    width = shape.student.width
    over = f"loss ÷ its matrix products, width {width}: "
    specs = [Spec(f"{over}forward_kl with CE", ("loss",), (floor,), FORWARD_KL_LIMIT.get(width))]
    for name in DIVERGENCES:
        elementwise = DIVERGENCES[name].row is None
        limit = ELEMENTWISE_LIMIT.get(width) if elementwise else None
        what = f"{over}{name}" + ("" if elementwise else " (by row)")
        specs.append(Spec(what, (f"loss_{name}",), (floor,), limit))
    return specs


def step_specs(shape: Shape) -> list[Spec]:
    """The whole step over what it is compared with."""
    vocab = shape.student.vocab
    step = ("step",)
    return [
        Spec("step ÷ sum of its parts", step, PARTS, PARTS_LIMIT),
        Spec(f"step ÷ naive, V {vocab:,}", step, ("naive",), NAIVE_LIMIT.get(vocab)),
        Spec("step ÷ torch eager", step, ("torch_eager",), EAGER_LIMIT),
        Spec("step ÷ torch.compile", step, ("torch_compile",), COMPILE_LIMIT),
        Spec("step ÷ Tunix", step, ("tunix",), PEER_LIMIT),
        Spec("step of KL alone ÷ TRL, GKD", ("step_kl",), ("trl_gkd",), PEER_LIMIT),
        Spec("step of KL alone ÷ TRL, chunked", ("step_kl",), ("trl_chunked",), PEER_LIMIT),
        Spec("step, cached hidden ÷ live", ("cached_hidden",), step, CACHED_LIMIT["cached_hidden"]),
        Spec("step, cached top-64 ÷ live", ("cached_top64",), step, CACHED_LIMIT["cached_top64"]),
    ]


def _seconds_per_flop(seconds: Seconds, flops: dict[str, int]) -> dict[int, tuple[float, float]]:
    """In each round those of the product that was fastest in it."""
    rounds = set.intersection(*(set(seconds[name]) for name in PEAKS))
    return {
        number: min(tuple(x / flops[name] for x in seconds[name][number]) for name in PEAKS)
        for number in rounds
    }
