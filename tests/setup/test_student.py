"""A student that would start as its own teacher is refused; whatever differs from it is not."""

import pytest

from distill_jax.config import load_base
from distill_jax.setup import student
from distill_jax.setup.loss import terms_of
from distill_jax.types import UserError


def checked(tmp_path, **keys):
    """Checks base with some keys, `{here}` being a directory that exists."""
    c = load_base()
    keys = {k: v.format(here=tmp_path) if isinstance(v, str) else v for k, v in keys.items()}
    c.update_from_flattened_dict({"teacher.path": str(tmp_path)} | keys)
    student.check(c, terms_of(c))


PRUNE = {"student.init": "prune"}
LABELS = {"terms.forward_kl.weight": 0.0, "terms.cross_entropy.weight": 1.0}
REFUSED = {
    "nothing said of the student": {},
    "the teacher's path": {"student.path": "{here}"},
    "the same directory by another path": {"student.path": "{here}/."},
    "with labels beside": {"terms.cross_entropy.weight": 1.0},
    "a later weight": {"terms.forward_kl.weight": 0.0, "terms.forward_kl.schedule": "linear:1",
                       "terms.cross_entropy.weight": 1.0},
    "prune to everything": PRUNE,
}  # fmt: skip
ALLOWED = {
    "a copy that is meant": {"student.init": "copy"},
    "a copy by its path": {"student.init": "copy", "student.path": "{here}"},
    "another path": {"student.path": "elsewhere"},
    "random weights": {"student.init": "random"},
    "fewer blocks": PRUNE | {"student.prune.blocks": 1},
    "fewer neurons": PRUNE | {"student.prune.neurons": 8},
    "labels alone": LABELS,
    "labels alone, without a teacher": LABELS | {"teacher.path": "", "student.path": "x"},
    "its own running average": {"teacher.path": "average", "student.path": "x"},
    "several teachers": {"teacher.more": ("second",)},
    "a teacher without knowledge": {"teacher.init": "random"},
    "a cache": {"teacher.path": "", "teacher.cache": "c", "student.path": "{here}"},
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_copy_is_refused_with_the_three_ways_to_a_smaller_student(tmp_path, case):
    with pytest.raises(UserError) as error:
        checked(tmp_path, **REFUSED[case])
    text = str(error.value)
    for way in ("student.path=PATH", "student.init=prune", ".neurons=N", "student.init=random"):
        assert way in text
    assert "\n" not in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_epsilon_that_is_nothing_in_the_students_dtype_is_refused(tmp_path, dtype):
    """Else an update of 0 / 0 breaks down where a gradient is small, with all defaults."""
    keys = {"student.path": "elsewhere", "student.dtype": dtype}
    if dtype == "float16":
        with pytest.raises(UserError, match="epsilon is 1e-08, which is 0 in"):
            checked(tmp_path, **keys)
        keys["optim.epsilon"] = 1e-7
    checked(tmp_path, **keys)


@pytest.mark.parametrize("case", ALLOWED)
def test_what_differs_from_the_teacher_or_is_meant_is_not_refused(tmp_path, case):
    checked(tmp_path, **ALLOWED[case])


@pytest.mark.parametrize("keys", [{"teacher.path": ""}, {"student.path": "elsewhere"}])
def test_a_copy_needs_a_teacher_and_no_other_student(tmp_path, keys):
    with pytest.raises(UserError, match=r"student.init is copy"):
        checked(tmp_path, **{"student.init": "copy"} | keys)
