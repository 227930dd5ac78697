"""Copied seeds are refused and honest ones are not, whatever the score."""

import numpy as np
import pytest

from distill_jax.study.paired import Incomparable, pair
from distill_jax.study.rules import Rules
from tests.study.simulated import as_scores

RULES = Rules(0.0, 0.0, unit="score")


def paired(score_ASD, rules=RULES, **options):
    return pair(as_scores(score_ASD, np.ones(score_ASD.shape[-1])), "kd", "sft", rules, **options)


def right(rng, shape, chance):
    return (rng.random(shape) < chance).astype(float)


def changed(score_ASD, answers):
    """With other answers of each seed: documents 0, 1, ... of seed 0, and so on."""
    for s in range(score_ASD.shape[1]):
        part = slice(s * answers, (s + 1) * answers)
        score_ASD[:, s, part] = 1 - score_ASD[:, s, part]
    return score_ASD


SCORES = {
    "likelihood": lambda rng: rng.exponential(2, (2, 3, 200)),
    "likelihood, a third certain": lambda rng: np.where(
        np.arange(200) < 70, 1e-9 * rng.random((2, 3, 200)), rng.exponential(2, (2, 3, 200))
    ),
    "seeds differ little": lambda rng: rng.exponential(2, 60) + rng.normal(0, 1e-3, (2, 3, 60)),
    "seeds differ by one number": lambda rng: (
        rng.exponential(2, 60) + rng.normal(0, 0.02, (2, 3, 1))
    ),
    "right or wrong": lambda rng: right(rng, (2, 3, 500), rng.beta(0.3, 0.3, 500)),
    "right or wrong, seldom changed": lambda rng: np.abs(
        right(rng, 2000, 0.6) - right(rng, (2, 3, 2000), 0.01)
    ),
    "words right of ten": lambda rng: rng.binomial(10, rng.beta(2, 2, 300), (2, 3, 300)) / 10,
    "five grades of 400": lambda rng: rng.binomial(4, rng.beta(0.5, 0.5, 400), (2, 3, 400)) * 1.0,
}
HONEST = SCORES | {
    "all right": lambda rng: np.ones((2, 3, 500)),
    "few wrong, the same ones": lambda rng: np.tile(right(rng, 500, 0.95), (2, 3, 1)),
    "few documents, the same scores": lambda rng: np.tile(right(rng, 40, 0.5), (2, 3, 1)),
    "six documents": lambda rng: rng.exponential(2, (2, 3, 6)),
    "one answer of 500 changed": lambda rng: changed(np.tile(right(rng, 500, 0.5), (2, 3, 1)), 1),
}


@pytest.mark.parametrize("kind", HONEST)
def test_honest_seeds_are_never_refused(kind):
    rng = np.random.default_rng(50)
    for _ in range(40):
        paired(HONEST[kind](rng))


@pytest.mark.parametrize("arm", [0, 1])
@pytest.mark.parametrize("kind", SCORES)
def test_copied_seeds_are_refused(kind, arm):
    rng = np.random.default_rng(51)
    for _ in range(10):
        score_ASD = SCORES[kind](rng)
        score_ASD[arm, 2] = score_ASD[arm, 0] * (1 + 1e-7)
        name = ("kd", "sft")[arm]
        with pytest.raises(Incomparable, match=f"seeds 0 and 2 of arm {name}"):
            paired(score_ASD)


@pytest.mark.parametrize(("answers", "warned"), [(0, True), (1, True), (10, False)])
@pytest.mark.parametrize("documents", [90, 500])
def test_nearly_equal_answers_are_warned_of_alone(answers, warned, documents):
    rng = np.random.default_rng(54)
    score_ASD = changed(np.tile(right(rng, documents, 0.5), (2, 3, 1)), answers)
    if answers == 1 and documents == 90:
        warned = False  # 2 of about 46 are less than 99%
    if answers == 0 and documents == 500:
        with pytest.raises(Incomparable, match="seeds 0 and 1 of arm kd have the same scores"):
            paired(score_ASD)
        return
    found = paired(score_ASD).warnings
    assert len(found) == (2 if warned else 0)
    assert all("seeds 0 and 1 of arm" in text for text in found)


def test_seeds_are_paired_by_name_and_groups_added_up():
    rng = np.random.default_rng(52)
    score_ASD = rng.exponential(2, (2, 3, 40))
    scores = as_scores(score_ASD, np.ones(40))
    sft = scores.arms["sft"]
    turned = sft._replace(seeds=sft.seeds[::-1], total_PRE=sft.total_PRE[:, ::-1])
    there = pair(scores._replace(arms={**scores.arms, "sft": turned}), "kd", "sft", RULES)
    assert np.array_equal(there.total_PRU, paired(score_ASD).total_PRU)
    assert np.allclose(there.total_PRU[0], score_ASD[0] - score_ASD[1])
    grouped = pair(scores._replace(group_E=np.arange(40) // 4), "kd", "sft", RULES)
    assert grouped.weight_PU.tolist() == [[4.0] * 10]
    summed = there.total_PRU.reshape(1, 3, 10, 4).sum(axis=-1)
    order = np.argsort([int(name) for name in grouped.units])
    assert np.allclose(grouped.total_PRU[..., order], summed)


def test_a_teacher_has_to_be_better_whichever_way_the_score_counts():
    score_ASD = np.random.default_rng(53).exponential(2, (2, 3, 40))
    good_E = score_ASD[1].mean(axis=0) - 0.1
    paired(score_ASD, teacher_E=good_E)
    for bad_E, higher in ((good_E + 0.2, False), (good_E, True), (good_E * np.nan, False)):
        with pytest.raises(Incomparable, match="teacher"):
            paired(score_ASD, teacher_E=bad_E, rules=RULES._replace(higher_is_better=higher))
