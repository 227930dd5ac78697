"""The first hour of somebody new: the mistakes they make, in one story, on tiny models.

Each test is one thing that they try. The laws behind it are tested where its code is; here it has
to work from the command line, in the order in which it happens.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from distill_jax.files import read_sealed, sealed
from tests import cli

STEPS = ("--config.steps=4", "--config.eval.every=0", "--config.checkpoint.every=2")


def one_line(done, *words, code=2):
    """The run ended with this code and one line, which has these words."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


def done(process):
    assert process.returncode == 0, process.stderr
    return process


def report(directory):
    return json.loads((directory / "report.json").read_text())


@pytest.fixture(scope="module")
def first_run(world, flags, tmp_path_factory):
    """A training run that ended: its directory and what it said."""
    directory = tmp_path_factory.mktemp("first") / "run"
    schedule = "--config.optim.schedule=constant"
    said = done(cli.run(f"--workdir={directory}", *flags, *STEPS, schedule))
    return directory, said


def test_they_ask_for_help():
    whole = done(cli.run("--help")).stdout
    assert "--config.teacher.path" in whole
    group = done(cli.run("--help", "teacher")).stdout
    assert "teacher.cache" in group
    assert "optim.beta1" not in group


def test_they_start_with_nothing_and_with_half():
    one_line(cli.run(config=None), "--config=", "--workdir=")
    one_line(cli.run(f"--workdir={'x' * 300}", config=None), "name too long")


def test_they_give_flags_as_other_programs_have_them(world, tmp_path):
    one_line(cli.run("--config.optim.lr=1e-3", f"--workdir={tmp_path}"), "optim.learning_rate")
    one_line(cli.run("--config.teacher=x", f"--workdir={tmp_path}"), "teacher.path")
    assert not list(tmp_path.iterdir())


def test_they_give_the_config_as_a_word_of_its_own(tmp_path):
    words = ("--config", cli.ROOT / "configs" / "base.py", "--workdir", tmp_path / "run")
    one_line(cli.run(*words, config=None), "teacher.path")


def test_they_bring_a_json_array(flags, tmp_path):
    words = [word for word in cli.WORDS if len(word) > 2]
    records = [{"instruction": f"Say {a}", "input": b, "output": a} for a in words for b in words]
    (tmp_path / "alpaca.json").write_text(json.dumps(records))
    source = f"--config.data.source={tmp_path / 'alpaca.json'}"
    run = done(cli.run(f"--workdir={tmp_path / 'run'}", *flags, *STEPS, source))
    assert "records read as Alpaca: instruction, input, output" in run.stdout


def test_they_forget_the_student_and_mend_it_in_the_same_directory(world, flags, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    without = [flag for flag in flags if "student.path" not in flag]
    line = one_line(cli.run(workdir, *without), "student.path", "student.init=prune")
    assert "student.init=random" in line
    copied = "--config.student.init=copy"
    done(cli.run(workdir, *without, *STEPS, copied, "--config.optim.warmup_steps=0"))


def test_they_point_to_a_run_instead_of_its_student(first_run, flags, tmp_path):
    directory, _ = first_run
    run = cli.run(f"--workdir={tmp_path / 'run'}", *flags, f"--config.student.path={directory}")
    one_line(run, str(directory / "student"))


def test_they_lack_a_package(flags, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = cli.run(f"--workdir={tmp_path / 'run'}", *flags, "--config.log.wandb_project=mine")
    one_line(run, "pip install wandb")


@pytest.mark.parametrize("after_s", [0.3, 2.5])
def test_they_think_better_of_it(flags, tmp_path, after_s):
    """Ctrl-C before the first step: one line, soon."""
    process = subprocess.Popen(
        cli.command(f"--workdir={tmp_path / 'run'}", *flags),
        cwd=cli.ROOT, env=cli.environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 10  # 2 s where nothing else runs
    one_line(subprocess.CompletedProcess((), process.returncode, out, err), "stopped", code=75)


def test_the_run_says_what_it_reads_and_where_its_time_goes(first_run):
    _, said = first_run
    text = said.stdout + said.stderr
    assert "one epoch" in text
    assert re.search(r"^time: .*compile \d+s", text, re.MULTILINE), text


def test_they_try_a_part_of_the_text_for_two_epochs(flags, tmp_path):
    rest = [flag for flag in flags if "config.steps" not in flag]
    limits = ("--config.data.max_documents=20", "--config.epochs=2")
    said = done(cli.run(f"--workdir={tmp_path / 'run'}", *rest, *limits, "--config.eval.every=0"))
    assert "20 documents" in said.stdout + said.stderr
    steps = json.loads((tmp_path / "run" / "config.json").read_text())["steps"]
    assert cli.metrics(tmp_path / "run")[-1]["step"] == steps


def test_they_train_the_finished_run_on(first_run):
    directory, _ = first_run
    done(cli.run(f"--workdir={directory}", "--config.steps=6", config=None))
    assert cli.metrics(directory)[-1]["step"] == 6
    assert report(directory)["config"]["steps"] == 6


def test_they_ask_the_run_without_repeating_a_key(first_run, world):
    directory, _ = first_run
    before = report(directory)
    workdir = f"--workdir={directory}"
    for text in ("the quick fox", "a lazy dog"):
        asked = (f"--config.generate.prompts={text}", "--config.generate.max_new_tokens=8")
        said = done(cli.run(workdir, "--config.job=generate", *asked, config=None))
        assert text in said.stdout
    done(cli.run(workdir, "--config.job=evaluate", config=None))
    other = f"--config.data.eval_source={world / 'text.jsonl'}"
    done(cli.run(workdir, "--config.job=evaluate", other, config=None))
    done(cli.run(workdir, "--config.job=export", "--config.export.checkpoint=best", config=None))
    assert len(list((directory / "generate").iterdir())) == 2
    assert len(list((directory / "evaluate").iterdir())) == 2
    assert report(directory) == before


def test_they_ask_why_twice(first_run):
    directory, _ = first_run
    for tokens in (4, 5):
        more = (f"--config.study.new_tokens={tokens}", "--config.study.prompt_tokens=8")
        done(cli.run(f"--workdir={directory}", "--config.job=diagnose", *more, config=None))
    pages = sorted((directory / "diagnose").rglob("report.html"))
    assert len(pages) == 2
    assert "without a teacher" not in pages[0].read_text()


def test_the_export_says_how_its_source_is_sampled(world, flags, tmp_path):
    source = shutil.copytree(world / "student", tmp_path / "student")
    path = source / "generation_config.json"
    settings = json.loads(path.read_text()) | {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    path.write_text(json.dumps(settings))
    run = tmp_path / "export"
    job = ("--config.job=export", f"--config.student.path={source}", f"--workdir={run}")
    done(cli.run(*job))
    written = json.loads((run / "student" / "generation_config.json").read_text())
    for key in ("do_sample", "temperature", "top_p"):
        assert written[key] == settings[key]


def test_a_disk_that_is_full_is_seen_first(flags, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    one_line(cli.run(f"--workdir={tmp_path / 'run'}", *flags), "free")
    assert os.listdir(tmp_path) in ([], ["run"])


def test_they_look_at_a_run_that_went_on_past_its_student(first_run, tmp_path):
    """What `student/` is of is known: an old one is not passed off as the run's."""
    directory = shutil.copytree(first_run[0], tmp_path / "run")
    workdir = f"--workdir={directory}"
    exported = json.loads((directory / "student.json").read_text())["step"]
    last = directory / "checkpoints" / f"step_{exported}"
    last.rename(last.with_name(f"step_{exported + 2}"))
    line = one_line(cli.run(workdir, "--config.job=evaluate", config=None), f"step {exported}")
    assert "--config.job=export" in line


def test_they_export_from_a_study_and_ask_for_epochs(first_run, tmp_path):
    study = tmp_path / "study"
    study.mkdir()
    settings = read_sealed(first_run[0] / "config.json") | {"job": "study"}
    (study / "config.json").write_text(json.dumps(sealed(settings)))
    one_line(cli.run(f"--workdir={study}", "--config.job=export", config=None), "of a study")
    more = shutil.copytree(first_run[0], tmp_path / "more")
    done(cli.run(f"--workdir={more}", "--config.epochs=0.7", config=None))
    assert cli.metrics(more)[-1]["step"] == 8  # of 12 an epoch
