"""Two arms on the same documents, seed by seed, or the reason why they cannot be compared.

Letters, beside the legend of types.py: P slices (parts; the first is the whole), R seeds (runs),
E documents (examples), U units (documents of one group, added up).
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from distill_jax.study.rules import Rules
from distill_jax.types import UserError
from distill_jax.words import plural

ROUNDING = 1e-6  # of a total, that sums of its parts may be wrong by
SAME_SCORE = 1e-5  # of the spread between documents: scores this near are the same number
FEWEST_TELLING = 10  # documents that can tell copies; fewer tell nothing
GRADED_COPIES = 0.95  # share of them that agrees in copies of graded scores
NEARLY = 0.99  # share that is warned of where scores have few values
FEWEST_DISCRETE = 50  # documents, all of which agree, where scores of few values are refused


class Incomparable(UserError):
    """The scores cannot decide anything; the message is the reason."""


class Arm(NamedTuple):
    """The scores of one arm, summed over each document's part in each slice.

    seeds      their names; seeds of the same name are paired.
    total_PRE  the sum of scores (NLL in nats, right answers); 0 where a slice has no part.
    """

    seeds: tuple[str, ...]
    total_PRE: np.ndarray


class Scores(NamedTuple):
    """All arms, measured on the same documents.

    slices     names; the first is the whole document.
    weight_PE  what the totals are divided by (tokens, examples), the same in every arm and seed.
    arms       by name.
    documents  their names; None: 0, 1, ...
    group_E    documents of one group (equal text, one prompt, one cluster) are one piece of
               evidence; None: every document is its own.
    """

    slices: tuple[str, ...]
    weight_PE: np.ndarray
    arms: Mapping[str, Arm]
    documents: tuple[str, ...] | None = None
    group_E: np.ndarray | None = None


class Paired(NamedTuple):
    """Treatment - baseline, turned so that negative is better.

    units      names of documents or groups.
    documents  how many documents have weight.
    warnings   on seeds with nearly the same scores.
    """

    slices: tuple[str, ...]
    seeds: tuple[str, ...]
    units: tuple[str, ...]
    total_PRU: np.ndarray
    weight_PU: np.ndarray
    documents: int
    warnings: tuple[str, ...] = ()


def check_same_weights(weight_PRE, expected_PE, arm, seeds, slices, documents) -> None:
    """Refuses seeds that were not measured on the documents of most runs, with their weights."""
    for r, seed in enumerate(seeds):
        expected = expected_PE[: len(weight_PRE)]
        differs_PE = ~np.isclose(weight_PRE[:, r], expected, rtol=1e-9, atol=0.0)
        if differs_PE.any():
            p, e = np.argwhere(differs_PE)[0]
            weight, usual = weight_PRE[p, r, e], expected_PE[p, e]
            where = f"document {documents[e]}" + (f" in slice {slices[p]}" if p else "")
            what = f"has weight {weight:g} in {where}, and most runs have {usual:g}"
            if not weight or not usual:
                what = f"{'has' if weight else 'lacks'} {where}, unlike most runs"
            raise Incomparable(
                f"{arm} seed {seed} {what} (in {plural(int(differs_PE[p].sum()), 'document')}):"
                " evaluate all arms and seeds on the same documents"
            )


def check_some_weight(weight_xE: np.ndarray, arm: str) -> None:
    """Refuses an arm that nothing was measured of."""
    if not weight_xE.any():
        raise Incomparable(
            f"no document of arm {arm} has a weight above 0: its mask is empty, so measure it again"
        )


def check_numbers(value_PRE, name: str, arm: str, seeds, lowest: float = -math.inf) -> None:
    """Refuses what is not finite, and negative weights or totals where there can be none."""
    if (bad_PRE := ~np.isfinite(value_PRE)).any():
        seed = seeds[int(np.argmax(bad_PRE.any(axis=(0, 2))))]
        raise Incomparable(
            f"{name} is not finite in {plural(int(bad_PRE.sum()), 'document')} of arm {arm},"
            f" first in seed {seed}: train that arm again"
        )
    low = 0.0 if name == "weight" else lowest
    if (negative := value_PRE < low).any():
        raise Incomparable(
            f"{negative.sum()} {name}s of arm {arm} are negative: {name}s of this score are 0 or "
            "more (log-likelihoods need the other sign)"
        )


def check_slices(value_PxE: np.ndarray, slices: tuple[str, ...], what: str) -> None:
    """Refuses slices of which a document has more than of the whole."""
    whole = value_PxE[:1]
    if (outside := value_PxE > whole + ROUNDING * np.abs(whole) + 1e-12).any():
        p = int(np.argmax(outside.reshape(len(slices), -1).any(axis=1)))
        raise Incomparable(
            f"slice {slices[p]} has more {what} than the whole document in {outside[p].sum()} "
            f"cases: give each document a row of slice {slices[0]} that holds all its parts"
        )


def check_copied_seeds(arm: Arm, weight_PE: np.ndarray, name: str) -> tuple[str, ...]:
    """Refuses two seeds with the same scores: the variance over seeds would be near 0.

    Only the documents that can tell are counted: those where the two differ, or whose score is not
    the most common one. So all right, or few wrong, is never refused.
    Graded scores (a likelihood) never agree by chance: 10 such documents, 95% of them alike, are
    copies. Scores of few values (right or wrong) do agree, and honest seeds may hardly change an
    answer. There 50 must agree without exception, and no other two seeds of the arm may differ in
    1% or less, as only honest seeds do. Returns a warning where 99% of 10 or more agree.
    Copies that were evaluated with other rounding than float32's are not recognised.
    """
    has_E = weight_PE[0] > 0
    score_RE = arm.total_PRE[0][:, has_E] / weight_PE[0, has_E]
    low, high = np.quantile(score_RE[0], [0.25, 0.75])
    near = SAME_SCORE * (high - low) + 1e-12 * np.abs(score_RE).max()
    step = 2 * near or 1.0
    remedy = "train each seed by itself, and list each once"
    copies, nearly = [], []
    for a, first_E in enumerate(score_RE):
        levels, place_E = np.unique(np.round(first_E / step), return_inverse=True)
        common = levels[np.argmax(np.bincount(place_E))] * step
        same_RE = np.abs(score_RE[a + 1 :] - first_E) <= near
        tells_RE = ~same_RE | (np.abs(first_E - common) > step)
        for b, (same_E, tells_E) in enumerate(zip(same_RE, tells_RE, strict=True), a + 1):
            tell, same = np.count_nonzero(tells_E), np.count_nonzero(same_E & tells_E)
            graded = 2 * (len(levels) - 1) >= tell
            if tell < FEWEST_TELLING or same < (GRADED_COPIES if graded else NEARLY) * tell:
                continue
            seeds = f"seeds {arm.seeds[a]} and {arm.seeds[b]} of arm {name} have the same scores"
            if graded:
                raise Incomparable(f"{seeds}: {remedy}")
            where = f"{seeds} in {same} of the {tell} documents that can tell them apart"
            (copies if same == tell >= FEWEST_DISCRETE else nearly).append((where, same < tell))
    if copies and not any(differ for _, differ in nearly):
        raise Incomparable(f"{copies[0][0]}: {remedy}")
    return tuple(f"{where}: make sure to {remedy}" for where, _ in (copies + nearly)[:1])


def check_teacher(teacher_xE, baseline_RE, name: str, rules: Rules) -> None:
    """Refuses a teacher that is no better than the baseline is. Both: scores over the weight."""
    of_teacher, of_baseline = (float(x.sum(axis=-1).mean()) for x in (teacher_xE, baseline_RE))
    if not math.isfinite(of_teacher):
        raise Incomparable("a total of the teacher is not finite: evaluate it again")
    if not rules.sign * of_teacher < rules.sign * of_baseline:
        raise Incomparable(
            f"the teacher is not better than {name} on these documents ({of_teacher:.4g} against "
            f"{of_baseline:.4g} {rules.unit}): choose a teacher that knows them"
        )


def pair(
    scores: Scores, treatment: str, baseline: str, rules: Rules, teacher_E: np.ndarray | None = None
) -> Paired:
    """The two arms, seed by seed and unit by unit; no other arm is looked at.

    teacher_E: the teacher's totals of whole documents; it has to be better than the baseline.
    Raises Incomparable with the reason.
    """
    names = (treatment, baseline)
    for name in names:
        if name not in scores.arms:
            raise Incomparable(f"the arm {name} is missing: train and evaluate it")
    arms = [scores.arms[name] for name in names]
    for name, own, other in ((names[0], *arms), (names[1], *arms[::-1])):
        if alone := [seed for seed in own.seeds if seed not in other.seeds]:
            raise Incomparable(
                f"{treatment} and {baseline} have different seeds (only {name} has"
                f" {', '.join(alone)}): run both arms with the same seeds"
            )
    weight_PE, slices = scores.weight_PE, scores.slices
    check_numbers(weight_PE[:, None], "weight", treatment, arms[0].seeds)
    check_some_weight(weight_PE[0], treatment)
    check_slices(weight_PE, slices, "weight")
    warnings: list[str] = []
    for name, arm in zip(names, arms, strict=True):
        lowest = rules.lowest - ROUNDING * float(weight_PE.max())
        check_numbers(arm.total_PRE, "total", name, arm.seeds, lowest)
        if rules.lowest == 0:
            check_slices(arm.total_PRE, slices, "score")
        warnings += check_copied_seeds(arm, weight_PE, name)
    if teacher_E is not None:
        weight = weight_PE[0].sum()
        check_teacher(teacher_E / weight, arms[1].total_PRE[0] / weight, baseline, rules)
    order = [arms[1].seeds.index(seed) for seed in arms[0].seeds]
    total_PRE = rules.sign * (arms[0].total_PRE - arms[1].total_PRE[:, order])
    total_PRE = np.where(weight_PE[:, None] > 0, total_PRE, 0.0)
    documents = int(np.count_nonzero(weight_PE[0]))
    units = scores.documents or tuple(str(e) for e in range(weight_PE.shape[1]))
    total_PRU, weight_PU = total_PRE, weight_PE
    if scores.group_E is not None:
        groups, place_E = np.unique(scores.group_E, return_inverse=True)
        units = tuple(groups.astype(str).tolist())
        total_PRU = np.zeros((*total_PRE.shape[:2], len(units)))
        weight_PU = np.zeros((len(slices), len(units)))
        np.add.at(total_PRU, (..., place_E), total_PRE)
        np.add.at(weight_PU, (..., place_E), weight_PE)
    return Paired(slices, arms[0].seeds, units, total_PRU, weight_PU, documents, tuple(warnings))
