"""What steers a terminal or turns the letters of a page is seen as a code; files keep it."""

import json
import subprocess
import sys
import unicodedata

import pytest

from distill_jax.progress import Progress, table
from distill_jax.report import page
from distill_jax.visible import HIDDEN, visible
from tests import cli
from tests.report import sample_report

NASTY = "\x1b[2J\x1b]0;title\x07 \u202etxt.exe\u2066 \x9b31m \x7f \u200f\u2028\r"


def test_every_letter_that_steers_is_a_code_and_no_other_is():
    directions = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    for number in range(0x11000):
        letter = chr(number)
        steers = (
            (unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") and letter not in "\n\t")
            or unicodedata.bidirectional(letter) in directions
            or letter in "\u200e\u200f\u061c"
        )
        assert bool(HIDDEN.match(letter)) == steers, hex(number)
    assert visible("a\n\tü\U0001f469\u200d\U0001f4bb") == "a\n\tü\U0001f469\u200d\U0001f4bb"
    assert visible(NASTY).isprintable()
    assert visible("\x1b\u202e") == "\\x1b\\u202e"


def test_lines_of_progress_and_tables_steer_nothing():
    progress = Progress(None)
    with progress.stage("load", f"reading {NASTY}"):
        assert progress.line(0.0).isprintable()
    assert len({len(line) for line in table(["a", "b"], [[NASTY, "1"]]).splitlines()}) == 1


@pytest.mark.parametrize(
    "flags",
    [
        [f"--config.teacher.path=a{NASTY}"],
        [f"--config.job={NASTY}"],
        [f"--config.{NASTY}=1"],
        ["--config.job=generate", f"--config.generate.prompts=@{NASTY}"],
    ],
)
def test_errors_steer_nothing(tmp_path, flags):
    done = cli.run(*flags, f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 2
    assert done.stderr.rstrip("\n").isprintable()
    assert "\\x1b[2J" in done.stderr or "\\\\x1b[2J" in done.stderr


def test_lines_of_the_launcher_steer_nothing():
    command = [sys.executable, "-m", "distill_jax.launch", NASTY.replace("\0", ""), "--", "x"]
    for words in (command, [*command[:3], "--processes=1", "--", f"--process={NASTY}"]):
        done = subprocess.run(words, capture_output=True, text=True, cwd=cli.ROOT, check=False)
        assert done.returncode == 2
        assert done.stderr.rstrip("\n").isprintable()


LONG = "/".join(["y" * 50] * 60)


@pytest.mark.parametrize(
    "key", ["optim.name", "optim.schedule", "teacher.path", "data.source", "teacher.cache"]
)
def test_errors_have_no_word_that_fills_a_screen(world, tmp_path, key):
    paths = {"teacher.path": "teacher", "student.path": "student", "data.source": "text.jsonl"}
    given = {k: world / name for k, name in paths.items()} | {key: LONG}
    given["data.seq_len"] = 32
    done = cli.run(*(f"--config.{k}={v}" for k, v in given.items()), f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 2
    assert LONG[:50] in done.stderr
    assert len(done.stderr) < 600, done.stderr


def test_texts_of_a_run_are_seen_and_kept(world, tmp_path):
    """On the terminal and the page as codes; in JSON as they were."""
    prompt = f"the {NASTY} fox"
    given = tmp_path / "prompts.jsonl"
    given.write_text(json.dumps({"prompt": prompt}) + "\n")
    done = cli.run(
        "--config.job=generate", f"--config.student.path={world / 'student'}",
        f"--config.generate.prompts=@{given}", "--config.generate.max_new_tokens=2",
        f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"> {visible(prompt)}\n" in done.stdout
    assert not HIDDEN.search(done.stdout + done.stderr)
    [line] = (tmp_path / "run" / "samples.jsonl").read_text().split("\n")[:-1]
    assert json.loads(line)["prompt"] == prompt


def test_a_page_steers_nothing():
    report = sample_report.study()
    report["samples"][0] |= {"prompt": f"a{NASTY}b", "text": NASTY}
    made = page.page(report)
    assert not HIDDEN.search(made)
    assert "\\x1b[2J" in made
    assert "\\u202etxt" in made
