"""What a study is judged by: the registered measure first, the others behind it."""

import pytest

from configs.base import get_config
from distill_jax.setup.measures import measures_of
from distill_jax.types import UserError


def config(measure="nll", **changes):
    """A config that can be judged by everything."""
    c = get_config("study")
    c.teacher.path, c.study.scorer, c.eval.tasks = "teacher", "mine.py:score", ("arc", "gsm")
    c.update_from_flattened_dict({"study.measure": measure} | changes)
    return c


def names(c):
    return [measure.name for measure in measures_of(c)]


@pytest.mark.parametrize("measure", ["nll", "kl_to_teacher", "scorer", "arc", "gsm"])
def test_the_registered_measure_is_first_and_the_others_keep_their_order(measure):
    every = ["nll", "kl_to_teacher", "scorer", "arc", "gsm"]
    assert names(config(measure)) == [measure, *(name for name in every if name != measure)]


def test_units_and_directions():
    units = {m.name: (m.unit, m.higher_is_better) for m in measures_of(config())}
    tokens, examples = ("nats per token", False), ("score per example", True)
    assert units == {
        "nll": tokens, "kl_to_teacher": tokens, "scorer": examples, "arc": examples,
        "gsm": examples,
    }  # fmt: skip


def test_a_metric_of_a_task_stands_for_the_task():
    c = config("gsm/exact_match,strict")
    assert names(c) == ["gsm/exact_match,strict", "nll", "kl_to_teacher", "scorer", "arc"]


@pytest.mark.parametrize(
    ("measure", "changes", "said"),
    [
        ("nlll", {}, "did you mean nll?"),
        ("mmlu", {}, "use one of nll, kl_to_teacher, scorer, arc, gsm"),
        ("mmlu/acc", {}, "study.measure is 'mmlu/acc'"),
        ("nll/acc", {}, "study.measure is 'nll/acc'"),
        ("gsm", {"eval.tasks": ()}, "use one of nll, kl_to_teacher, scorer"),
        ("scorer", {"study.scorer": ""}, "give --config.study.scorer=FILE.py:FUNCTION"),
        ("kl_to_teacher", {"teacher.path": ""}, "use one of nll, scorer, arc, gsm"),
    ],
)
def test_what_the_config_does_not_measure_is_one_line(measure, changes, said):
    with pytest.raises(UserError, match=r"study\.measure is") as error:
        measures_of(config(measure, **changes))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["teacher.path", "teacher.cache"])
def test_nearness_to_a_teacher_needs_one(source):
    c = config(**{"teacher.path": "", source: "somewhere"})
    assert "kl_to_teacher" in names(c)
