"""What a study does about damaged records, and about arms that break down."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from distill_jax.config import load_base
from distill_jax.jobs import study_seal
from distill_jax.report import run
from distill_jax.seals import SEAL, read_seal, write_seal
from experiments.chaos import study_records as records
from experiments.chaos.study_records import ARM, RUN, SEED, bump, copy_of, delete, flip, truncate
from tests import cli

VALIDATOR = jsonschema.Draft202012Validator(
    json.loads((Path(run.__file__).parent / "report.schema.json").read_text())
)
# Weights that grow a million times a step, beyond what the dtype that they are written in holds.
HOT = {
    "optim": {"learning_rate": 1000.0, "weight_decay": 1000.0},
    "export": {"dtype": "float16"},
}


@pytest.fixture(scope="module")
def study(flags, tmp_path_factory):
    """A finished study of two arms and two seeds, judged by KL."""
    root = tmp_path_factory.mktemp("study") / "s"
    done = cli.run(f"--workdir={root}", *flags, *records.STUDY)
    assert done.returncode == 0, done.stderr
    return root


def again(root, flags, *more):
    done = cli.run(f"--workdir={root}", *flags, *records.STUDY, *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


# In one study, so that its numbers are made but once more: the damage of each file, its line.
TOGETHER = {
    "bits": {
        f"{RUN}/tokens.parquet": (
            flip(0.3, 3), "tokens.parquet is damaged or lost: it is measured"),
        f"{SEED}/result.json": (
            bump("metrics", "forward_kl"), "result.json is damaged or lost: it is measured"),
        f"{ARM}/student/model.safetensors": (
            flip(0.9), "student/model.safetensors is damaged or lost: it is trained again"),
        "study.json": (truncate, "study.json is damaged: its looks are taken from the runs"),
        "teacher/behaviour.json": (bump("metrics", "distinct_1"), "behaviour.json is damaged"),
        "serving.json": (truncate, "serving.json is damaged"),
    },
    "others": {
        RUN: (copy_of(ARM), "its seal.json is of sft seed 0: it is trained again"),
        f"{SEED}/examples.json": (delete, "examples.json is damaged or lost: it is measured"),
        f"{ARM}/{SEAL}": (delete, "it has no seal.json: it is measured again"),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", TOGETHER)
def test_damaged_records_are_told_and_made_again(study, flags, tmp_path, kind):
    root = tmp_path / "s"
    shutil.copytree(study, root)
    for path, (damage, _) in TOGETHER[kind].items():
        damage(root / path)
    out = again(root, flags)
    for path, (_, said) in TOGETHER[kind].items():
        (line,) = (line for line in out.split("\n") if said in line)
        assert str(root) in line, path
    assert records.numbers_of(root) == records.numbers_of(study)
    assert json.loads((root / "study.json").read_text())["looks"] == [[0, 1]]
    out = again(root, flags)
    assert out.count("done already") == 4
    assert "set aside" not in out


def test_a_lost_learning_curve_costs_no_more_than_the_curve(study, flags, tmp_path):
    root = tmp_path / "s"
    shutil.copytree(study, root)
    copy_of(ARM)(root / RUN / "metrics.jsonl")
    assert "metrics.jsonl is damaged or lost: its learning curve is missing" in again(root, flags)
    here, there = records.numbers_of(root), records.numbers_of(study)
    gone = [curve for curve in here["curves"] if not curve["points"]]
    assert [(curve["arm"], curve["seed"]) for curve in gone] == [("kd", 0)]
    assert here | {"curves": 0} == there | {"curves": 0}
    VALIDATOR.validate(json.loads((root / "report.json").read_text()))


def test_results_that_do_not_follow_from_their_records_are_measured_again(study, flags, tmp_path):
    """Also where the seal was made of them."""
    root = tmp_path / "s"
    shutil.copytree(study, root)
    bump("metrics", "nll")(root / RUN / "result.json")
    seal = read_seal(root / RUN)
    write_seal(root / RUN, seal.files, seal.of)
    assert "result.json says nll" in again(root, flags)
    assert records.numbers_of(root) == records.numbers_of(study)


def test_records_of_another_text_are_refused(study, flags, world, tmp_path):
    root = tmp_path / "s"
    shutil.copytree(study, root)
    seal = json.loads((root / RUN / SEAL).read_text())
    write_seal(root / RUN, seal["files"], seal["of"] | {"held_out": "another"})
    done = cli.run(f"--workdir={root}", *flags, *records.STUDY)
    assert done.returncode == 2
    assert "was measured with another held_out" in done.stderr


def test_a_key_of_a_later_version_changes_no_seal(monkeypatch):
    def with_key(value, default):
        base = load_base()
        base.optim.later = default
        monkeypatch.setattr(study_seal, "load_base", lambda: base)
        c = base.copy_and_resolve_references()
        c.optim.later = value
        return study_seal.of_study(c, {})

    before = study_seal.of_study(load_base(), {})
    assert with_key(1, default=1) == before
    assert with_key(2, default=1) != before
    assert with_key(2, default=1) != with_key(3, default=1)


def test_a_damaged_student_of_a_study_is_not_diagnosed(study, tmp_path):
    root = tmp_path / "s"
    shutil.copytree(study, root)
    flip(0.9)(root / RUN / "student" / "model.safetensors")
    done = cli.run(f"--workdir={root / RUN}", "--config.job=diagnose", config=None)
    assert done.returncode == 2
    assert "model.safetensors is damaged or lost: run the study again" in done.stderr


def config_with(path, **arms):
    path.write_text(
        "from configs.base import get_config as base\n"
        "def get_config(variant='train'):\n"
        "    c = base(variant)\n"
        f"    c.study.ablations.update({arms})\n"
        "    return c\n"
    )
    return path


def test_an_arm_that_breaks_down_is_told_and_the_others_are_judged(study, flags, tmp_path):
    root, config = tmp_path / "s", tmp_path / "mine.py"
    shutil.copytree(study, root)
    own = [flag for flag in records.STUDY if "arms" not in flag]
    of = (f"--workdir={root}", *flags, *own, "--config.study.arms=('kd','sft','hot')")
    done = cli.run(*of, config=config_with(config, hot=HOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" broke down: ") == 2
    report = json.loads((root / "report.json").read_text())
    VALIDATOR.validate(report)
    (hot,) = report["comparisons"]
    assert (hot["label"], hot["treatment"]) == ("INVALID", "hot")
    assert hot["reason"].startswith("hot broke down in seed 0, 1, so that nothing can be paired")
    before = json.loads((study / "report.json").read_text())
    assert report["verdict"] == before["verdict"]
    assert report["statement"].endswith("hot broke down in 2 of 2 seeds. Do not ship it on this"
                                        " evidence.")  # fmt: skip
    assert "0 of 2" in report["table"]
    assert "broke down" in (root / "report.html").read_text()
    rerun = cli.run(*of, config=config)
    assert rerun.returncode == 0
    assert rerun.stdout.count("is trained again only with another config") == 2
    cooler = cli.run(*of, config=config_with(config, hot={"optim": {"learning_rate": 1e-3}}))
    assert cooler.returncode == 0, cooler.stderr
    assert cooler.stdout.count("it broke down with another config: it is trained again") == 2
    assert json.loads((root / "report.json").read_text())["comparisons"][0]["label"] != "INVALID"
    changed = cli.run(*of, config=config_with(config, hot={"optim": {"learning_rate": 2e-3}}))
    assert changed.returncode == 2
    assert "was measured with another config" in changed.stderr


def test_the_gate_forbids_a_treatment_that_broke_down(flags, tmp_path):
    hot = [f"--config.{g}.{key}={x}" for g, group in HOT.items() for key, x in group.items()]
    of = (f"--workdir={tmp_path / 's'}", *flags, *records.STUDY, "--config.study.seeds=1", *hot)
    done = cli.run(*of, "--config.study.gate=true")
    assert done.returncode == 3, done.stderr
    found = json.loads((tmp_path / "s" / "report.json").read_text())
    assert "kd broke down in 1 of 1 seed. sft broke down in 1 of 1 seed." in found["statement"]


def test_a_signal_as_an_arm_breaks_down_ends_the_study_before_the_next_arm(flags, tmp_path):
    """What breaks down asks by a real signal, and waits for it to be heard."""
    code = (
        "import os, signal, sys, time\n"
        "from distill_jax import loop, signals\n"
        "signals.watch()\n"
        "def breaks(log, *_):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.5)\n"
        "    log.close()\n"
        "    raise loop.NumbersBrokeDown('not finite')\n"
        "loop._Log.train = breaks\n"
        "from distill_jax.program import main\n"
        "sys.exit(main(sys.argv))\n"
    )
    _, _, _, *words = cli.command(f"--workdir={tmp_path / 's'}", *flags, *records.STUDY)
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=cli.ROOT, env=cli.environment(),
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 75, done.stderr[-2000:]
    assert "error: stopped by a signal; not finite" in done.stderr
    assert "[1/4] kd" in done.stdout
    assert "[2/4]" not in done.stdout
