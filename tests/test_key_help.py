"""--help: every key of base with its default and the meaning that its comment gives."""

import re
import subprocess
import sys

import pytest

from distill_jax.config import leaves, load_base
from distill_jax.key_help import WIDTH, help_text, key_meanings
from distill_jax.types import UserError
from tests import cli

BASE = leaves(load_base())
GROUPS = sorted({key.split(".")[0] for key in BASE if "." in key})


def test_every_key_and_every_group_has_a_comment_of_its_own():
    meanings = key_meanings()
    assert [key for key in BASE if len(meanings.get(key, "")) < 4] == []
    assert [group for group in GROUPS if group not in meanings] == []


def test_every_key_stands_beside_its_default_in_its_group():
    """A term's keys are there once for all terms where its default is that of all."""
    whole = help_text([])
    for key, value in BASE.items():
        shown = str(value).lower() if isinstance(value, bool) else str(value) or '""'
        any_term = re.sub(r"^terms\.\w+\.", "terms.TERM.", key)
        rows = [rf"^  {re.escape(name)} +{re.escape(shown)} {{2,}}\S" for name in (key, any_term)]
        assert any(re.search(row, whole, re.MULTILINE) for row in rows), key


@pytest.mark.parametrize("names", [[], *([group] for group in GROUPS)])
def test_help_fits_a_terminal(names):
    assert max(map(len, help_text(names).splitlines())) <= WIDTH


def test_a_name_may_be_a_group_a_part_a_key_or_another_word():
    rows = lambda text: re.findall(r"^  ([a-z]\S+)  ", text, re.MULTILINE)
    assert rows(help_text(["mesh"])) == [
        "mesh.data", "mesh.fsdp", "mesh.expert", "mesh.sequence", "mesh.tensor"
    ]  # fmt: skip
    assert "student.prune.ridge" in rows(help_text(["student"]))
    assert set(rows(help_text(["student.prune"]))) == {k for k in BASE if "student.prune." in k}
    assert set(rows(help_text(["terms.jsd"]))) == {k for k in BASE if "terms.jsd." in k}
    assert rows(help_text(["config.steps", "optim.beta1"])) == ["steps", "optim.beta1"]
    assert rows(help_text(["lr"])) == ["optim.learning_rate"]
    with pytest.raises(UserError, match=r"there are job, .*teacher, .*mesh"):
        help_text(["zzz"])


@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], ["--workdir=x", "--config.steps=9", "--help"]]
)
def test_help_is_given_wherever_it_stands(words):
    from distill_jax.program import main

    assert main(["main", *words]) == 0
    assert main(["main", "--help=zzz"]) == 2


def test_a_reader_that_leaves_early_is_no_failure():
    words = [sys.executable, "-m", "distill_jax.main", "--help"]
    with subprocess.Popen(
        words, cwd=cli.ROOT, env=cli.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0
