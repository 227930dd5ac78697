"""The training step of a student that pruning makes is compiled beside the pruning, and once."""

import logging

import jax
import pytest

from tests import cli

PRUNED = (
    "--config.student.init=prune",
    "--config.student.path=",
    "--config.student.prune.blocks=2",
    "--config.student.prune.neurons=20",
    "--config.student.prune.calibration_tokens=256",
    "--config.student.prune.ranking_tokens=256",
)


@pytest.fixture
def compilations():
    """(program, thread) of each compilation of this process from now on."""
    found = []

    class Heard(logging.Handler):
        def emit(self, record):
            words = record.getMessage().split()
            if words[:3] == ["Finished", "XLA", "compilation"]:
                found.append((words[4], record.threadName))

    heard, logger, before = Heard(), logging.getLogger("jax"), jax.config.jax_log_compiles
    logger.addHandler(heard)
    jax.config.update("jax_log_compiles", True)
    yield found
    jax.config.update("jax_log_compiles", before)
    logger.removeHandler(heard)


def test_a_pruned_students_step_is_compiled_once_and_beside(flags, tmp_path, compilations):
    run = cli.run(f"--workdir={tmp_path}", *flags, *PRUNED, "--config.steps=2")
    assert run.returncode == 0, run.stderr
    threads = [thread for program, thread in compilations if "train_step" in program]
    assert len(threads) == 1
    assert threads != ["MainThread"]


def test_no_step_is_compiled_beside_where_nothing_is_pruned(flags, tmp_path, compilations):
    run = cli.run(f"--workdir={tmp_path}", *flags, "--config.steps=2")
    assert run.returncode == 0, run.stderr
    assert [t for program, t in compilations if "train_step" in program] == ["MainThread"]
