"""What a verdict is, and its sentences with the numbers to act on."""

from collections.abc import Sequence
from typing import NamedTuple

from distill_jax.study.rules import NLL, Rules
from distill_jax.study.slice_harm import LARGEST_SKEWNESS, SliceEffect
from distill_jax.study.uncertainty import PLAN_BOUND, POWER, Spread, documents_for

NAMED = 3  # slices that a sentence names
FEW_DOCUMENTS = 20  # effective ones; fewer are warned of
FEW_SEEDS = 5  # fewer are warned of
RARE_RUN = 0.2  # share of bad runs in that warning


class Verdict(NamedTuple):
    """What is known about a treatment against a baseline; what could not be estimated is None.

    effect, interval      per weight in `unit`, treatment - baseline, as the scores count.
    confidence            that the interval has: less of the level is spent on one look, and on
                          one of several comparisons.
    minimum_detectable_effect  estimate of the true improvement that 95% power finds.
    minimum_detectable_range   (low, high) of that estimate: seeds tell their variance badly.
    seeds_needed          where INCONCLUSIVE: with so many seeds a true effect of 0 is told from
                          the margin with 95% power, were the seed variance at its upper bound.
    failures              the harmed slices, worst first; slices: every registered one.
    documents             units with weight; effective_documents: 1 / sum(share^2) of them.
    warnings              sentences on what the scores cannot carry.
    """

    label: str
    reason: str
    effect: float | None = None
    interval: tuple[float, float] | tuple[None, None] = (None, None)
    minimum_detectable_effect: float | None = None
    minimum_detectable_range: tuple[float, float] | tuple[None, None] = (None, None)
    seeds_needed: int | None = None
    failures: tuple[SliceEffect, ...] = ()
    seeds: int = 0
    documents: int = 0
    effective_documents: float = 0.0
    slices: tuple[SliceEffect, ...] = ()
    warnings: tuple[str, ...] = ()
    treatment: str = "kd"
    baseline: str = "sft"
    confidence: float = 0.95
    margin: float = 0.0
    slice_margin: float = 0.0
    unit: str = NLL
    higher_is_better: bool = False
    look: int | None = None


def plural(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def sentence(v: Verdict, spread: Spread, rules: Rules, copies: int, next_level: float) -> str:
    """The reason of a valid verdict.

    copies: documents that were added to another of their group. next_level: the confidence of the
    look that is planned.
    """
    parts = [measured(v, copies), decided(v, spread, rules, next_level)]
    if v.failures:
        parts.append(harmed(v))
    if untested := [row.slice for row in v.slices if row.untestable]:
        what = f"{len(untested)} of {plural(len(v.slices), 'registered slice')}"
        parts.append(f"{what} cannot be tested for harm ({listed(untested)})")
    return "; ".join(parts)


def measured(v: Verdict, copies: int) -> str:
    low, high = v.interval
    bounds = (
        "no interval"
        if low is None
        else f"{100 * v.confidence:.4g}% interval {low:+.4g} to {high:+.4g}"
    )
    look = "" if v.look is None else f" at look {v.look}"
    again = f" or groups, {copies:,} more in the same groups" if copies else ""
    return (
        f"{v.treatment} - {v.baseline} is {v.effect:+.4g} {v.unit} ({bounds}{look}; "
        f"{plural(v.seeds, 'seed')}, {plural(v.documents, 'document')}{again})"
    )


def decided(v: Verdict, spread: Spread, rules: Rules, next_level: float) -> str:
    """What follows from the interval of the mean, and what to do."""
    if v.documents < 2:
        return "one document cannot show how documents differ: hold out more of them"
    if spread.document_variance is None:
        return (
            f"one document is nearly all of the weight ({v.effective_documents:.3g} effective "
            "documents): hold out more of its size"
        )
    if v.seeds < 2:
        return (
            "one seed cannot show how seeds differ, so neither an interval nor a detectable effect "
            f"is known: run at least {rules.minimum_seeds} seeds"
        )
    if v.seeds < rules.minimum_seeds:
        return (
            f"fewer seeds than the minimum of {rules.minimum_seeds}: {smallest(v)}; run at least "
            f"{plural(v.seeds_needed, 'seed')}"
        )
    low, high = sorted(rules.sign * bound for bound in v.interval)
    if high < -v.margin:
        return f"an improvement beyond the margin of {v.margin:g} is shown"
    if low > v.margin:
        return f"harm beyond the margin of {v.margin:g} is shown: do not ship {v.treatment}"
    if low >= -v.margin:
        return f"an improvement beyond the margin of {v.margin:g} is excluded: keep {v.baseline}"
    wanted = enough(v, spread, next_level)
    return f"against the margin of {v.margin:g} this decides nothing: {smallest(v)}; {wanted}"


def smallest(v: Verdict) -> str:
    """What the study could have found."""
    low, high = v.minimum_detectable_range
    return (
        f"the smallest improvement found with {POWER:.0%} power is estimated at "
        f"{v.minimum_detectable_effect:.3g} {v.unit} ({low:.2g} to {high:.2g})"
    )


def enough(v: Verdict, spread: Spread, next_level: float) -> str:
    """How large a study would decide."""
    if v.margin == 0:
        return "set a margin above 0, from which an effect of 0 can be told"
    if v.seeds_needed is None:
        number = documents_for(spread, v.margin, next_level)
        return f"no number of seeds suffices, hold out about {plural(number, 'document')}"
    what = "in a new study" if v.look is None else f"in all for look {v.look + 1}"
    return (
        f"to tell an effect of 0 from the margin run at least {plural(v.seeds_needed, 'seed')} "
        f"{what} (planned with the {PLAN_BOUND:.0%} upper bound of the variance that "
        f"{plural(v.seeds, 'seed')} show)"
    )


def harmed(v: Verdict) -> str:
    worst, *others = v.failures
    more = f" and {', '.join(f.slice for f in others)}" if others else ""
    return (
        f"{worst.slice}{more} suffers more than the slice margin of {v.slice_margin:g}, worst "
        f"{worst.effect:+.4g} {v.unit} on {worst.slice} (adjusted p {worst.adjusted_p:.2g}; what "
        f"under {min(3 / worst.effective_documents, 1):.1%} of its documents show may be missed): "
        "read its examples before shipping"
    )


def warnings(
    v: Verdict, spread: Spread, deciding: Sequence[tuple[str, str]], one_token_share: float
) -> tuple[str, ...]:
    """Sentences on what the scores cannot carry. deciding: (document or seed, label without)."""
    found = []
    if v.effective_documents < FEW_DOCUMENTS:
        found.append(
            f"only {v.effective_documents:.3g} effective documents of {v.documents} (1 / the sum "
            f"of squared shares of weight): hold out at least {FEW_DOCUMENTS} of similar size"
        )
    for what, label in deciding:
        found.append(f"{what} alone decides the label: without it the mean is {label}")
    if abs(spread.skewness) > LARGEST_SKEWNESS:
        found.append(
            f"a few documents {'lose' if spread.skewness > 0 else 'gain'} far more than the others "
            f"(skewness {abs(spread.skewness):.2f} of the mean), and other documents may have more "
            "or fewer of them: hold out more"
        )
    if v.seeds < FEW_SEEDS:
        missed = (1 - RARE_RUN) ** v.seeds
        found.append(
            f"{plural(v.seeds, 'seed')} cannot see occasional bad runs: a failure of 1 run in "
            f"{1 / RARE_RUN:.0f} is missed with chance {missed:.0%}"
        )
    if one_token_share:
        found.append(
            f"{one_token_share:.0%} of the documents have one token: if they are the tokens of "
            "longer texts they are not independent; give the text they come from as their group"
        )
    return tuple(found)
