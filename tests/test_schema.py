"""Limits of numbers stand in the comments of the schema, and nothing passes beyond them."""

import json
import math
import re
from contextlib import nullcontext

import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from distill_jax.command_line import parse
from distill_jax.config import OF_NUMBERS, check_keys, flatten, leaves, load_base
from distill_jax.losses.terms import MOST_WEIGHT
from distill_jax.schema import CHOICES, check_values, key_limits
from distill_jax.setup.arm_config import check_study
from distill_jax.setup.inputs import check
from distill_jax.setup.steps import fit_to_steps
from distill_jax.types import UserError
from tests import cli

BASE = leaves(load_base())
NUMBERS = [key for key, value in BASE.items() if type(value) in (int, float)] + [*OF_NUMBERS]
EXTREME = (math.nan, math.inf, -math.inf, -1, 0, 0.5, 1e-300, 1e300, -1e-300, 2**63, 10**400)


def test_every_number_has_limits_and_its_default_is_within():
    assert set(key_limits()) == set(NUMBERS)
    check_values(BASE)
    for limits in key_limits().values():
        assert limits.least < limits.most
        # No smaller number is 0 in float32, which is another thing than what was asked for.
        assert limits.apart is None or not 0 < limits.least < 1e-30


def config(world, **keys):
    c = load_base()
    paths = {f"{name}.path": str(world / name) for name in ("teacher", "student")}
    c.update_from_flattened_dict(paths | {"data.source": str(world / "text.jsonl")} | keys)
    return c


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_is_within_its_limits_or_refused_in_one_line_that_names_it(world, key):
    """What is accepted passes, or fails in one line, in all that is looked at before reading."""
    limits, base, term = key_limits()[key], load_base(), key.rpartition(".")[0]
    more = {} if not key.startswith("terms.") else {f"{term}.weight": 1.0}
    for value in (*EXTREME, limits.least, limits.most, limits.apart):
        if value is None:
            continue
        # As the command line does with a whole number that is written as 1e9.
        whole = type(BASE[key]) is int and (isinstance(value, int) or value.is_integer())
        number, accepted = int(value) if whole else value, False
        try:
            c = config(world, **more)
            values = leaves(c) | {key: (number,) if key in OF_NUMBERS else number}
            c = ConfigDict(traverse_util.unflatten_dict(values, sep="."))
            check_keys(c, base)
            check_values(leaves(c))
            assert limits.hold(number)
            accepted = True
            check(fit_to_steps(c, base)[0])
            check_study(c)
        except UserError as error:
            (line,) = str(error).splitlines()
            assert (key.rpartition(".")[2] if accepted else f"config.{key} is ") in line


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e+300", "-1"])
def test_a_flag_is_refused_as_the_key_of_a_file_is(text):
    words = ["main", "--config=configs/base.py", "--workdir=x"]
    with pytest.raises(
        UserError, match=rf"config\.optim\.beta1 is {re.escape(str(float(text)))}: use 0 to 0.99"
    ):
        parse([*words, f"--config.optim.beta1={text}"])
    with pytest.raises(UserError, match=r"config\.seed is .*: (use 0 to|give a whole)"):
        parse([*words, f"--config.seed={text}"])


@pytest.mark.parametrize("key", CHOICES)
def test_a_word_is_one_of_the_choices(key):
    with pytest.raises(UserError, match=rf"config\.{key} is 'float23': (use|did you mean)"):
        check_values({key: "float23"})


@pytest.mark.parametrize("shape", ["linear:{}", "cosine:{}", "steps:1={}"])
def test_a_schedule_ends_within_the_limits_of_the_weight(world, shape):
    assert key_limits()["terms.forward_kl.weight"].most == MOST_WEIGHT
    for value in EXTREME:
        c = config(world, **{"terms.forward_kl.schedule": shape.format(value)})
        allowed = 0 <= value <= MOST_WEIGHT
        with nullcontext() if allowed else pytest.raises(UserError, match="schedule is"):
            check(c)


@pytest.mark.parametrize(
    "text", ["steps:5=0.5,3=1", "steps:5=0.5,5=1", "steps:-1=1", f"steps:{2**31}=1", "steps:"]
)
def test_the_steps_of_a_schedule_rise(world, text):
    with pytest.raises(UserError, match=r"forward_kl\.schedule is .* with rising steps"):
        check(config(world, **{"terms.forward_kl.schedule": text}))


def test_an_ablation_beyond_a_limit_is_told_before_anything_is_read(flags, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs.base import get_config as base\n"
        "def get_config(variant='study'):\n"
        "    c = base(variant)\n"
        "    c.study.ablations.cold = {'optim': {'beta1': (0.9, 1.5)}}\n"
        "    return c\n"
    )
    done = cli.run(f"--workdir={tmp_path / 's'}", *flags, config=file)
    assert done.returncode == 2
    assert "arm cold-beta1=1.5: config.optim.beta1 is 1.5: use 0 to 0.999999" in done.stderr
    assert "teacher: " not in done.stdout


def test_a_run_whose_config_was_damaged_is_refused(tmp_path):
    """JSON has no NaN, but Python reads it."""
    (tmp_path / "config.json").write_text(
        json.dumps(flatten(load_base()) | {"optim.beta1": math.nan})
    )
    done = cli.run(f"--workdir={tmp_path}", config=None)
    assert done.returncode == 2
    assert done.stderr.startswith("error: config.optim.beta1 is nan: use 0 to 0.999999 (AdamW:")


def test_a_rate_of_zero_is_a_baseline_that_says_so(flags, tmp_path):
    done = cli.run(f"--workdir={tmp_path}", *flags, "--config.optim.learning_rate=0")
    assert done.returncode == 0, done.stderr
    assert "\nconfig.optim.learning_rate is 0: the student stays as it is\n" in done.stdout
    nll = [line["eval/nll"] for line in cli.metrics(tmp_path) if "eval/nll" in line]
    assert len(set(nll)) == 1
