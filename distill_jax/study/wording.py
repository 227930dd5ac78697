"""What a verdict is, and its sentences with the numbers to act on."""

from typing import NamedTuple

from distill_jax.study.rules import FEWEST_DIFFERING, NLL, Rules, few_differ, level_at
from distill_jax.study.slice_harm import SliceEffect
from distill_jax.study.uncertainty import PLAN_BOUND, POWER, Spread, documents_for
from distill_jax.words import named, plural

NAMED = 3  # slices that a sentence names


class Verdict(NamedTuple):
    """What is known about a treatment against a baseline; what could not be estimated is None.

    effect, interval      per weight in `unit`, treatment - baseline, as the scores count. An
                          interval that could not be estimated is (None, None).
    confidence            that the interval has: less of the level is spent on one look, and on
                          one of several comparisons.
    minimum_detectable_effect  estimate of the true improvement that 95% power finds.
    minimum_detectable_range   (low, high) of that estimate: seeds tell their variance badly.
    seeds_needed          where INCONCLUSIVE: so many seeds rule out the margin with 95% power if
                          the true effect is 0, were the seed variance at its upper bound.
    failures              the harmed slices, worst first; slices: every registered one.
    documents             units with weight; effective_documents: 1 / sum(share^2) of them.
    seeds                 that both arms have, also where they cannot be compared.
    warnings              sentences on what the scores cannot carry. With fewer than 20 effective
                          documents the interval holds the truth less often than it says.
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


def sentence(v: Verdict, spread: Spread, rules: Rules, copies: int, next_level: float) -> str:
    """The reason of a valid verdict: the number, what follows from it, and what to do next.

    copies: documents that were added to another of their group. next_level: the confidence of the
    look that is planned.
    """
    parts = [_measured(v, copies), _decided(v, spread, rules, next_level)]
    if v.failures:
        parts.append(_harmed(v))
    if untested := [named(row.slice) for row in v.slices if row.untestable]:
        more = len(untested) - NAMED
        names = ", ".join(untested[:NAMED]) + (f" and {more} more" if more > 0 else "")
        what = f"{len(untested)} of {plural(len(v.slices), 'registered slice')}"
        parts.append(f"{what} cannot be tested for harm ({names}): hold out more of their texts")
    return "; ".join(parts)


def _measured(v: Verdict, copies: int) -> str:
    low, high = v.interval
    bounds = f"{100 * v.confidence:.4g}% interval"
    bounds = "no interval" if low is None else f"{bounds} {low:+.4g} to {high:+.4g}"
    share = level_at(v.look, 1.0)
    look = "" if v.look is None else f" at look {v.look}, which has {share:.3g} of the level"
    units = plural(v.documents, "document")
    if copies:
        units = f"{plural(v.documents, 'group')} of {plural(v.documents + copies, 'document')}"
    return (
        f"{v.treatment} - {v.baseline} is {v.effect:+.4g} {v.unit} ({bounds}{look}; "
        f"{plural(v.seeds, 'seed')}, {units})"
    )


def _decided(v: Verdict, spread: Spread, rules: Rules, next_level: float) -> str:
    """What follows from the interval of the mean, and what to do."""
    if v.documents < 2:
        return "one document cannot show how documents differ: hold out more of them"
    if spread.document_variance is None:
        return (
            f"one document has nearly all of the weight ({v.effective_documents:.3g} effective "
            "documents), so the others hardly count: hold out more of its size"
        )
    if v.seeds < 2:
        return (
            "one seed cannot show how seeds differ, so there is no interval: run at least "
            f"{plural(rules.minimum_seeds, 'seed')}"
        )
    if v.seeds < rules.minimum_seeds:
        return (
            f"fewer seeds than the minimum of {rules.minimum_seeds} decide nothing: run at least "
            f"{plural(v.seeds_needed, 'seed')}; {_power(v)}"
        )
    low, high = sorted(rules.sign * bound for bound in v.interval)
    margin = f"the margin of {v.margin:g}"
    if high < -v.margin:
        return f"{v.treatment} is better by more than {margin}"
    if low > v.margin:
        return f"{v.treatment} is worse by more than {margin}"
    if low >= -v.margin and few_differ(rules, spread.differing):
        return (
            f"the arms differ on {plural(spread.differing, 'document')}, fewer than the"
            f" {FEWEST_DIFFERING} it takes to rule an improvement out: hold out more documents"
        )
    if low >= -v.margin:
        return f"an improvement of more than {margin} is ruled out: keep {v.baseline}"
    return (
        f"an improvement of more than {margin} is neither shown nor ruled out: "
        f"{_enough(v, spread, next_level)}; {_power(v)}"
    )


def _power(v: Verdict) -> str:
    """What the study could have found."""
    low, high = v.minimum_detectable_range
    return (
        f"a study like this finds a true improvement of {v.minimum_detectable_effect:.3g} {v.unit} "
        f"with chance {POWER:.0%} (estimated: {low:.2g} to {high:.2g})"
    )


def _enough(v: Verdict, spread: Spread, next_level: float) -> str:
    """How large a study would decide."""
    if v.margin == 0:
        return "set a margin above 0, since no study rules out every improvement above 0"
    if v.seeds_needed is None:
        number = documents_for(spread, v.margin, next_level)
        more = f"hold out about {plural(number, 'document')}"
        return f"by this estimate more seeds alone may not decide it; {more}"
    what = "in a new study" if v.look is None else f"in all for look {v.look + 1}"
    return (
        f"run at least {plural(v.seeds_needed, 'seed')} {what}, which will rule it out if the true "
        f"effect is 0 (planned with the {PLAN_BOUND:.0%} upper bound of the variance of "
        f"{plural(v.seeds, 'seed')})"
    )


def _harmed(v: Verdict) -> str:
    worst, *others = v.failures
    more = f", and {', '.join(named(f.slice) for f in others)} too" if others else ""
    return (
        f"on the slice {named(worst.slice)} it is worse by {abs(worst.effect):.4g} {v.unit}, more"
        f" than the slice margin of {v.slice_margin:g} (adjusted p {worst.adjusted_p:.2g}){more}: "
        "read its examples; what happens in under "
        f"{min(3 / worst.effective_documents, 1):.1%} of its documents may be missed"
    )
