"""The job study as a user meets it: arms, resuming, one report, a gate."""

import json
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

from distill_jax.evals.bounds import bounds_of
from distill_jax.evals.records_file import read_records
from experiments.quickstart_study.collect import collect
from tests import cli

ARMS = ("kd", "sft", "sft_flops", "random_teacher")
STUDY = (
    "--config.job=study", "--config.study.seeds=2", "--config.study.prompts=3",
    "--config.study.prompt_tokens=4", "--config.study.new_tokens=4", "--config.eval.every=3",
)  # fmt: skip


def said(done, code=0):
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def study(flags, tmp_path_factory):
    """A finished study of the four arms."""
    root = tmp_path_factory.mktemp("study") / "s"
    out = said(cli.run(f"--workdir={root}", *flags, *STUDY))
    return root, out


def result(root, arm, seed):
    return json.loads((root / "arms" / arm / f"seed-{seed}" / "result.json").read_text())


def report(root):
    return json.loads((root / "report.json").read_text())


def test_every_arm_and_seed_has_a_line_a_workdir_and_records(study):
    root, _ = study
    lines = [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]
    assert {(line["arm"], line["seed"]) for line in lines} == {(a, s) for a in ARMS for s in (0, 1)}
    tokens = {len(read_records(root / line["workdir"] / "tokens.parquet").columns["token"])
              for line in lines}  # fmt: skip
    assert len(tokens) == 1
    for line in lines:
        run = root / line["workdir"]
        assert (run / "student" / "model.safetensors").exists()
        assert not (run / "checkpoints").exists()


def test_the_records_say_what_the_last_evaluation_said(study):
    """The exported student, measured again token by token, is the one that was trained."""
    root, _ = study
    for arm in ARMS:
        for seed in (0, 1):
            last = cli.metrics(root / "arms" / arm / f"seed-{seed}")[-1]
            metrics = result(root, arm, seed)["metrics"]
            np.testing.assert_allclose(metrics["nll"], last["eval/nll"], rtol=1e-5)
            np.testing.assert_allclose(metrics["forward_kl"], last["eval/forward_kl"], rtol=1e-4)


def test_arms_of_a_seed_see_the_same_order_and_seeds_another(study):
    root, _ = study
    lines = lambda arm, seed: cli.metrics(root / "arms" / arm / f"seed-{seed}")
    batches = lambda *run: [line["train/batch"] for line in lines(*run) if "train/batch" in line]
    order = {(arm, seed): batches(arm, seed) for arm in ARMS for seed in (0, 1)}
    for seed in (0, 1):
        for arm in ARMS:
            n = len(order["kd", seed])
            assert order[arm, seed][:n] == order["kd", seed]
    assert order["kd", 0] != order["kd", 1]


def test_a_random_teacher_teaches_something_else_and_is_judged_by_the_real_one(study):
    root, _ = study
    kd, random = (cli.metrics(root / "arms" / arm / "seed-0") for arm in ("kd", "random_teacher"))
    assert kd[0]["eval/teacher_nll"] == random[0]["eval/teacher_nll"]
    assert kd[1]["train/forward_kl"] != random[1]["train/forward_kl"]


def test_flops_are_matched_and_stated(study):
    root, out = study
    plan = json.loads((root / "study.json").read_text())
    cost = {arm: p["steps"] * p["flops_per_step"] for arm, p in plan["arms"].items()}
    one_step = plan["arms"]["sft"]["flops_per_step"]
    assert abs(cost["sft_flops"] - cost["kd"]) <= one_step / 2
    assert plan["arms"]["sft"]["steps"] == plan["arms"]["kd"]["steps"] == 6
    assert "sft_flops: " in out


def test_a_teacher_without_knowledge_of_the_text_makes_the_study_invalid(study):
    """The teacher of these tests has random weights."""
    found = report(study[0])
    for baseline in ("equal_steps", "equal_flops"):
        assert found["verdict"][baseline]["label"] == "INVALID"
        assert "the teacher is not better" in found["verdict"][baseline]["reason"]
        assert found["verdict"][baseline]["seeds"] == 2
    assert found["verdict"]["ships"] is False
    assert [v["treatment"] for v in found["comparisons"]] == ["random_teacher"]
    assert (study[0] / "report.html").exists()
    warning = "predicts the held-out text no better than the student before training"
    assert study[1].count(warning) == 1
    assert study[1].index(warning) < study[1].index("[2/")  # before the other runs


def test_no_interval_leaves_the_values_that_its_measure_can_have(study):
    """Two seeds have intervals 12.7 standard errors wide."""
    found = report(study[0])
    by_model = [*found["metrics"].values(), *found["flips"].values()]
    by_model += [{k: v for k, v in m.items() if k != "model"} for m in found["behaviour"]["models"]]
    ends = [
        (bounds_of(name), value)
        for row in by_model
        for name, value in row.items()
        if value is not None and value["low"] is not None
    ]
    assert len(ends) > 50
    for (least, largest), value in ends:
        assert least <= value["low"] <= value["mean"] <= value["high"] <= largest


def test_a_finished_study_is_not_run_again_and_the_gate_forbids(study, flags):
    root, _ = study
    before = {p: p.stat().st_mtime_ns for p in root.glob("arms/*/*/result.json")}
    done = cli.run(f"--workdir={root}", *flags, *STUDY, "--config.study.gate=true")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("error: the verdict forbids shipping")
    assert done.stdout.count("done already") == 8
    assert before == {p: p.stat().st_mtime_ns for p in root.glob("arms/*/*/result.json")}


def test_a_study_killed_at_any_time_goes_on(study, flags, tmp_path):
    """Killed three times at growing distances, it ends in the same numbers."""
    command = cli.command(f"--workdir={tmp_path / 's'}", *flags, *STUDY)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for results in (0, 1, 3):
        process = subprocess.Popen(command, cwd=cli.ROOT, env=cli.environment(), **quiet)
        deadline = time.monotonic() + 300
        count = lambda: len(list((tmp_path / "s").glob("arms/*/*/result.json")))
        while count() < results or not (tmp_path / "s" / "study.json").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("arms/*/*/result.json")}
    assert kept
    said(cli.run(f"--workdir={tmp_path / 's'}", *flags, *STUDY))
    assert all(p.stat().st_mtime_ns == at for p, at in kept.items())
    for arm in ARMS:
        for seed in (0, 1):
            there, here = result(study[0], arm, seed), result(tmp_path / "s", arm, seed)
            assert there["metrics"] == here["metrics"], (arm, seed)


def test_two_processes_find_what_one_finds(study, flags, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    small = [flag for flag in STUDY if "seeds" not in flag]
    command = cli.command(
        f"--workdir={tmp_path / 's'}", *flags, *small, "--config.study.seeds=1",
        "--config.study.arms=('kd','sft')", f"--coordinator=localhost:{port}", "--processes=2",
    )  # fmt: skip
    both = [
        subprocess.Popen(
            [*command, f"--process={i}"], cwd=cli.ROOT, env=cli.environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert "report: " in told[0][0]
    assert "report: " not in told[1][0]
    for arm in ("kd", "sft"):
        one, two = result(study[0], arm, 0)["metrics"], result(tmp_path / "s", arm, 0)["metrics"]
        for name in one:
            np.testing.assert_allclose(two[name], one[name], rtol=1e-4, err_msg=f"{arm} {name}")


def test_what_is_kept_of_a_study_quotes_nobody(study, tmp_path):
    collect(study[0], tmp_path)
    kept, whole = report(tmp_path), report(study[0])
    assert kept["verdict"] == whole["verdict"]
    assert kept["metrics"] == whole["metrics"]
    assert whole["samples"]
    assert not kept["samples"]
    assert not kept["diagnose"]["worst"]
    assert not kept["diagnose"]["passages"]
    assert (tmp_path / "results.jsonl").read_text() == (study[0] / "results.jsonl").read_text()


def test_a_study_may_be_judged_by_a_scorer(flags, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def length(prompt, text, reference):\n    return len(text)\n"
    )
    out = said(
        cli.run(
            f"--workdir={tmp_path / 's'}", *flags, *STUDY, "--config.steps=2",
            "--config.study.arms=('kd','sft')", "--config.study.measure=scorer",
            f"--config.study.scorer={tmp_path / 'mine.py'}:length",
        )
    )  # fmt: skip
    found = report(tmp_path / "s")
    unit = "score per example"
    assert found["measure"] == {"name": "scorer", "unit": unit, "higher_is_better": True}
    assert found["verdict"]["equal_steps"]["unit"] == unit
    assert [row["measure"] for row in found["secondary"]] == ["nll", "kl_to_teacher"]
    assert {row["unit"] for row in found["secondary"]} == {"nats per token"}
    assert unit in out


def test_a_study_whose_runs_all_break_down_says_so(flags, tmp_path):
    out = said(
        cli.run(
            f"--workdir={tmp_path / 's'}", *flags, *STUDY, "--config.study.seeds=1",
            "--config.study.arms=('kd','sft')", "--config.study.prompts=0",
            "--config.optim.learning_rate=1000", "--config.optim.max_skipped=1",
            "--config.model.compute_dtype=float16",
        )
    )  # fmt: skip
    found = report(tmp_path / "s")["verdict"]["equal_steps"]
    assert found["label"] == "INVALID"
    assert found["reason"].startswith("kd broke down in seed 0, so that nothing can be paired")
    assert "1 update in a row" in found["reason"]
    assert "lower config.optim.learning_rate" in found["reason"]
    assert found["reason"] in out


def test_seeds_may_be_added_which_counts_as_a_look_and_not_taken_away(study, flags, tmp_path):
    root = tmp_path / "s"
    shutil.copytree(study[0], root)
    again = (f"--workdir={root}", *flags, *STUDY, "--config.study.arms=('kd','sft')")
    assert report(root)["verdict"]["equal_steps"]["look"] == 1
    out = said(cli.run(*again, "--config.study.seeds=3"))
    assert out.count("done already") == 4
    assert json.loads((root / "study.json").read_text())["looks"] == [[0, 1], [0, 1, 2]]
    assert report(root)["verdict"]["equal_steps"]["look"] == 2
    fewer = cli.run(*again)
    assert fewer.returncode == 2
    (line,) = fewer.stderr.splitlines()
    assert "seeds can be added and not taken away" in line


def test_another_margin_may_not_be_given_later(study, flags, tmp_path):
    shutil.copytree(study[0], tmp_path / "s")
    lowered = cli.run(f"--workdir={tmp_path / 's'}", *flags, *STUDY, "--config.study.margin=0.5")
    assert lowered.returncode == 2
    assert "study.margin" in lowered.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--config.study.arms=('kd','stf')", "use some of kd, sft"),
        ("--config.study.seeds=0", "study.seeds is 0: use 1 to"),
        ("--config.study.confidence=95.0", "study.confidence is 95.0: use 0.5"),
        ("--config.study.prompt_tokens=5000", "gives a prompt"),
        ("--config.study.prompts=0 --config.study.new_tokens=61", "the student has 64 positions"),
        ("--config.teacher.path=", "teacher.path is empty"),
    ],
)
def test_mistakes_are_one_line(flags, tmp_path, more, said):
    done = cli.run(f"--workdir={tmp_path / 's'}", *flags, *STUDY, *more.split())
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert said in line


def test_an_ablation_of_a_config_file_is_an_arm(flags, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs.base import get_config as base\n"
        "def get_config(variant='train'):\n"
        "    c = base(variant)\n"
        "    c.study.ablations.hot = {'terms': {'forward_kl': {'temperature': (1.0, 4.0)}}}\n"
        "    return c\n"
    )
    small = [f for f in STUDY if "job" not in f and "seeds" not in f]
    out = said(
        cli.run(
            f"--workdir={tmp_path / 's'}", *flags, *small, "--config.study.seeds=1",
            "--config.study.arms=('kd','sft','hot')", config=f"{file}:study",
        )
    )  # fmt: skip
    assert "hot-temperature=4.0" in out
    same, hot = (cli.metrics(tmp_path / "s" / "arms" / f"hot-temperature={t}" / "seed-0")
                 for t in ("1.0", "4.0"))  # fmt: skip
    kd = cli.metrics(tmp_path / "s" / "arms" / "kd" / "seed-0")
    loss = lambda lines: [line["train/loss"] for line in lines if "train/loss" in line]
    assert loss(same) == loss(kd)
    assert loss(hot) != loss(kd)


def test_diagnose_needs_no_more_than_teacher_student_and_text(world, study, tmp_path):
    student = study[0] / "arms" / "kd" / "seed-0" / "student"
    common = (
        "--config.job=diagnose", f"--config.teacher.path={world / 'teacher'}",
        f"--config.student.path={student}", f"--config.data.source={world / 'text.jsonl'}",
        "--config.data.seq_len=32", "--config.study.prompts=2", "--config.study.prompt_tokens=4",
        "--config.study.new_tokens=4",
    )  # fmt: skip
    said(cli.run(f"--workdir={tmp_path / 'd'}", *common))
    alone = report(tmp_path / "d")
    assert alone["kind"] == "diagnose"
    assert "study_command" not in alone  # how this student began is known to its run alone
    assert "which is not known here" in alone["statement"]
    assert [row["name"] for row in alone["models"]] == ["teacher", "student"]
    assert alone["teacher"]["nll"] == alone["models"][0]["nll"]
    assert alone["metrics"]["student"]["nll"]["mean"] == alone["eval/nll"]
    made = (tmp_path / "d" / "report.html").read_text()
    assert "without a teacher" not in made
    drawn = [m["model"] for m in alone["calibration"]["models"]]
    assert drawn == ["teacher", "student"]
    assert f"Accuracy over confidence of {', '.join(drawn)}" in made
    assert alone["diagnose"]["tokens"] == alone["eval/tokens"]
    assert all(example["sft"] is None for example in alone["diagnose"]["worst"])
    baseline = study[0] / "arms" / "sft" / "seed-0" / "student"
    said(cli.run(f"--workdir={tmp_path / 'b'}", *common, f"--config.diagnose.baseline={baseline}"))
    assert all(example["sft"] for example in report(tmp_path / "b")["diagnose"]["worst"])
