"""Did distillation help: one label and one sentence, from the NLL of documents by arm and seed.

The effect is treatment - baseline in mean NLL a token (nats; negative is better): all totals over
all counts, so that every token of the held-out text weighs the same; how wrong it may be follows
from seeds and documents alone (bootstrap.py). m is the margin, the smallest effect that matters:

  INVALID                 the arms cannot be compared, or the teacher has nothing to teach.
  HELPS                   the whole interval lies below -m.
  WORSE                   the whole interval lies above +m.
  NO BETTER               no part of the interval lies below -m: an improvement worth having is
                          excluded. With m = 0 only equal arms reach it, since no number of
                          documents excludes an arbitrarily small improvement.
  INCONCLUSIVE            anything else, and always with fewer seeds than the minimum.
  NEW FAILURE MODE IN x   harm beyond the slice margin on a registered slice x, even where the mean
                          helps. WORSE stays WORSE: its failures are listed and named.
"""

from distill_jax.study.bootstrap import Spread, interval, resolution, seeds_for
from distill_jax.study.pairing import WHOLE, Incomparable, pair
from distill_jax.study.reasons import (
    HELPS,
    INCONCLUSIVE,
    INVALID,
    NEW_FAILURE,
    NO_BETTER,
    WORSE,
    Verdict,
    sentence,
)
from distill_jax.study.slice_harm import (
    MINIMUM_DOCUMENTS,
    MINIMUM_TOKENS,
    effects_of,
    failures_of,
    spreads_by_slice,
)
from distill_jax.types import UserError


def verdict(
    table,
    *,
    treatment: str = "kd",
    baseline: str = "sft",
    margin: float,
    slice_margin: float,
    confidence: float = 0.95,
    minimum_seeds: int = 3,
    seed: int = 0,
    invalid: str | None = None,
    registered: tuple[str, ...] | None = None,
    resamples: int = 2000,
    minimum_documents: int = MINIMUM_DOCUMENTS,
    minimum_tokens: int = MINIMUM_TOKENS,
    one_token_documents: bool = False,
) -> Verdict:
    """Decides for one treatment and one baseline.

    table                columns of equal length: arm, seed, document, slice ("all": the whole
                         document), nll_total (nats), count (tokens). With an arm "teacher" its NLL
                         is compared too.
    margin               nats a token, the smallest difference that matters.
    slice_margin         nats a token of harm that a slice may suffer.
    seed                 of the resampling.
    invalid              a reason, known to the caller, why nothing can be compared.
    registered           slices decided on before the run; None: all of the table.
    minimum_documents, minimum_tokens  below which a slice is not tested.
    one_token_documents  documents with one counted token are no mistake.
    Raises UserError for arguments outside their range.
    """
    check_options(margin, slice_margin, confidence, minimum_seeds, resamples)
    about = {
        "treatment": treatment,
        "baseline": baseline,
        "confidence": confidence,
        "margin": margin,
        "slice_margin": slice_margin,
    }
    try:
        if invalid is not None:
            raise Incomparable(invalid)
        paired = pair(table, treatment, baseline, registered, one_token_documents)
    except Incomparable as error:
        return Verdict(INVALID, str(error), **about)
    found = spreads_by_slice(paired, resamples, seed)
    spread = found[WHOLE]
    slices = effects_of(paired, found, slice_margin, confidence, minimum_documents, minimum_tokens)
    enough = spread.seeds >= minimum_seeds and spread.known
    failures = failures_of(slices) if enough else ()
    bounds = interval(spread, confidence)
    label = decide(bounds, margin) if enough else INCONCLUSIVE
    resolved = resolution(spread, confidence)
    needed = None
    if label == INCONCLUSIVE:
        needed = seeds_needed(spread, margin, confidence, minimum_seeds)
    if failures and label != WORSE:
        label = NEW_FAILURE + failures[0].slice
    result = Verdict(
        label,
        "",
        spread.effect,
        bounds,
        None if resolved is None else margin + resolved,
        needed,
        failures,
        spread.seeds,
        slices,
        **about,
    )
    target = target_of(spread, margin)
    return result._replace(reason=sentence(result, spread, target, minimum_seeds, paired.repeats))


def check_options(margin, slice_margin, confidence, minimum_seeds, resamples) -> None:
    """Refuses what would make the labels meaningless."""
    for name, value in (("margin", margin), ("slice_margin", slice_margin)):
        if not 0 <= value < float("inf"):
            raise UserError(f"{name} is {value}: give nats a token, 0 or more")
    if not 0.5 <= confidence < 1:
        raise UserError(f"confidence is {confidence}: give a share of at least 0.5 and below 1")
    if minimum_seeds < 2:
        raise UserError(f"minimum_seeds is {minimum_seeds}: one seed cannot show how seeds differ")
    if resamples < 100:
        raise UserError(f"resamples is {resamples}: draw at least 100")


def decide(bounds: tuple[float, float], margin: float) -> str:
    """The label of an interval alone."""
    low, high = bounds
    if high < -margin:
        return HELPS
    if low > margin:
        return WORSE
    return NO_BETTER if low >= -margin else INCONCLUSIVE


def seeds_needed(
    spread: Spread, margin: float, confidence: float, minimum_seeds: int
) -> int | None:
    """The fewest seeds that would decide; None where no number of them does.

    Below the minimum that many are needed in any case, before anything else can be said.
    """
    found = seeds_for(spread, target_of(spread, margin), confidence, minimum_seeds)
    if found is None and spread.seeds < minimum_seeds and spread.documents > 1:
        return minimum_seeds
    return found


def target_of(spread: Spread, margin: float) -> float:
    """The distance from -margin that has to be resolved: that of 0 or of the effect seen."""
    return max(margin, abs(spread.effect + margin))


def ships(equal_steps: Verdict, equal_flops: Verdict | None) -> bool:
    """Whether the treatment may be shipped: it has to have won every comparison that was made.

    HELPS at equal steps, and HELPS at equal FLOPs where that arm was run. A tie is no reason to
    ship (the baseline is cheaper to make), nor is doubt, a new failure on any slice, or an invalid
    study.
    """
    return all(v.label == HELPS for v in (equal_steps, equal_flops) if v is not None)


def slice_rows(v: Verdict, comparison: str) -> list[dict]:
    """The rows of the forest plot. comparison: equal_steps or equal_flops."""
    return [
        {
            "slice": s.slice,
            "comparison": comparison,
            "effect": s.effect,
            "low": s.interval[0],
            "high": s.interval[1],
            "adjusted_p": s.adjusted_p,
            "tokens": s.tokens,
            "documents": s.documents,
            "harmed": s.harmed,
            "untestable": s.untestable,
        }
        for s in v.slices
    ]


def verdict_dict(v: Verdict) -> dict:
    """The verdict as JSON takes it."""
    low, high = v.interval
    return {
        "label": v.label,
        "reason": v.reason,
        "treatment": v.treatment,
        "baseline": v.baseline,
        "effect": v.effect,
        "low": low,
        "high": high,
        "confidence": v.confidence,
        "margin": v.margin,
        "slice_margin": v.slice_margin,
        "minimum_detectable_effect": v.minimum_detectable_effect,
        "seeds_needed": v.seeds_needed,
        "seeds": v.seeds,
        "failures": [
            {
                "slice": f.slice,
                "effect": f.effect,
                "low": f.interval[0],
                "high": f.interval[1],
                "adjusted_p": f.adjusted_p,
            }
            for f in v.failures
        ],
    }
