"""Which arms a study has, and what each one changes."""

import pytest

from configs.base import get_config
from distill_jax.config import flatten
from distill_jax.setup.arm_config import Shared, arm_config, cacheable
from distill_jax.study.arms import ARMS, DEFAULT, arms_of
from distill_jax.types import UserError

BASE = flatten(get_config())


def config(**changes):
    c = get_config("study")
    c.teacher.path = "teacher"
    c.update_from_flattened_dict(changes)
    return c


def test_no_name_chosen_means_the_default_arms_and_every_ablation():
    arms = arms_of((), {"hot": {"terms.forward_kl.temperature": 2.0}}, BASE)
    assert [arm.name for arm in arms] == [*DEFAULT, "hot"]


def test_several_values_are_axes_and_their_product_is_arms():
    overrides = {"terms.forward_kl.temperature": (1.0, 2.0), "optim.learning_rate": (1e-3, 1e-4)}
    arms = arms_of(("hot",), {"hot": overrides}, BASE)
    assert len(arms) == len({arm.name for arm in arms}) == 4
    points = {tuple(arm.overrides.values()) for arm in arms}
    assert points == {(t, r) for t in (1.0, 2.0) for r in (1e-3, 1e-4)}
    assert all(set(arm.name) <= set("abcdefghijklmnopqrstuvwxyz_-=.0123456789") for arm in arms)


def test_a_sequence_for_a_key_that_is_one_is_a_value_and_a_sequence_of_them_an_axis():
    one = arms_of(("f",), {"f": {"optim.frozen": ("embedding",)}}, BASE)
    assert [arm.overrides["optim.frozen"] for arm in one] == [("embedding",)]
    two = arms_of(("f",), {"f": {"optim.frozen": ((), ("embedding",))}}, BASE)
    # () alone is no axis: an axis is made of sequences, and the empty one is one of them.
    assert [arm.overrides["optim.frozen"] for arm in two] == [(), ("embedding",)]


@pytest.mark.parametrize(
    ("chosen", "ablations", "said"),
    [
        (("kd", "stf"), {}, "'stf': use some of kd, sft"),
        (("kd", "kd"), {}, "an arm twice"),
        (("sft", "sft_flops"), {}, "without kd, whose operations"),
        (("kd",), {"sft": {"steps": 5}}, "name of a built-in arm"),
        ((), {"hot": {"terms.forward_kl.temp": 2.0}}, "temp, which is not a key"),
    ],
)
def test_mistakes_are_one_line(chosen, ablations, said):
    with pytest.raises(UserError, match=said) as error:
        arms_of(chosen, ablations, BASE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ARMS)
def test_arms_differ_in_what_they_say_alone(name):
    """Data, order, start and schedule are the same, or the comparison would be of these."""
    c, arm = config(), ARMS[name]
    kd, mine = flatten(arm_config(c, ARMS["kd"], 3)), flatten(arm_config(c, arm, 3))
    changed = {key for key in kd if kd[key] != mine[key]}
    terms = {key for key in kd if key.startswith("terms.")} if arm.labels_alone else set()
    assert changed <= terms | set(arm.overrides)
    assert mine["seed"] == 3
    assert not any(key.startswith("study.") for key in mine)


@pytest.mark.parametrize("name", [n for n, arm in ARMS.items() if arm.labels_alone])
def test_labels_alone_leave_one_term(name):
    c = config(**{"terms.reverse_kl.schedule": "linear:1"})
    mine = arm_config(c, ARMS[name], 0)
    assert {n for n, t in mine.terms.items() if t.weight or t.schedule != "constant"} == {
        "cross_entropy"
    }


def test_a_cache_serves_only_those_who_learn_from_all_of_the_one_teacher():
    c, shared = config(), Shared("cache", {0: "start"})
    can = lambda **more: cacheable(c, config(**more))
    assert can()
    assert not can(**{"teacher.targets": "top_k"})
    assert not can(**{"teacher.more": ("another",)})
    assert not can(**{"teacher.path": "another"})
    assert not can(**{"teacher.init": "random"})
    assert not can(**{"data.seq_len": 64})
    assert arm_config(c, ARMS["kd"], 0, shared).teacher.cache == "cache"
    assert arm_config(c, ARMS["random_teacher"], 0, shared).teacher.cache == ""
    assert arm_config(c, ARMS["sft"], 0, shared).teacher.cache == ""


def test_arms_of_a_seed_share_their_start_unless_they_change_the_student():
    c, shared = config(**{"student.init": "prune"}), Shared("", {0: "start"})
    for name in ("kd", "sft", "random_teacher"):
        mine = arm_config(c, ARMS[name], 0, shared)
        assert (mine.student.path, mine.student.init) == ("start", "checkpoint")
    assert arm_config(c, ARMS["scratch"], 0, shared).student.init == "random"
    (narrow,) = arms_of(("n",), {"n": {"student.prune.neurons": 8}}, BASE)
    assert arm_config(c, narrow, 0, shared).student.init == "prune"


def test_an_override_of_another_type_is_refused():
    (arm,) = arms_of(("n",), {"n": {"steps": "many"}}, BASE)
    with pytest.raises((UserError, TypeError), match=r"steps|many"):
        arm_config(config(), arm, 0)


def test_an_ablation_named_after_its_axis_does_not_say_so_twice():
    axis = {"terms.forward_kl.temperature": (1.0, 2.0)}
    names = lambda name: [arm.name for arm in arms_of((name,), {name: axis}, BASE)]
    assert names("temperature") == ["temperature=1.0", "temperature=2.0"]
    assert names("hot") == ["hot-temperature=1.0", "hot-temperature=2.0"]
