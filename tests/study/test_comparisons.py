"""A study's questions: which are asked, of which scores, and how looks are counted."""

import numpy as np
import pytest

from distill_jax.study.arms import Arm as StudyArm
from distill_jax.study.comparisons import Measured, judge_study
from distill_jax.study.paired import Arm, Scores
from distill_jax.study.results import Measure, PlannedArm, StudyPlan, looks_with
from distill_jax.types import UserError

NLL = Measure("nll", "nats per token")
RIGHT = Measure("task", "share right", higher_is_better=True)
EFFECTS = {"kd": -0.3, "sft": 0.0, "sft_flops": -0.2, "hot": -0.3, "cold": 0.5}


def plan(arms=tuple(EFFECTS), **changes):
    planned = tuple(PlannedArm(StudyArm(name, name), 10, 100) for name in arms)
    base = StudyPlan(
        planned, (0, 1, 2), ((0, 1, 2),), True, NLL, (RIGHT,), 0.01, 0.05, 0.95, ("a:1",), 0, 0, "x"
    )
    return base._replace(**changes)


def measured(measure=NLL, *, seeds=3, documents=60, sign=1, slices=("all", "a:1"), **more):
    """Every arm's totals: the effect of EFFECTS, and chance by document and seed."""
    r = np.random.default_rng(0)
    by_document, weight = r.normal(3, 1, documents), np.full(documents, 20.0)
    arms = {}
    for name, effect in EFFECTS.items():
        noise = r.normal(0, 0.02, (seeds, documents)) + r.normal(0, 0.01, (seeds, 1))
        whole = (by_document + sign * effect + noise) * weight
        arms[name] = Arm(tuple("012345"[:seeds]), np.stack([whole, whole / 2])[: len(slices)])
    weight_PE = np.stack([weight, weight / 2])[: len(slices)]
    return Measured(measure, Scores(slices, weight_PE, arms), **more)


def test_every_arm_is_asked_about_once_and_by_the_right_baseline():
    found = judge_study(plan(), [measured(), measured(RIGHT, sign=-1, slices=("all",))])
    asked = lambda v: (v.treatment, v.baseline, v.label)
    assert asked(found.equal_steps) == ("kd", "sft", "HELPS")
    assert asked(found.equal_flops) == ("kd", "sft_flops", "HELPS")
    labels = [asked(v) for v in found.others]
    assert [label[:2] for label in labels] == [("hot", "kd"), ("cold", "kd")]
    assert labels[1][2] == "WORSE"
    assert labels[0][2] in ("INCONCLUSIVE", "NO BETTER")
    ((measure, second),) = found.secondary
    assert (measure, asked(second)) == (RIGHT, ("kd", "sft", "HELPS"))
    assert second.effect > 0
    assert all(v.reason for v in (found.equal_steps, found.equal_flops, *found.others, second))


def test_no_interval_of_a_difference_of_shares_leaves_what_shares_can_differ_by():
    """Two seeds that disagree have an interval wider than any difference of shares."""
    r = np.random.default_rng(0)
    right = lambda share: (r.random((1, 60)) < share).astype(float)
    arms = {
        name: Arm(("0", "1"), np.stack([right(one), right(two)], axis=1))
        for name, one, two in (("kd", 0.9, 0.2), ("sft", 0.1, 0.6))
    }
    scores = Scores(("all",), np.ones((1, 60)), arms)
    wide = judge_study(plan(("kd", "sft")), [Measured(RIGHT, scores)]).equal_steps
    cut = judge_study(plan(("kd", "sft")), [Measured(RIGHT, scores, furthest=1.0)]).equal_steps
    assert wide.interval[0] < -1 < 1 < wide.interval[1]
    assert cut.interval == (-1.0, 1.0)
    assert "interval -1 to +1" in cut.reason
    assert (cut.label, cut.effect) == (wide.label, wide.effect)


def without(one, *runs):
    """The same without some runs."""
    arms = dict(one.scores.arms)
    for arm, seed in runs:
        kept = [i for i, name in enumerate(arms[arm].seeds) if name != seed]
        arms[arm] = Arm(tuple(arms[arm].seeds[i] for i in kept), arms[arm].total_PRE[:, kept])
    arms = {name: arm for name, arm in arms.items() if arm.seeds}
    return one._replace(scores=one.scores._replace(arms=arms))


def test_a_run_that_broke_down_is_named_and_the_other_seeds_are_compared():
    failed = {("kd", 1): "not finite: lower the rate"}
    found = judge_study(plan(), [without(measured(), ("kd", "1"))], failed=failed)
    pair = without(measured(), *((arm, "1") for arm in measured().scores.arms))
    same = judge_study(plan(), [pair])
    said = "; kd broke down in seed 1: compared are the seeds that both have"
    of = lambda verdicts: (verdicts.equal_steps, verdicts.equal_flops, *verdicts.others)
    for v, expected in zip(of(found), of(same), strict=True):
        assert v == expected._replace(reason=expected.reason + said)
        assert v.seeds == 2


def test_arms_without_a_seed_in_common_cannot_be_compared_and_the_others_are():
    lost = [("sft", "0"), ("sft", "1"), ("kd", "2")]
    failed = {(arm, int(seed)): "not finite: lower the rate" for arm, seed in lost}
    found = judge_study(plan(), [without(measured(), *lost)], failed=failed)
    assert found.equal_steps.label == "INVALID"
    assert found.equal_steps.reason == (
        "kd broke down in seed 2, so that nothing can be paired with it: not finite: lower the rate"
    )
    assert found.equal_flops.label != "INVALID"
    assert found.equal_flops.seeds == 2
    none = [(arm, seed) for arm in ("kd", "sft") for seed in "012"]
    all_failed = {(arm, int(seed)): "not finite" for arm, seed in none}
    nothing = judge_study(plan(("kd", "sft")), [without(measured(), *none)], failed=all_failed)
    assert nothing.equal_steps.reason.startswith("kd broke down in seed 0, 1, 2")


def test_the_teacher_rule_is_of_the_main_question_alone():
    poor = np.full(60, 200.0)
    found = judge_study(plan(), [measured(teacher_E=poor)])
    assert found.equal_steps.label == "INVALID"
    assert "teacher" in found.equal_steps.reason
    assert "INVALID" not in [v.label for v in found.others]


def test_an_arm_on_other_tokens_spoils_its_own_comparison_alone():
    one = measured(left_out={"hot": "hot was measured on other tokens"})
    one.scores.arms.pop("hot")
    hot, cold = judge_study(plan(), [one]).others
    assert (hot.label, hot.reason) == ("INVALID", "hot was measured on other tokens")
    assert (hot.treatment, hot.baseline) == ("hot", "kd")
    assert cold.label == "WORSE"


def test_without_equal_flops_there_is_no_such_verdict():
    assert judge_study(plan(("kd", "sft")), [measured()]).equal_flops is None


def test_what_the_caller_knows_to_be_wrong_makes_everything_invalid():
    found = judge_study(plan(), [measured(), measured(RIGHT)], invalid="other text")
    every = (found.equal_steps, found.equal_flops, *found.others, *(v for _, v in found.secondary))
    assert {(v.label, v.reason) for v in every} == {("INVALID", "other text")}


def test_the_same_seeds_are_the_same_look_and_more_seeds_the_next():
    first = looks_with((), (0, 1, 2), fixed=False)
    assert looks_with(first, (0, 1, 2), fixed=False) == first
    second = looks_with(first, (0, 1, 2, 3), fixed=False)
    assert second == ((0, 1, 2), (0, 1, 2, 3))
    assert plan(looks=second, fixed_seeds=False).look == 2
    assert plan(looks=first, fixed_seeds=True).look is None


def test_a_later_look_is_held_to_a_smaller_level():
    wide = judge_study(plan(looks=((0,), (1,)), fixed_seeds=False), [measured()]).equal_steps
    whole = judge_study(plan(), [measured()]).equal_steps
    assert wide.confidence > whole.confidence == pytest.approx(0.95)
    assert wide.interval[0] < whole.interval[0] < whole.interval[1] < wide.interval[1]


@pytest.mark.parametrize(
    ("earlier", "seeds", "fixed", "said"),
    [
        (((0, 1, 2),), (0, 1), False, "seeds can be added and not taken away"),
        (((0, 1, 2),), (1, 2, 3, 4), False, "seeds can be added and not taken away"),
        (((0, 1, 2),), (0, 1, 2, 3), True, "fixed_seeds is set"),
    ],
)
def test_looks_that_would_choose_the_verdict_are_refused(earlier, seeds, fixed, said):
    with pytest.raises(UserError, match=said):
        looks_with(earlier, seeds, fixed=fixed)
