"""What would fail late fails before anything is read, in one line."""

import contextlib
import errno
import shutil
from collections import namedtuple

import jax
import pytest

from distill_jax.config import load_base
from distill_jax.evals.likelihood import LOGGED
from distill_jax.jobs.run import JOBS, Job
from distill_jax.models.load import load_checkpoint
from distill_jax.setup import early
from distill_jax.setup.inputs import check
from distill_jax.types import UserError
from tests import cli

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def run(world, flags, tmp_path_factory):
    """The workdir of a finished run of one step."""
    where = tmp_path_factory.mktemp("early") / "run"
    done = cli.run(
        f"--workdir={where}", *flags, "--config.steps=1", "--config.optim.warmup_steps=0"
    )
    assert done.returncode == 0, done.stderr
    return where


def config(world, **keys):
    c = load_base()
    paths = {"teacher.path": world / "teacher", "student.path": world / "student"}
    paths["data.source"] = world / "text.jsonl"
    c.update_from_flattened_dict({key: str(path) for key, path in paths.items()} | keys)
    return c


LATE = {
    "student.path": ("/no/such", "config.student.path: model path /no/such does not exist"),
    "teacher.path": ("/no/such", "config.teacher.path: .* does not exist"),
    "data.eval_source": ("/no/such.jsonl", "matches no file"),
    "checkpoint.metric": ("eval/nl", "did you mean eval/nll"),
}


@pytest.mark.parametrize("key", LATE)
def test_what_fails_late_is_seen_in_the_config(world, key):
    value, says = LATE[key]
    with pytest.raises(UserError, match=says):
        check(config(world, **{key: value}))


@pytest.mark.parametrize("name", LOGGED)
def test_checkpoints_may_be_compared_by_what_evaluations_have(world, name):
    c = config(world, **{"checkpoint.metric": f"eval/{name}"})
    early.check_metric(c, compares=True)
    if name in early.OF_TEACHER:
        with pytest.raises(UserError, match="needs a teacher"):
            early.check_metric(c, compares=False)
    else:
        early.check_metric(c, compares=False)


def test_evaluations_have_what_checkpoints_are_compared_by(run):
    found = {name for line in cli.metrics(run) for name in line if name.startswith("eval/")}
    assert found == {f"eval/{name}" for name in (*LOGGED, "perplexity", "tokens")}


@pytest.mark.parametrize("key", ["student.path", "teacher.path"])
@pytest.mark.parametrize("job", ["train", "evaluate"])
def test_a_workdir_is_no_model_but_has_one(world, run, tmp_path, key, job):
    with pytest.raises(UserError, match=f"config.{key} {run} is a workdir: .* {run}/student"):
        early.check_read(config(world, job=job, **{key: str(run)}))
    unfinished = shutil.copytree(run, tmp_path / "run", ignore=lambda *_: ["student"])
    with pytest.raises(UserError, match="is a workdir without a student yet"):
        early.check_read(config(world, job=job, **{key: str(unfinished)}))
    early.check_read(config(world, job=job, **{key: str(run / "student")}))


@pytest.mark.parametrize("job", ["evaluate", "study"])
def test_tasks_are_looked_up_before_a_model_is_read(world, job, monkeypatch):
    asked = []
    monkeypatch.setattr(early, "check_tasks", lambda tasks, **_: asked.extend(tasks))
    early.check_read(config(world, job=job, **{"eval.tasks": ("arc_easy",)}))
    assert asked == ["arc_easy"]


def test_a_disk_that_is_too_small_is_refused_before_the_text_is_tokenized(
    flags, tmp_path, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 10**4))
    done = cli.run(f"--workdir={tmp_path / 'run'}", *flags)
    assert done.returncode == 2
    assert "has 10.0 kB free: use another disk" in done.stderr
    assert "held-out" not in done.stdout
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_the_room_that_is_asked_for_is_for_checkpoints_and_students(world, tmp_path, monkeypatch):
    read = load_checkpoint(str(world / "student"), dtype=None).whole()
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(read.params))
    # Parameters and two moments in two last, one best and one unfinished checkpoint; two students.
    needed = 3 * 4 * size + 2 * size
    for free, enough in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(0, 0, free))
        with (
            contextlib.nullcontext() if enough else pytest.raises(UserError, match="4 checkpoints")
        ):
            early.check_room(config(world), tmp_path, read.config, runs=2)
    (tmp_path / "written").write_bytes(b"x")  # by the run that goes on
    early.check_room(config(world), tmp_path, read.config, runs=2)


def test_a_prompt_that_does_not_fit_is_seen_before_the_text_is_tokenized(flags, tmp_path):
    more = ("--config.generate.prompts=('the quick',)", "--config.generate.max_new_tokens=63")
    done = cli.run(f"--workdir={tmp_path / 'run'}", *flags, *more)
    assert done.returncode == 2
    assert "use at most 57 new tokens" in done.stderr


def test_a_workdir_that_is_a_file_is_named(flags, tmp_path):
    (tmp_path / "file").touch()
    done = cli.run(f"--workdir={tmp_path / 'file'}", *flags)
    assert done.returncode == 2
    assert "is a file: give a directory" in done.stderr


FULL = {
    "by its number": OSError(errno.ENOSPC, "cannot write"),
    "by its text": ValueError("Failed to write 50 bytes: No space left on device [code='28']"),
}


@pytest.mark.parametrize("case", FULL)
def test_a_disk_that_runs_full_is_one_line(flags, tmp_path, monkeypatch, case):
    def fills(*_):
        raise FULL[case]

    monkeypatch.setitem(JOBS, "train", Job(fills))
    done = cli.run(f"--workdir={tmp_path}", *flags)
    assert done.returncode == 70
    assert f"the disk of {tmp_path} is full: make room" in done.stderr
    monkeypatch.setitem(JOBS, "train", Job(lambda *_: 1 / 0))
    assert cli.run(f"--workdir={tmp_path}", *flags).returncode == 70
