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
  INCONCLUSIVE            anything else, and always with fewer seeds than the minimum. NO BETTER
                          also takes 10 documents on which the arms differ (likelihoods aside).
  NEW FAILURE MODE IN x   harm beyond the slice margin on a registered slice x, even where the mean
                          helps. WORSE stays WORSE: its failures are listed and named.

The better side is the lower one, or the higher one with higher_is_better.

  >>> noise = np.random.default_rng(0).normal(0, 0.02, (2, 3, 40))
  >>> rows = [(arm, seed, document, 3 - 0.1 * (arm == "kd") + noise[a, seed, document], 1.0)
  ...         for a, arm in enumerate(("kd", "sft")) for seed in range(3) for document in range(40)]
  >>> names = ("arm", "seed", "document", "total", "weight")
  >>> v = verdict(dict(zip(names, zip(*rows))), margin=0.01, slice_margin=0.05)
  >>> v.label, round(v.effect, 2)
  ('HELPS', -0.1)
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distill_jax.study.paired import Incomparable, Paired, Scores, pair
from distill_jax.study.rules import (
    HELPS,
    INCONCLUSIVE,
    INVALID,
    NLL,
    WORSE,
    Rules,
    check_rules,
    decide,
    level_at,
    possible,
    registered_slices,
)
from distill_jax.study.slice_harm import failures_of, in_units, slice_effects
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
from distill_jax.study.warnings import warnings_of
from distill_jax.study.wording import Verdict, sentence
from distill_jax.types import UserError
from distill_jax.words import NEW_FAILURE

TEACHER = "teacher"


class Comparison(NamedTuple):
    """A question that is asked of a study.

    scores     None where `invalid` is given.
    teacher_E  the teacher's totals of whole documents, where it has to be better than the baseline.
    invalid    a reason, known to the caller, why nothing can be compared.
    seeds      that both arms have, where there are no scores to count them by.
    """

    scores: Scores | None
    treatment: str
    baseline: str
    rules: Rules
    teacher_E: np.ndarray | None = None
    invalid: str | None = None
    seeds: int = 0

    def paired(self) -> tuple[Paired, Spread]:
        """What is compared, and the spread of its mean. Raises Incomparable."""
        if self.invalid is not None:
            raise Incomparable(self.invalid)
        paired = pair(self.scores, self.treatment, self.baseline, self.rules, self.teacher_E)
        return paired, spread_of(paired.total_PRU[0], paired.weight_PU[0])


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
    first = (margin, slice_margin, confidence, minimum_seeds, higher_is_better, unit)
    judged_by = Rules(*first, **rules)
    check_rules(judged_by, treatment, baseline)
    if invalid is not None:
        return judge(Comparison(None, treatment, baseline, judged_by, invalid=invalid))
    return judge(comparison(table, treatment, baseline, judged_by, teacher))


def comparison(
    table: Mapping[str, Any],
    treatment: str,
    baseline: str,
    rules: Rules,
    teacher: str | None = None,
) -> Comparison:
    """A question, from a table as `verdict` takes it; invalid where its rows cannot be compared."""
    try:
        scores, known = read_table(table, (treatment, baseline), teacher)
    except Incomparable as error:
        arms, names = (np.asarray(table[key]).astype(str) for key in ("arm", "seed"))
        seeds = set(names[arms == treatment]) & set(names[arms == baseline])
        return Comparison(None, treatment, baseline, rules, invalid=str(error), seeds=len(seeds))
    rules = rules._replace(known=(*rules.known, *known))
    is_there = teacher in set(scores.arms) - {treatment, baseline}
    teacher_E = scores.arms[teacher].total_PRE[0, 0] if is_there else None
    return Comparison(scores, treatment, baseline, rules, teacher_E)


def judge(one: Comparison, alpha: float | None = None) -> Verdict:
    """The verdict on arrays. alpha: the level to spend; None: that of the rules' look.

    Raises UserError for rules outside their range.
    """
    rules = one.rules
    check_rules(rules, one.treatment, one.baseline)
    at_look = level_at(rules.look, 1 - rules.confidence)
    alpha = at_look if alpha is None else alpha
    said = ("margin", "slice_margin", "unit", "higher_is_better", "look")
    about = {name: getattr(rules, name) for name in said}
    about |= {"treatment": one.treatment, "baseline": one.baseline, "confidence": 1 - alpha}
    try:
        names = registered_slices(rules, one.scores.slices) if one.scores else ()
        paired, spread = one.paired()
    except Incomparable as error:
        return Verdict(INVALID, str(error), **_what_ran(one), **about)
    slices = slice_effects(paired, names, rules, 1 - alpha)
    enough = spread.known and spread.seeds >= rules.minimum_seeds
    bounds = possible(interval(spread, 1 - alpha), rules)
    label = mean_label = decide(bounds, rules, spread.differing) if enough else INCONCLUSIVE
    failures = failures_of(slices, rules.sign) if enough else ()
    if failures and label != WORSE:
        label = NEW_FAILURE + failures[0].slice
    effect, bounds = in_units(spread.effect, bounds, rules.sign)
    detectable, detectable_range = detectable_effect(spread, rules.margin, alpha)
    # The next look spends less of the level, and the same part of it for one of several questions.
    next_level = 1 - alpha / at_look * level_at(rules.look and rules.look + 1, 1 - rules.confidence)
    v = Verdict(
        label,
        "",
        effect,
        bounds,
        detectable,
        detectable_range,
        seeds_needed(spread, rules, next_level) if mean_label == INCONCLUSIVE else None,
        failures,
        spread.seeds,
        spread.documents,
        spread.effective_documents,
        slices,
        warnings_of(one.scores, paired, spread, rules, mean_label if enough else None, alpha),
        **about,
    )
    copies = paired.documents - spread.documents
    return v._replace(reason=sentence(v, spread, rules, copies, next_level))


def _what_ran(one: Comparison) -> dict[str, int]:
    """Seeds of both arms and documents, where they cannot be compared."""
    if one.scores is None:
        return {"seeds": one.seeds}
    arms = [one.scores.arms.get(name) for name in (one.treatment, one.baseline)]
    if None in arms:
        return {"seeds": 0}
    seeds = set(arms[0].seeds) & set(arms[1].seeds)
    return {"seeds": len(seeds), "documents": int(np.count_nonzero(one.scores.weight_PE[0]))}


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
            _, spread = one.paired()
        except Incomparable:
            continue
        if spread.known and spread.seeds >= one.rules.minimum_seeds:
            m = one.rules.margin
            p_of[i] = 2 * min(p_below(spread, -m), p_above(spread, m))
    alpha, left, stopped = level_at(rules.look, 1 - rules.confidence), len(p_of), False
    levels = {}
    for i in sorted(p_of, key=p_of.__getitem__):
        levels[i] = alpha / left
        stopped = stopped or p_of[i] > levels[i]
        left -= not stopped
    return tuple(judge(one, levels.get(i, alpha)) for i, one in enumerate(comparisons))


def detectable_effect(spread: Spread, margin: float, alpha: float):
    """(estimate, (low, high)) of the true improvement that 95% power finds."""
    if not spread.known:
        return None, (None, None)
    factors = (1.0, *(variance_factor(spread.seeds, tail) for tail in (1 - alpha / 2, alpha / 2)))
    found, low, high = (margin + resolution(spread, 1 - alpha, factor=f) for f in factors)
    return found, (low, high)


def seeds_needed(spread: Spread, rules: Rules, confidence: float) -> int | None:
    """The fewest seeds that rule out the margin if the true effect is 0; None where none do.

    With fewer seeds than the minimum, that many are needed in any case.
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
