"""What the words of a command line mean, and what is said of those that mean nothing."""

import json

import pytest

from distill_jax.command_line import parse
from distill_jax.config import flatten, leaves, load_base
from distill_jax.key_names import OTHER_FLAGS, OTHER_WORDS
from distill_jax.types import UserError
from tests.cli import ROOT

BASE = (f"--config={ROOT / 'configs/base.py'}", "--workdir=w")


def value(key, *words):
    return leaves(parse(["main", *BASE, *words]).config)[key]


def test_a_word_of_its_own_is_the_value_of_the_flag_before_it():
    command = parse(["main", "--config", str(ROOT / "configs/base.py:study"), "--workdir", "w"])
    assert (command.config.job, str(command.workdir)) == ("study", "w")


def test_a_home_directory_may_be_short(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(parse(["main", BASE[0], "--workdir=~/runs"]).workdir) == "/home/me/runs"


FORMS = {
    ("--config.steps=1e3",): ("steps", 1000),
    ("--config.steps", "7"): ("steps", 7),
    (f"--config.seed={2**60 + 1}",): ("seed", 2**60 + 1),
    ("--config.verdict.margin", "-1"): ("verdict.margin", -1.0),
    ("--config.optim.clip_norm=2",): ("optim.clip_norm", 2.0),
    ("--config.study.gate",): ("study.gate", True),
    ("--config.study.gate", "--config.steps=1"): ("study.gate", True),
    ("--config.study.gate", "no"): ("study.gate", False),
    ("--noconfig.study.cache",): ("study.cache", False),
    ("--config.study.arms=kd",): ("study.arms", ("kd",)),
    ("--config.study.arms=kd,sft",): ("study.arms", ("kd", "sft")),
    ("--config.study.arms=(kd,sft)",): ("study.arms", ("kd", "sft")),
    ("--config.study.arms=['kd', 'sft']",): ("study.arms", ("kd", "sft")),
    ("--config.study.arms=kd", "--config.study.arms=sft"): ("study.arms", ("kd", "sft")),
    ("--config.study.arms=",): ("study.arms", ()),
    ("--config.teacher.weights=0.5,1",): ("teacher.weights", (0.5, 1)),
    ("--config.generate.prompts=Once upon a time",): ("generate.prompts", ("Once upon a time",)),
    ("--config.generate.prompts=@file.jsonl",): ("generate.prompts", ("@file.jsonl",)),
    ("--config.generate.prompts=('a, b',)",): ("generate.prompts", ("a, b",)),
}


@pytest.mark.parametrize("words", FORMS)
def test_a_value_may_be_written_in_several_ways(words):
    key, expected = FORMS[words]
    assert value(key, *words) == expected
    assert type(value(key, *words)) is type(expected)


MISTAKES = {
    "--config.optim.lr=1": "did you mean config.optim.learning_rate?",
    "--config.lr=1": "did you mean config.optim.learning_rate?",
    "--lr=1": "did you mean --config.optim.learning_rate?",
    "--batch-size=1": "did you mean --config.data.batch_size?",
    "--fp16": "did you mean --config.model.compute_dtype?",
    "--output_dir=x": "did you mean --workdir?",
    "--wrkdir=x": "did you mean --workdir?",
    "--teacher=x": "did you mean --config.teacher.path?",
    "--config.teacher=x": "config.teacher is a group of keys: did you mean config.teacher.path?",
    "--config.mesh=1": "it has data, expert, fsdp, sequence, tensor",
    "--config.teacher.model=x": "did you mean config.teacher.path?",
    "--config.data.path=x": "did you mean config.data.source?",
    "--config.mesh.zzz=1": "config.mesh has data, expert, fsdp, sequence, tensor",
    "--config.steps=2.5": "config.steps is '2.5': give a whole number",
    f"--config.steps={'9' * 400}": f"steps is '{'9' * 99}...: give a whole number",
    f"--config.steps={'9' * 300}": f"steps is {'9' * 100}...: use 0 to",
    "--config.steps=many": "config.steps is 'many': give a whole number",
    "--config.steps": "write --config.steps=VALUE",
    "--config.optim.learning_rate=nan": "learning_rate is nan: use 0, or 1e-12 to 1000 (peak",
    "--config.optim.learning_rate=inf": "learning_rate is inf: use 0, or",
    "--config.study.gate=maybe": "give true or false",
    "--config.study.arms=(kd": """such as --config.study.arms='("one", """,
    "--config.generate.prompts=Once, twice": "strings in double quotes",
    "--config.study.arms=1": """config.study.arms has 1 in it: give strings, as ("text",)""",
    "--config.teacher.weights=a": "has 'a' in it: give numbers, such as (0.5, 1)",
    "--processes=two": "--processes is 'two': give a whole number",
    "steps=1": "flags look like --config.steps=100",
    "--": "flags look like",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_is_answered_with_what_may_be_meant(word):
    with pytest.raises(UserError) as error:
        parse(["main", *BASE, word])
    assert MISTAKES[word] in str(error.value)
    assert "\n" not in str(error.value)


def test_other_words_stand_for_keys_and_flags_that_exist():
    """A word that is itself a key would never be asked for."""
    keys = flatten(load_base())
    assert set(OTHER_WORDS) <= set(keys)
    words = [word for text in OTHER_WORDS.values() for word in text.split()]
    assert not set(words) & set(keys)
    assert {w for text in OTHER_FLAGS.values() for w in text.split()}.isdisjoint(OTHER_FLAGS)


def test_a_run_is_read_from_its_directory(tmp_path):
    saved = flatten(load_base()) | {
        "steps": 7, "optim.clip_norm": 2, "study.arms": ["kd"], "study.ablations.hot.steps": 3,
        "key.of.another.version": 1,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(saved))
    config = parse(["main", f"--workdir={tmp_path}", "--config.job=export"]).config
    assert (config.job, config.steps, config.optim.clip_norm) == ("export", 7, 2.0)
    assert config.study.arms == ("kd",)
    assert config.study.ablations.hot.steps == 3
    assert "key" not in config
    # A file that is given is all that counts.
    assert parse(["main", BASE[0], f"--workdir={tmp_path}"]).config.steps == 1000


def test_without_a_file_and_a_run_both_ways_are_named(tmp_path):
    with pytest.raises(UserError, match=r"--config=configs/quickstart\.py, or the --workdir"):
        parse(["main", f"--workdir={tmp_path}"])
    with pytest.raises(UserError, match="nothing says what to do"):
        parse(["main"])
    with pytest.raises(UserError, match="--workdir is missing"):
        parse(["main", BASE[0]])
    with pytest.raises(UserError, match="gs://bucket/run is an address of gs, which is not"):
        parse(["main", BASE[0], "--workdir=gs://bucket/run"])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged, as is config_diff\.txt"):
        parse(["main", f"--workdir={tmp_path}"])
