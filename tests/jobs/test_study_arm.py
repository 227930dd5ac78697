"""What stands before the lines of a study: which run it is, and what is left of all of them."""

import pytest

from distill_jax.jobs.study_arm import label_of, weak_teacher
from distill_jax.progress import COMPILE, Progress
from distill_jax.study.arms import Arm
from distill_jax.study.results import PlannedArm
from distill_jax.study.timetable import Took

KD = PlannedArm(Arm("kd", "distilled"), 10, 400)
SFT = PlannedArm(Arm("sft", "labels"), 20, 100)


def test_a_first_run_tells_what_its_steps_say_and_later_ones_what_runs_took():
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    label = label_of("run 1/3 kd seed 0 · 0 done", KD, [SFT, KD], [], progress)
    with progress.stage(COMPILE, "compiling the training step") as stage:
        now[0] = 500
        assert label(stage) == "run 1/3 kd seed 0 · 0 done · "
    with progress.stage("train", "training") as stage:
        stage.tell("step 1/10", 54.0, 6.0)
        now[0] += 12
        # 60 - 12 seconds of this run, 20 steps of a quarter of the operations, and 60 seconds.
        assert label(stage) == "run 1/3 kd seed 0 · 0 done · more than 2m18s left · "
    took = [Took("kd", 400, 6.0, rest_s=40.0)]
    label = label_of("run 2/3 sft seed 0 · 1 done", SFT, [KD], took, progress)
    with progress.stage("load", "reading") as stage:
        assert label(stage) == "run 2/3 sft seed 0 · 1 done · 2m50s left · "


@pytest.mark.parametrize(
    ("start", "warned"),
    [
        ({"eval/nll": 5.47, "eval/teacher_nll": 5.63}, True),
        ({"eval/nll": 5.47, "eval/teacher_nll": 5.47}, True),
        ({"eval/nll": 5.47, "eval/teacher_nll": 3.2}, False),
        ({"eval/nll": 5.47}, False),  # of the student's average, which is not compared with
    ],
)
def test_a_teacher_that_knows_no_more_than_the_student_is_told_at_once(start, warned):
    text = weak_teacher(start)
    assert (text is not None) == warned
    if warned:
        assert f"the teacher ({start['eval/teacher_nll']:.3f} nats per token)" in text
        assert "before training (5.470)" in text
