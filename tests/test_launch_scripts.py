"""The scripts of experiments/launch, with stand-ins for the programs of clusters."""

import os
import shutil
import subprocess

import pytest
import yaml

from distill_jax.launch import AGAIN, FINAL
from tests.cli import ROOT

SCRIPTS = ROOT / "experiments" / "launch"
WORDS = [
    "--config=configs/base.py",
    "--config.generate.prompts=('it''s a: #1', \"two\")",
    "--x=$HOME",
]
POD = {
    "NAME": "mine", "IMAGE": "here/distill_jax:tpu", "CLAIM": "share", "HOSTS": "4", "CHIPS": "4",
    "ACCELERATOR": "tpu-v5-lite-podslice", "TOPOLOGY": "4x4",
}  # fmt: skip
SLICE = {"NAME": "mine", "ZONE": "here-a", "TYPE": "v5litepod-16", "NFS": "host:/share"}


def run(script, *words, **environment):
    return subprocess.run(
        ["bash", SCRIPTS / script, *words],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def stand_in(tmp_path):
    """Programs that note their words, and end with the next of some codes where asked to.

    calls(codes, to) -> (environment, the words of every call so far); `to`: a word of the calls
    that end so.
    """

    def make(name, codes, to):
        path, said, left = tmp_path / name, tmp_path / "said", tmp_path / "codes"
        left.write_text("".join(f"{code}\n" for code in codes))
        path.write_text(f"""#!/usr/bin/env bash
printf '%s\\n' "{name} $*" >> {said}
case "$*" in
  *{to}*) code=$(head -n 1 {left}); sed -i 1d {left}; exit "${{code:-0}}" ;;
  *describe*) echo ACTIVE ;;
esac
""")
        path.chmod(0o755)
        sleep = tmp_path / "sleep"
        sleep.write_text("#!/bin/sh\n")
        sleep.chmod(0o755)
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return environment, lambda: said.read_text().splitlines() if said.exists() else []

    return make


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.s*")), ids=lambda path: path.name)
def test_the_shell_reads_them(path):
    subprocess.run(["bash", "-n", path], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, path], check=True)


def test_a_jobset_has_the_words_as_they_were_and_knows_the_codes():
    done = run("gke_jobset.sh", *WORDS, **POD)
    assert done.returncode == 0, done.stderr
    spec = yaml.safe_load(done.stdout)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    assert container["args"] == ["--distributed", *WORDS]
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == sorted(FINAL)
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert job["parallelism"] == job["completions"] == int(POD["HOSTS"])
    assert spec["failurePolicy"]["rules"][0]["action"] == "FailJobSet"


def test_what_is_missing_is_named():
    assert "IMAGE" in run("gke_jobset.sh", *WORDS, NAME="mine").stderr
    assert run("gke_jobset.sh", **POD).returncode == 2
    assert "ZONE" in run("tpu_vm.sh", "up", NAME="mine").stderr
    usage = run("tpu_vm.sh", **SLICE)
    assert usage.returncode == 2
    assert "tpu_vm.sh run --config" in usage.stderr


@pytest.mark.parametrize("code", FINAL)
def test_a_run_on_tpus_ends_for_good(stand_in, code):
    environment, said = stand_in("gcloud", [code], "distill_jax.main")
    assert run("tpu_vm.sh", "run", *WORDS, **environment, **SLICE).returncode == code
    assert len(said()) == 1


def test_a_run_on_tpus_is_started_again(stand_in):
    environment, said = stand_in("gcloud", [*AGAIN, 255, 0], "distill_jax.main")
    done = run("tpu_vm.sh", "run", *WORDS, **environment, **SLICE)
    assert done.returncode == 0, done.stderr
    starts = [line for line in said() if "distill_jax.main" in line]
    assert len(starts) == len(AGAIN) + 2
    # The words are quoted for the shell of the host.
    command = starts[0].partition("--command=")[2].partition("distill_jax.main ")[2]
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words == ["--distributed", *WORDS]


def test_a_slice_is_asked_for_and_filled(stand_in):
    environment, said = stand_in("gcloud", [], "nothing")
    done = run("tpu_vm.sh", "up", SPOT="1", **environment, **SLICE)
    assert done.returncode == 0, done.stderr
    commands = [line.partition("compute tpus ")[2] for line in said() if line.startswith("gcloud")]
    create = commands[0]
    assert "--accelerator-type=v5litepod-16" in create
    assert "--runtime-version=v2-alpha-tpuv5-lite" in create
    assert "--spot" in create
    assert [" ".join(line.split()[:2]) for line in commands] == [
        "queued-resources create", "queued-resources describe", "tpu-vm scp", "tpu-vm ssh"
    ]  # fmt: skip
    done = run("tpu_vm.sh", "up", **environment, **SLICE | {"TYPE": "v3-8"})
    assert done.returncode == 2
    assert "TYPE is v3-8" in done.stderr
    assert len([line for line in said() if " create " in line]) == 1


@pytest.mark.parametrize("code", [0, *FINAL, *AGAIN, 137])
def test_a_job_of_slurm_is_queued_again_where_that_helps(stand_in, tmp_path, code):
    environment, said = stand_in("srun", [code], "distill_jax.main")
    queue = tmp_path / "scontrol"
    queue.write_text(f'#!/bin/sh\necho queued "$@" >> {tmp_path / "said"}\n')
    queue.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").touch()
    of_job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "VENV": str(tmp_path)}
    done = run("slurm.sbatch", *WORDS, **environment, **of_job)
    assert done.returncode == code, done.stderr
    queued = [line for line in said() if line.startswith("queued")]
    assert queued == (["queued requeue 7"] if code in (*AGAIN, 137) else [])
    assert run("slurm.sbatch", **environment, **of_job, SLURM_RESTART_COUNT="100").returncode == 0
