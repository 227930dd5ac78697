"""Does a treatment help: one label and one sentence, from scores of documents by arm and seed.

The effect is treatment - baseline in the mean score: all totals over all weights, so that every
token (or example) of the held-out data weighs the same. How wrong it may be follows from seeds
and documents alone (uncertainty.py). m is the margin, the smallest difference that matters:

  INVALID                 the arms cannot be compared, or the teacher has nothing to teach.
  HELPS                   the whole interval lies beyond m on the better side.
  WORSE                   the whole interval lies beyond m on the worse side.
  NO BETTER               no part of the interval lies beyond m on the better side: an improvement
                          worth having is excluded. With m = 0 only equal arms reach it, since no
                          number of documents excludes an arbitrarily small improvement.
  INCONCLUSIVE            anything else, and always with fewer seeds than the minimum.
  NEW FAILURE MODE IN x   harm beyond the slice margin on a registered slice x, even where the mean
                          helps. WORSE stays WORSE: its failures are listed and named.

The better side is the lower one, or the higher one with higher_is_better.

  table = {"arm": [...], "seed": [...], "document": [...], "total": [...], "weight": [...]}
  v = verdict(table, treatment="kd", baseline="sft", margin=0.01, slice_margin=0.05)
  print(v.label, v.reason, *v.warnings, sep="\\n")
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distill_jax.study.paired import Incomparable, Scores, pair
from distill_jax.study.rules import (
    HELPS,
    INCONCLUSIVE,
    INVALID,
    NEW_FAILURE,
    NLL,
    WORSE,
    Rules,
    check_rules,
    decide,
    level_at,
    registered_slices,
)
from distill_jax.study.slice_harm import SliceEffect, failures_of, in_units, slice_effects
from distill_jax.study.stability import deciding_ones
from distill_jax.study.table import read_table
from distill_jax.study.uncertainty import (
    Spread,
    interval,
    p_above,
    p_below,
    resolution,
    seeds_for,
    spread_of,
    variance_factor,
)
from distill_jax.study.wording import Verdict, sentence, warnings
from distill_jax.types import UserError

TEACHER = "teacher"
ONE_TOKEN_SHARE = 0.9  # of documents with one counted token, from which on tokens are suspected
ONE_TOKEN_DOCUMENTS = 20  # fewer documents than this are not suspected


class Comparison(NamedTuple):
    """One of several questions that are asked of a study at once."""

    scores: Scores
    treatment: str
    baseline: str
    rules: Rules


def verdict(
    table: Mapping[str, Any],
    *,
    treatment: str = "kd",
    baseline: str = "sft",
    margin: float,
    slice_margin: float,
    confidence: float = 0.95,
    minimum_seeds: int = 3,
    higher_is_better: bool = False,
    unit: str = NLL,
    teacher: str | None = TEACHER,
    invalid: str | None = None,
    **rules: Any,
) -> Verdict:
    """Decides for one treatment and one baseline.

    table     columns of equal length, a row per arm, seed and document: arm, seed, document, total
              (the sum of its scores), weight (tokens or examples in it), and where there are such
              slice ("all": the whole document) and group (documents of one group, such as the
              hash of the text, are one piece of evidence). Numbers and names in any mixture.
    teacher   the arm that has to be better than the baseline, if it is there; None: no such rule.
    invalid   a reason, known to the caller, why nothing can be compared.
    **rules   the others of Rules, where the arguments above are described too.
    Raises UserError for arguments outside their range and for what is no such table.
    """
    judged_by = Rules(
        margin, slice_margin, confidence, minimum_seeds, higher_is_better, unit, **rules
    )
    check_rules(judged_by, treatment, baseline)
    scores = teacher_E = None
    if invalid is None:
        try:
            scores, known = read_table(table, (treatment, baseline), teacher)
            judged_by = judged_by._replace(known=(*judged_by.known, *known))
        except Incomparable as error:
            invalid = str(error)
    if scores is not None and teacher in set(scores.arms) - {treatment, baseline}:
        teacher_E = scores.arms[teacher].total_PRE[0, 0]
    return judge(scores, treatment, baseline, judged_by, teacher_E=teacher_E, invalid=invalid)


def judge(
    scores: Scores | None,
    treatment: str,
    baseline: str,
    rules: Rules,
    *,
    teacher_E: np.ndarray | None = None,
    invalid: str | None = None,
    alpha: float | None = None,
) -> Verdict:
    """The verdict on arrays. Raises UserError for rules outside their range.

    teacher_E  the teacher's totals of whole documents, where it has to be better than the baseline.
    invalid    a reason, known to the caller, why nothing can be compared.
    alpha      the level to spend; None: that of the rules' look.
    """
    check_rules(rules, treatment, baseline)
    alpha = level_at(rules.look, 1 - rules.confidence) if alpha is None else alpha
    said = ("margin", "slice_margin", "unit", "higher_is_better", "look")
    about = {name: getattr(rules, name) for name in said}
    about |= {"treatment": treatment, "baseline": baseline, "confidence": 1 - alpha}
    try:
        if invalid is not None:
            raise Incomparable(invalid)
        names = registered_slices(rules, scores.slices)
        paired = pair(scores, treatment, baseline, rules, teacher_E)
    except Incomparable as error:
        return Verdict(INVALID, str(error), **about)
    spread = spread_of(paired.total_PRU[0], paired.weight_PU[0])
    slices = slice_effects(paired, names, rules, 1 - alpha)
    enough = spread.known and spread.seeds >= rules.minimum_seeds
    bounds = interval(spread, 1 - alpha)
    label = mean_label = decide(bounds, rules.margin) if enough else INCONCLUSIVE
    failures = failures_of(slices, rules.sign) if enough else ()
    if failures and label != WORSE:
        label = NEW_FAILURE + failures[0].slice
    effect, bounds = in_units(spread.effect, bounds, rules.sign)
    detectable, detectable_range = detectable_effect(spread, rules.margin, alpha)
    spent = alpha / level_at(rules.look, 1 - rules.confidence)
    next_alpha = spent * level_at(rules.look and rules.look + 1, 1 - rules.confidence)
    v = Verdict(
        label,
        "",
        effect,
        bounds,
        detectable,
        detectable_range,
        seeds_needed(spread, rules, 1 - next_alpha) if mean_label == INCONCLUSIVE else None,
        failures,
        spread.seeds,
        spread.documents,
        spread.effective_documents,
        slices,
        **about,
    )
    copies = paired.documents - spread.documents
    deciding = deciding_ones(paired, spread, mean_label, rules.margin, alpha) if enough else []
    one_token = one_token_share(scores, rules)
    return v._replace(
        reason=sentence(v, spread, rules, copies, 1 - next_alpha),
        warnings=(*paired.warnings, *warnings(v, spread, deciding, one_token)),
    )


def judge_all(comparisons: Sequence[Comparison]) -> tuple[Verdict, ...]:
    """Verdicts on several comparisons (ablations, secondary scores), with Holm over them.

    The chance that any of them is called HELPS or WORSE falsely stays within 1 - confidence: the
    k-th smallest two-sided p of n is held against alpha / (n - k + 1), that comparison gets an
    interval of this level, and those after the first that fails keep its level. Comparisons that
    cannot have a label (INVALID, too few seeds) do not count. All have one confidence and look.
    """
    if not comparisons:
        return ()
    rules, p_of = comparisons[0].rules, {}
    for i, one in enumerate(comparisons):
        check_rules(one.rules, one.treatment, one.baseline)
        if (one.rules.confidence, one.rules.look) != (rules.confidence, rules.look):
            raise UserError("comparisons of one family differ in confidence or look: give one")
        try:
            paired = pair(*one)
        except Incomparable:
            continue
        spread = spread_of(paired.total_PRU[0], paired.weight_PU[0])
        if spread.known and spread.seeds >= one.rules.minimum_seeds:
            m = one.rules.margin
            p_of[i] = 2 * min(p_below(spread, -m), p_above(spread, m))
    alpha, left, stopped = level_at(rules.look, 1 - rules.confidence), len(p_of), False
    levels = {}
    for i in sorted(p_of, key=p_of.__getitem__):
        levels[i] = alpha / left
        stopped = stopped or p_of[i] > levels[i]
        left -= not stopped
    return tuple(judge(*one, alpha=levels.get(i, alpha)) for i, one in enumerate(comparisons))


def one_token_share(scores: Scores, rules: Rules) -> float:
    """The share of documents that look like tokens of longer texts; 0 where none are suspected.

    Only a likelihood is suspected: an example that is right or wrong has one weight by nature.
    """
    weight_E = scores.weight_PE[0][scores.weight_PE[0] > 0]
    share = float(np.mean(weight_E <= 1))
    suspected = len(weight_E) >= ONE_TOKEN_DOCUMENTS and share >= ONE_TOKEN_SHARE
    return share if rules.unit == NLL and scores.group_E is None and suspected else 0.0


def detectable_effect(spread: Spread, margin: float, alpha: float):
    """(estimate, (low, high)) of the true improvement that 95% power finds."""
    if not spread.known:
        return None, (None, None)
    factors = (1.0, *(variance_factor(spread.seeds, tail) for tail in (1 - alpha / 2, alpha / 2)))
    found, low, high = (margin + resolution(spread, 1 - alpha, factor=f) for f in factors)
    return found, (low, high)


def seeds_needed(spread: Spread, rules: Rules, confidence: float) -> int | None:
    """The fewest seeds that tell an effect of 0 from the margin; None where no number does.

    Below the minimum that many are needed in any case, before anything else can be said.
    """
    found = None
    if spread.known and rules.margin > 0:
        found = seeds_for(spread, rules.margin, confidence, rules.minimum_seeds)
    if found is not None:
        return max(found, spread.seeds + 1)
    few = spread.seeds < rules.minimum_seeds and spread.document_variance is not None
    return rules.minimum_seeds if few else None


def ships(equal_steps: Verdict, equal_flops: Verdict | None) -> bool:
    """Whether the treatment may be shipped: it has to have won every comparison that was made.

    HELPS at equal steps, and HELPS at equal FLOPs where that arm was run. A tie is no reason to
    ship (the baseline is cheaper to make), nor is doubt, a new failure on any slice, or an invalid
    study.
    """
    return all(v.label == HELPS for v in (equal_steps, equal_flops) if v is not None)


def flat(row: SliceEffect) -> dict[str, Any]:
    """A slice's row as JSON takes it."""
    values = row._asdict()
    values["low"], values["high"] = values.pop("interval")
    return values


def slice_rows(v: Verdict, comparison: str) -> list[dict[str, Any]]:
    """The rows of the forest plot. comparison: equal_steps or equal_flops."""
    return [{"comparison": comparison, **flat(row)} for row in v.slices]


def verdict_dict(v: Verdict) -> dict[str, Any]:
    """The verdict as JSON takes it."""
    values = {name: value for name, value in v._asdict().items() if name != "slices"}
    values["low"], values["high"] = values.pop("interval")
    values["detectable_low"], values["detectable_high"] = values.pop("minimum_detectable_range")
    values["warnings"] = list(v.warnings)
    kept = ("slice", "effect", "low", "high", "adjusted_p")
    values["failures"] = [{name: flat(f)[name] for name in kept} for f in v.failures]
    return values
