"""What damaged checkpoints do to the jobs that read them."""

import shutil

import pytest

from tests import cli
from tests.test_checkpoint_damage import MARKER, arrays, flip


@pytest.fixture(scope="module")
def done(flags, tmp_path_factory):
    """A run with checkpoints of steps 2, 4 and 6, and how it is called."""
    workdir = tmp_path_factory.mktemp("done") / "run"
    flags = (*flags, "--config.checkpoint.keep_last=3", "--config.generate.max_new_tokens=4")
    result = cli.run(f"--workdir={workdir}", *flags)
    assert result.returncode == 0, result.stderr
    return workdir, flags


@pytest.fixture
def copy(done, tmp_path):
    """The same, whose last checkpoint has a flipped bit, before its report was written."""
    workdir = shutil.copytree(done[0], tmp_path / "run")
    (workdir / "report.json").unlink()
    shutil.rmtree(workdir / "student")
    path = arrays(workdir / "checkpoints/step_6")
    flip(path, path.stat().st_size // 2)
    return workdir


def weights(workdir):
    return (workdir / "student/model.safetensors").read_bytes()


def test_a_run_goes_on_from_the_newest_good_one_to_the_same_student(done, copy):
    workdir, flags = done
    again = cli.run(f"--workdir={copy}", *flags)
    assert again.returncode == 0, again.stderr
    assert "the checkpoint of step 6 is damaged" in again.stdout
    assert "resuming from step 4 of 6" in again.stdout
    assert weights(copy) == weights(workdir)
    losses = lambda lines: [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses(cli.metrics(copy)) == losses(cli.metrics(workdir))
    assert (copy / "checkpoints/damaged_step_6").is_dir()


@pytest.mark.parametrize("asked", ["latest", "6"])
def test_a_damaged_one_is_never_exported(done, copy, asked):
    asked = f"--config.export.checkpoint={asked}"
    refused = cli.run(f"--workdir={copy}", *done[1], "--config.job=export", asked)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "step 6" in refused.stderr
    assert "a good one (2, 4)" in refused.stderr
    assert not (copy / "student").exists()
    assert (copy / "checkpoints/step_6").is_dir()  # a job that only reads renames nothing


def test_a_step_may_be_exported(done, copy):
    export = lambda step: cli.run(
        f"--workdir={copy}", *done[1], "--config.job=export", f"--config.export.checkpoint={step}"
    )
    assert "from step 4" in export(4).stdout
    missing = export(5)
    assert missing.returncode == 2
    assert "use one of 2, 4, 6" in missing.stderr


def test_where_none_is_good_the_run_ends_with_2_each_time(done, copy):
    for step in (2, 4):
        (copy / f"checkpoints/step_{step}" / MARKER).unlink()
    for _ in range(2):
        ended = cli.run(f"--workdir={copy}", *done[1])
        assert ended.returncode == 2
        assert ended.stderr.count("\n") == 1
        assert "remove that directory to train from the start" in ended.stderr
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == [
        "step_2",
        "step_4",
        "step_6",
    ]
