"""What is left of a study, from what its runs took."""

import pytest

from distill_jax.study.arms import Arm
from distill_jax.study.results import PlannedArm
from distill_jax.study.timetable import Took, run_seconds, seconds_left

KD = PlannedArm(Arm("kd", "", {}), 10, 400)
SFT = PlannedArm(Arm("sft", "", {}), 20, 100)


def test_nothing_is_expected_before_anything_was_measured():
    assert run_seconds(KD, []) is None
    assert seconds_left(KD, 0.0, [SFT], []) is None


def test_an_arm_is_expected_to_take_what_it_took_or_by_its_operations():
    took = [Took("kd", 400, 8.0, rest_s=30.0)]
    assert run_seconds(KD, took) == 10 * 8 + 30
    assert run_seconds(SFT, took) == 20 * 2 + 30
    took.append(Took("sft", 100, 3.0, rest_s=20.0))
    assert run_seconds(SFT, took) == 20 * 3 + 25


def test_what_the_current_run_has_taken_is_not_left_and_never_below_nothing():
    took = [Took("kd", 400, 8.0)]
    assert seconds_left(KD, 50.0, [SFT, KD], took) == pytest.approx(30 + 40 + 80)
    assert seconds_left(KD, 500.0, [], took) == 0
