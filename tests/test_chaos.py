"""Some minutes of experiments/chaos: what befalls a run of two processes leaves no trace in it."""

import re
import subprocess
import sys

from experiments.chaos.faults import FAULTS
from tests import cli


def test_a_run_through_faults_is_that_which_nobody_disturbed():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.chaos.run", "--minutes=0", "--processes=2",
         "--steps=90", f"--events={len(FAULTS)}", "--seed=5"],
        cwd=cli.ROOT, env=cli.environment(), capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    tried = re.findall(r"^\| (.+?) \| 1 \|", done.stdout, re.M)
    # One that finds the run already over is none.
    assert len(set(tried) & FAULTS.keys()) >= len(FAULTS) - 2, done.stdout
    assert "1 of 1 runs bit-equal" in done.stdout
