"""A user's own config file: where it is found, what it imports, what is said where it fails."""

import json
import sys

import pytest

from distill_jax.config import flatten, load_base
from distill_jax.config_file import load_config
from distill_jax.files import sealed
from distill_jax.types import UserError

OWN = "from configs.base import get_config as base\ndef get_config():\n  c = base()\n"
MISTAKES = {
    "lacks.py": ("x = 1\n", "has no function get_config"),
    "gives.py": ("def get_config():\n  return {}\n", "gives a dict"),
    "exits.py": ("import sys\nsys.exit(3)\n", "cannot be run (line 2): SystemExit: 3"),
    "raises.py": (OWN + "  1 / 0\n", "cannot be run (line 4): ZeroDivisionError"),
    "syntax.py": ("\ndef get_config(:\n", "cannot be read (line 2): invalid syntax"),
    "binary.py": ("\0", "cannot be read"),
    "a.txt": ("{}", "is no Python file"),
    "list.json": ("[]", "is not a JSON object"),
    "half.json": ("{", "not JSON"),
    "deep.json": ('{"a":' * 10**4, "nested deeper"),
    "unknown.json": ('{"optim.learning_rat": 1}', "learning_rate"),
    "scorer.json": ('{"study.scorer": "a.py:f"}', "names a program to run"),
    "nested.json": ('{"study": {"scorer": "a.py:f"}}', "names a program to run"),
    "ablation.json": ('{"study.ablations.x.study.scorer": "a.py:f"}', "names a program to run"),
    "filter.json": ('{"data.clean.filter": "a.py:f"}', "names a program to run"),
    "tasks.json": ('{"eval.task_path": "tasks"}', "names a program to run"),
    "kind.json": ('{"steps": "many"}', "config.steps is 'many', a string: give a whole number"),
    "half_step.json": ('{"steps": 0.5}', "config.steps is 0.5, a number: give a whole number"),
    "null.json": ('{"data": {"source": null}}', "config.data.source is None"),
    "entry.json": ('{"generate.prompts": [1]}', "config.generate.prompts has 1 in it"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_file_that_gives_no_config_is_refused_in_one_line(tmp_path, name):
    text, expected = MISTAKES[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        load_config(str(tmp_path / name))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_json_file_sets_keys_and_executes_nothing(tmp_path, monkeypatch):
    """Whatever stands in it, nested or flat; the other keys are those of base."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "__import__('evil')"
    (tmp_path / "a.json").write_text(
        json.dumps({"optim": {"learning_rate": 0.5}, "steps": 7.0, "teacher.path": text,
                    "generate.prompts": [text, "{{ 1 }}"], "data.source": "evil.py"})
    )  # fmt: skip
    config = load_config(str(tmp_path / "a.json"))
    assert (config.steps, config.optim.learning_rate, config.teacher.path) == (7, 0.5, text)
    assert type(config.steps) is int
    assert config.generate.prompts == (text, "{{ 1 }}")
    assert config.data.batch_size == load_base().data.batch_size
    assert not (tmp_path / "ran").exists()
    assert "evil" not in sys.modules


def test_the_config_of_a_run_can_be_given_to_another(tmp_path):
    base = load_base()
    base.steps = 9
    (tmp_path / "config.json").write_text(json.dumps(sealed(flatten(base))))
    assert flatten(load_config(str(tmp_path / "config.json"))) == flatten(base)


def test_a_file_that_is_not_there_and_a_directory_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"does not exist.*configs/quickstart\.py"):
        load_config(str(tmp_path / "none.py"))
    with pytest.raises(UserError, match="is a directory"):
        load_config(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"give --workdir={tmp_path} alone"):
        load_config(str(tmp_path))
    (tmp_path / "one.py").write_text(OWN + "  return c\n")
    with pytest.raises(UserError, match="has no variants: leave :study away"):
        load_config(f"{tmp_path / 'one.py'}:study")


def test_configs_are_the_packages_own_wherever_it_runs(tmp_path, monkeypatch):
    """Even where the current directory has a package of that name, whose other files are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "configs").mkdir()
    for name in ("__init__.py", "base.py"):
        (tmp_path / "configs" / name).write_text("raise SystemExit('not this one')\n")
    (tmp_path / "configs" / "mine.py").write_text("STEPS = 17\n")
    (tmp_path / "own.py").write_text(
        "from configs.base import get_config as base\nfrom configs.mine import STEPS\n"
        "def get_config(variant='train'):\n  c = base(variant)\n  c.steps = STEPS\n  return c\n"
    )
    before = {name for name in sys.modules if name.split(".")[0] == "configs"}
    config = load_config("own.py:evaluate")
    assert (config.steps, config.job) == (17, "evaluate")
    assert load_config("configs/quickstart.py:study").job == "study"
    assert {name for name in sys.modules if name.split(".")[0] == "configs"} == before
