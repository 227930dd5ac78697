"""What a verdict is, and its one sentence with the numbers to act on."""

from typing import NamedTuple

from distill_jax.study.bootstrap import POWER, Spread, documents_for
from distill_jax.study.slice_harm import Failure, SliceEffect

INVALID = "INVALID"
HELPS = "HELPS"
NO_BETTER = "NO BETTER"
WORSE = "WORSE"
INCONCLUSIVE = "INCONCLUSIVE"
NEW_FAILURE = "NEW FAILURE MODE IN "  # and the slice


class Verdict(NamedTuple):
    """What is known about a treatment against a baseline; what could not be estimated is None.

    effect, interval           nats a token, treatment - baseline; negative is better.
    minimum_detectable_effect  nats a token: a true improvement this large is found with 95% power.
    seeds_needed               where INCONCLUSIVE: the fewest seeds with which a true effect of 0,
                               or the one seen, is told from the margin with 95% power.
    slices                     every registered slice; failures are the harmed ones, worst first.
    """

    label: str
    reason: str
    effect: float | None = None
    interval: tuple[float, float] | tuple[None, None] = (None, None)
    minimum_detectable_effect: float | None = None
    seeds_needed: int | None = None
    failures: tuple[Failure, ...] = ()
    seeds: int = 0
    slices: tuple[SliceEffect, ...] = ()
    treatment: str = "kd"
    baseline: str = "sft"
    confidence: float = 0.95
    margin: float = 0.0
    slice_margin: float = 0.0


def sentence(v: Verdict, spread: Spread, target: float, minimum_seeds: int, repeats: int) -> str:
    """The reason of a valid verdict. target: the distance that seeds_needed resolves."""
    parts = [measured(v, spread, repeats), decided(v, spread, target, minimum_seeds)]
    if v.failures:
        parts.append(harmed(v))
    return "; ".join(parts)


def plural(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def measured(v: Verdict, spread: Spread, repeats: int) -> str:
    low, high = v.interval
    bounds = (
        "no interval"
        if low is None
        else f"{100 * v.confidence:g}% interval {low:+.4g} to {high:+.4g}"
    )
    again = f", {plural(repeats, 'repeated one')} left out" if repeats else ""
    return (
        f"{v.treatment} - {v.baseline} is {v.effect:+.4g} nats a token ({bounds}; "
        f"{plural(spread.seeds, 'seed')}, {plural(spread.documents, 'document')}{again})"
    )


def decided(v: Verdict, spread: Spread, target: float, minimum_seeds: int) -> str:
    """What follows from the interval of the mean, and what to do."""
    low, high = v.interval
    if spread.documents < 2:
        return "one document cannot show how documents differ: hold out more of them"
    if spread.seeds < 2:
        return (
            "one seed cannot show how seeds differ, so neither an interval nor a detectable effect "
            f"is known: run at least {minimum_seeds} seeds"
        )
    if spread.seeds < minimum_seeds:
        return f"fewer seeds than the minimum of {minimum_seeds}: {wanted(v, spread, target)}"
    if high < -v.margin:
        return f"an improvement beyond the margin of {v.margin:g} is shown"
    if low > v.margin:
        return f"harm beyond the margin of {v.margin:g} is shown: do not ship {v.treatment}"
    if low >= -v.margin:
        return f"an improvement beyond the margin of {v.margin:g} is excluded: keep {v.baseline}"
    return f"against the margin of {v.margin:g} this decides nothing: {wanted(v, spread, target)}"


def wanted(v: Verdict, spread: Spread, target: float) -> str:
    """How large a study would decide."""
    power = f"{POWER:.0%} power finds {v.minimum_detectable_effect:.4g} nats or more"
    if v.seeds_needed is not None:
        return f"{power}, run at least {plural(v.seeds_needed, 'seed')}"
    if target == 0:
        return f"{power}, set a margin above 0"
    enough = documents_for(spread, target, v.confidence)
    return f"{power}, no number of seeds suffices, hold out about {plural(enough, 'document')}"


def harmed(v: Verdict) -> str:
    worst, *others = v.failures
    more = f" and {', '.join(f.slice for f in others)}" if others else ""
    return (
        f"{worst.slice}{more} suffers more than the slice margin of {v.slice_margin:g}, worst "
        f"{worst.effect:+.4g} nats a token on {worst.slice} (adjusted p {worst.adjusted_p:.2g}): "
        "read its examples before shipping"
    )
