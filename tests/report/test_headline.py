"""What a page says first: right about every kind of result, also the unpleasant ones."""

import itertools
import math

import pytest

from distill_jax.report.headline import (
    FRACTIONS,
    diagnose_answer,
    study_answer,
    verdict_headline,
)
from distill_jax.report.headline import run_answer as answer_of
from distill_jax.report.tables import ModelRow
from distill_jax.report.taught import Taught
from distill_jax.study.rules import HELPS, INCONCLUSIVE, INVALID, NO_BETTER, WORSE
from distill_jax.words import NEW_FAILURE
from tests.report import sample_report

TEACHER = ModelRow("teacher", 1000, 2.6172, 0.0, 1.0, 54.2)
BEFORE = ModelRow("student before", 500, 3.771, 1.243, 0.487, 90.0)
AFTER = ModelRow("student after", 500, 3.35, 0.912, 0.564, 92.1)


def run_answer(rows, taught=Taught()):  # noqa: B008
    return answer_of(rows, taught)


def rows(teacher=TEACHER, before=BEFORE, after=AFTER, **changes):
    return [teacher, before._replace(**changes), after._replace(**changes)]


def test_size_speed_and_likelihood_are_the_headline():
    answer = run_answer(rows())
    assert answer.headline == "Half the size, 1.7x as fast, NLL +0.73 over its teacher"
    assert answer.findings == [
        "Training lowered NLL from 3.771 to 3.350 nats per token, and lowered KL to the teacher"
        " from 1.243 to 0.912. That is 36% of the way to its teacher's NLL of 2.617."
    ]


@pytest.mark.parametrize(
    ("nll", "words"),
    [
        (2.6172, "NLL equal to its teacher's within 0.01"),
        (2.6216, "NLL equal to its teacher's within 0.01"),
        (2.6132, "NLL equal to its teacher's within 0.01"),
        (2.63, "NLL +0.013 over its teacher"),
        (2.5, "NLL 0.12 under its teacher, which is better"),
        (math.nan, "NLL not finite: the numbers broke down"),
    ],
)
def test_no_difference_is_called_zero(nll, words):
    answer = run_answer(rows(after=AFTER._replace(nll=nll)))
    assert answer.headline.endswith(words)
    assert "0.00" not in answer.headline


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (1000, "The same size"), (985, "About the same size"), (1020, "About the same size"),
        (500, "Half the size"), (340, "A third of the size"), (250, "A quarter of the size"),
        (430, "43% of the size"), (40, "1/25 of the size"), (2500, "2.5x the size"),
    ],
)  # fmt: skip
def test_a_size_has_its_words(parameters, words):
    assert run_answer(rows(parameters=parameters)).headline.split(",")[0] == words


def test_fractions_are_told_apart():
    for a, b in itertools.combinations(FRACTIONS, 2):
        assert abs(a / b - 1) > 0.1


def test_a_size_that_is_not_known_is_left_out():
    assert run_answer(rows(TEACHER._replace(parameters=None))).headline.startswith("1.7x as fast")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (90.0, 92.1, "1.7x as fast"),
        (None, 92.1, "1.7x as fast"),
        (20.0, 21.0, "0.39x as fast"),
        (54.0, 55.0, "about as fast"),
        (20.0, 92.1, None),  # one architecture, so the two timings differ by chance
        (90.0, None, None),
    ],
)
def test_speed_is_told_where_it_was_measured_and_is_no_noise(before, after, words):
    answer = run_answer(
        rows(
            before=BEFORE._replace(decode_tokens_per_s=before),
            after=AFTER._replace(decode_tokens_per_s=after),
        )
    )
    parts = [part for part in answer.headline.split(", ") if "fast" in part]
    assert parts == ([words] if words else [])
    told = [text for text in answer.findings if "tokens/s" in text]
    assert bool(told) == (words is None and after is not None)


def test_a_training_that_made_it_worse_says_so():
    answer = run_answer(rows(after=AFTER._replace(nll=3.9)))
    assert answer.findings[0].startswith(
        "Training made it worse: it raised NLL from 3.771 to 3.900"
    )
    assert "of the way" not in answer.findings[0]
    still = run_answer(rows(after=AFTER._replace(nll=3.7711)))
    assert still.findings[0].startswith("Training left NLL at 3.771")


def test_a_teacher_that_knows_less_is_named():
    poor = run_answer(rows(TEACHER._replace(nll=7.1)))
    assert "The teacher predicts this text less well" in poor.findings[-1]
    past = run_answer(rows(TEACHER._replace(nll=3.5)))
    assert "It went past its teacher's NLL of 3.500" in past.findings[0]


def test_without_a_teacher_training_is_the_answer():
    alone = {"forward_kl": None, "agreement_top1": None, "decode_tokens_per_s": None}
    students = [BEFORE._replace(**alone), AFTER._replace(**alone)]
    answer = run_answer(students, Taught(0, labels_alone=True))
    assert answer.headline == "Training lowered NLL from 3.771 to 3.350 nats per token"
    assert "There was no teacher" in answer.findings[0]


@pytest.mark.parametrize(
    ("taught", "words"),
    [
        (Taught(0, average=True), "Its teacher was its own running average"),
        (Taught(0), "Its teacher's signals came from a cache"),
        (Taught(0, labels_alone=True), "learned from the text alone"),
    ],
)
def test_a_teacher_that_is_not_compared_with_is_no_missing_teacher(taught, words):
    alone = {"forward_kl": None, "agreement_top1": None, "decode_tokens_per_s": None}
    students = [BEFORE._replace(**alone), AFTER._replace(**alone)]
    (told,) = run_answer(students, taught).findings
    assert words in told
    assert ("no teacher" in told) == taught.labels_alone


@pytest.mark.parametrize(
    ("taught", "words"),
    [
        (Taught(), []),
        (Taught(2), ["the mixture of 2 models"]),
        (Taught(1, average=True), ["its own running average, too, besides the teacher here"]),
        (Taught(2, average=True), ["of 2 models", "too, besides that mixture"]),
        (Taught(labels_alone=True), ["its loss compares with no teacher"]),
    ],
)
def test_several_teachers_are_told(taught, words):
    told = run_answer(rows(), taught).findings[1:]
    assert len(told) == len(words)
    assert all(word in text for word, text in zip(words, told, strict=True))


def test_nearer_to_a_teacher_that_predicts_less_well_is_what_the_loss_asked():
    before = ModelRow("student before", 500, 5.406, 0.361, 0.157, None)
    after = ModelRow("student after", 500, 5.584, 0.009, 0.824, None)
    answer = run_answer([TEACHER._replace(nll=5.59), before, after])
    assert answer.findings[0] == (
        "Training brought the student nearer to its teacher: it lowered KL to the teacher from"
        " 0.361 to 0.0090, and raised top-1 agreement from 15.7% to 82.4%. It raised NLL from"
        " 5.406 to 5.584 nats per token, because the teacher predicts this text less well (5.590)"
        " than the student did before."
    )


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.0008, 0.00025, "and lowered KL to the teacher from 0.00080 to 0.00025"),
        (0.00025, 0.0008, "but raised KL to the teacher from 0.00025 to 0.00080"),
        (0.0008, 0.00081, "and left KL to the teacher at 0.00081"),
        (2e-9, 4e-7, "and left KL to the teacher at 0.000"),  # the rounding of float32
        (1.243, 1.245, "and left KL to the teacher at 1.245"),
    ],
)
def test_a_small_number_that_changed_is_not_called_0(before, after, words):
    moved = rows(before=BEFORE._replace(forward_kl=before), after=AFTER._replace(forward_kl=after))
    assert words in run_answer(moved).findings[0]


def test_a_diagnosis_says_where_most_of_it_is():
    found = sample_report.study()["diagnose"]
    answer = diagnose_answer([TEACHER, AFTER._replace(name="student")], found)
    assert answer.headline == "Half the size, NLL +0.73 over its teacher"
    assert answer.findings == [
        "NLL is 3.350 nats per token, its teacher's 2.617; KL to the teacher is 0.912.",
        "14.3% of the tokens carry half of the divergence; the largest cause: beyond a student of"
        " this size (21.4% of all of it).",
    ]
    nothing = found | {"half_of_kl_share": None, "classes": []}
    assert len(diagnose_answer([TEACHER, AFTER], nothing).findings) == 1


def study(steps, flops, effect=-0.07164):
    told = sample_report.study()
    told["verdict"]["equal_steps"] |= {"label": steps, "effect": effect}
    told["verdict"]["ships"] = steps == HELPS and flops in (HELPS, None)
    if flops is None:
        told["verdict"]["equal_flops"] = None
    else:
        told["verdict"]["equal_flops"] |= {"label": flops, "effect": effect}
    return study_answer(told).headline


LABELS = (HELPS, NO_BETTER, WORSE, INCONCLUSIVE, INVALID, f"{NEW_FAILURE}frequency:1 of 10")
STARTS = ("Yes: ", "No: ", "Not decided yet: ", "No answer: ")


@pytest.mark.parametrize("flops", [*LABELS, None])
@pytest.mark.parametrize("steps", LABELS)
def test_a_study_answers_every_pair_of_verdicts(steps, flops):
    text = study(steps, flops)
    assert text.startswith(STARTS)
    assert text.startswith("Yes") == (steps == HELPS and flops in (HELPS, None))
    assert text.startswith("No answer") == (INVALID in (steps, flops))
    assert ("equal FLOPs" in text) == (flops is not None)
    assert ":1 of 10" not in text


@pytest.mark.parametrize(
    ("steps", "flops", "text"),
    [
        (HELPS, HELPS, "Yes: against labels alone, distilling is better by 0.072 at equal steps and"
         " at equal FLOPs (nats per token)"),
        (WORSE, NO_BETTER, "No: against labels alone, distilling is worse by 0.072 at equal steps,"
         " and is no better at equal FLOPs (nats per token)"),
        (HELPS, INCONCLUSIVE, "Not decided yet: against labels alone, distilling is better by 0.072"
         " at equal steps, and may or may not be better at equal FLOPs (nats per token)"),
        (INVALID, None, "No answer: against labels alone, distilling could not be compared at equal"
         " steps"),
        (LABELS[-1], None, "No: against labels alone, distilling does harm to rare tokens (least"
         " frequent tenth) at equal steps"),
    ],
)  # fmt: skip
def test_known_answers(steps, flops, text):
    assert study(steps, flops) == text


@pytest.mark.parametrize("label", LABELS)
def test_a_verdict_on_two_arms_is_answered(label):
    one = sample_report.comparison("sft", -0.0716, 0.01, label)
    text = verdict_headline(one, ship=label == HELPS)
    assert text.startswith(STARTS)
    assert ": against sft, kd " in text
    if label == HELPS:
        assert text == "Yes: against sft, kd is better by 0.072 (nats per token)"
