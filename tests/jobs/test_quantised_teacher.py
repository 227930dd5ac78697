"""A teacher in few bits, in every job that reads one."""

import json

import jax
import numpy as np
import pytest

from distill_jax.models.load import load_checkpoint
from tests import cli


@pytest.fixture(scope="module")
def int8(tmp_path_factory, flags):
    """A training run of a teacher in int8, and what it printed."""
    directory = tmp_path_factory.mktemp("int8") / "run"
    done = cli.run(f"--workdir={directory}", *flags, "--config.teacher.dtype=int8")
    assert done.returncode == 0, done.stderr
    return directory, done.stdout


def noted(directory):
    return json.loads((directory / "provenance.json").read_text(encoding="utf-8"))


def test_the_cost_is_said_before_the_first_step_and_noted(int8, flags):
    directory, said = int8
    line = next(line for line in said.splitlines() if "KL(teacher || int8)" in line)
    assert said.index(line) < said.index("student: ")
    found = noted(directory)
    assert found["teacher.dtype"] == "int8"
    assert found["teacher.sha256"].endswith(":int8")
    assert 0 < found["teacher.dtype.kl"] < 0.01
    assert f"over {found['teacher.dtype.kl_tokens']:,} held-out tokens" in line
    assert "matrices of its teacher were int8" in said
    assert "matrices of its teacher were int8" in (directory / "report.html").read_text("utf-8")


def test_fewer_bits_cost_more_and_no_tokens_measure_nothing(tmp_path, flags, int8):
    run = [f"--workdir={tmp_path / 'int4'}", *flags, "--config.steps=2"]
    done = cli.run(*run, "--config.teacher.dtype=int4", "--config.teacher.kl_tokens=50")
    assert done.returncode == 0, done.stderr
    found = noted(tmp_path / "int4")
    assert 50 <= found["teacher.dtype.kl_tokens"] < noted(int8[0])["teacher.dtype.kl_tokens"]
    assert found["teacher.dtype.kl"] > 3 * noted(int8[0])["teacher.dtype.kl"]
    run[0] = f"--workdir={tmp_path / 'silent'}"
    done = cli.run(*run, "--config.teacher.dtype=int8", "--config.teacher.kl_tokens=0")
    assert "KL(teacher ||" not in done.stdout
    assert "teacher.dtype.kl" not in noted(tmp_path / "silent")


def test_a_run_goes_on_with_the_cost_that_it_began_with(int8, flags):
    directory, said = int8
    more = [*flags, "--config.teacher.dtype=int8", "--config.steps=7", "--config.student.shard=()"]
    done = cli.run(f"--workdir={directory}", *more)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 6" in done.stdout
    told = lambda text: next(line for line in text.splitlines() if "KL(teacher ||" in line)
    assert told(done.stdout) == told(said)


def test_a_cache_is_of_one_dtype(tmp_path, flags):
    cache = f"--workdir={tmp_path / 'cache'}"
    done = cli.run(cache, *flags, "--config.job=cache", "--config.teacher.dtype=int8")
    assert done.returncode == 0, done.stderr
    assert "KL(teacher || int8)" in done.stdout
    reads = (*flags, f"--config.teacher.cache={tmp_path / 'cache'}", "--config.steps=2")
    done = cli.run(f"--workdir={tmp_path / 'wide'}", *reads)
    assert done.returncode == 2, done.stdout
    assert "teacher" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = cli.run(f"--workdir={tmp_path / 'same'}", *reads, "--config.teacher.dtype=int8")
    assert done.returncode == 0, done.stderr


def test_jobs_that_read_it(tmp_path, world, flags):
    text = f"--config.data.eval_source={world / 'text.jsonl'}"
    done = cli.run(
        f"--workdir={tmp_path}",
        *flags,
        text,
        "--config.job=evaluate",
        "--config.teacher.dtype=int8",
    )
    assert done.returncode == 0, done.stderr
    assert "KL(teacher || int8)" in done.stdout
    done = cli.run(
        f"--workdir={tmp_path}", "--config.job=generate", "--config.teacher.dtype=int4",
        f"--config.teacher.path={world / 'teacher'}", "--config.generate.prompts=('the fox',)",
        "--config.generate.max_new_tokens=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = cli.run(
        f"--workdir={tmp_path}", *flags, text, "--config.job=diagnose",
        "--config.teacher.dtype=int8", "--config.study.prompts=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "KL(teacher || int8)" in done.stdout


def test_a_student_is_refused_in_few_bits(tmp_path, flags):
    done = cli.run(f"--workdir={tmp_path / 'run'}", *flags, "--config.student.dtype=int8")
    assert done.returncode == 2
    assert "config.student.dtype is 'int8'" in done.stderr
    done = cli.run(f"--workdir={tmp_path / 'run'}", *flags, "--config.student.shard=('rows',)")
    assert done.returncode == 2
    assert "config.student.shard is 'rows'" in done.stderr


@pytest.mark.parametrize("init", ["copy", "prune"])
def test_a_student_out_of_it_has_the_wide_weights(tmp_path, world, init):
    more = ["--config.student.prune.blocks=2"] * (init == "prune")
    written = {}
    for dtype in ("float32", "int4"):
        done = cli.run(
            f"--workdir={tmp_path / dtype}", f"--config.teacher.path={world / 'teacher'}",
            f"--config.data.source={world / 'text.jsonl'}", f"--config.student.init={init}",
            *cli.SMALL, *more, "--config.optim.learning_rate=0.0", "--config.steps=2",
            f"--config.teacher.dtype={dtype}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        written[dtype] = (
            load_checkpoint(str(tmp_path / dtype / "student"), dtype=np.float32).whole().params
        )
    jax.tree.map(np.testing.assert_array_equal, written["float32"], written["int4"])


def test_export_writes_the_wide_weights(tmp_path, world):
    teacher = f"--config.teacher.path={world / 'teacher'}"
    done = cli.run(
        f"--workdir={tmp_path}", "--config.job=export", teacher, "--config.teacher.dtype=int8"
    )
    assert done.returncode == 0, done.stderr
    made = load_checkpoint(str(tmp_path / "student"), dtype=np.float32).whole().params
    jax.tree.map(
        np.testing.assert_array_equal,
        made, load_checkpoint(str(world / "teacher"), dtype=np.float32).whole().params,
    )  # fmt: skip
