"""A small part of experiments/chaos: what befalls a run of two processes leaves no trace in it."""

import subprocess
import sys

from tests import cli

FAULTS = ("kill of a process", "damaged checkpoint")  # the second also kills the launcher


def test_a_run_through_faults_is_that_which_nobody_disturbed():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.chaos.run", "--minutes=0", "--processes=2",
         "--steps=60", "--events=2", "--seed=5", "--faults", *FAULTS],
        cwd=cli.ROOT, env=cli.environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"| {name} | 1 |" in done.stdout for name in FAULTS), done.stdout
    assert "1 of 1 runs bit-equal" in done.stdout
