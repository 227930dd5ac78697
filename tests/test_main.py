"""The command line end to end: a run, its files, resuming, stopping, devices and jobs."""

import json
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import cli


@pytest.fixture(scope="session")
def done(tmp_path_factory, flags):
    """One finished run, with prompts."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    result = cli.run_process(
        f"--workdir={workdir}", *flags, "--config.generate.prompts=('the quick', 'a slow dog')",
        "--config.generate.max_new_tokens=12",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return workdir, result


def losses(workdir):
    return {m["step"]: m["train/loss"] for m in cli.metrics(workdir) if "train/loss" in m}


def batches(workdir):
    return {m["step"]: m["train/batch"] for m in cli.metrics(workdir) if "train/batch" in m}


def test_a_run_writes_what_it_promises(done):
    workdir, result = done
    names = {path.name for path in workdir.iterdir()}
    assert names >= {
        "config.json", "config_diff.txt", "provenance.json", "metrics.jsonl", "checkpoints",
        "student", "report.html", "report.json", "samples.jsonl",
    }  # fmt: skip
    assert "KL to teacher" in result.stdout
    assert "Warning" not in result.stderr
    assert "\r" not in result.stderr + result.stdout
    assert "\ntime:  " in result.stdout
    assert result.stdout.count("the quick") == 1
    lines = cli.metrics(workdir)
    assert [m["step"] for m in lines if "eval/nll" in m] == [0, 3, 6]
    assert sorted(losses(workdir)) == [1, 2, 3, 4, 5, 6]
    assert all({"step", "wall_s", "device_s", "tokens"} <= m.keys() for m in lines)
    report = json.loads((workdir / "report.json").read_text())
    assert report["eval/nll"] == lines[-1]["eval/nll"]
    first, last = (m["eval/forward_kl"] for m in (lines[0], lines[-1]))
    assert last < first


def test_the_same_command_again_says_that_it_is_done(done, flags):
    workdir, _ = done
    before = (workdir / "metrics.jsonl").read_bytes()
    again = cli.run(
        f"--workdir={workdir}", *flags, "--config.generate.prompts=('the quick', 'a slow dog')",
        "--config.generate.max_new_tokens=12",
    )  # fmt: skip
    assert again.returncode == 0
    assert "is done" in again.stdout
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_epochs_are_the_run_of_their_steps(done, flags, tmp_path):
    whole, result = done
    rows = int(re.search(r"training text: .*, ([\d,]+) rows", result.stdout)[1].replace(",", ""))
    assert f"{-(-rows // 8)} steps of 8 rows are one epoch; the run's 6 steps" in result.stdout
    of_epochs = (*flags, "--config.steps=0", f"--config.epochs={6 * 8 / rows - 1e-4}")
    run = cli.run(f"--workdir={tmp_path / 'run'}", *of_epochs)
    assert run.returncode == 0, run.stderr
    assert losses(tmp_path / "run") == losses(whole)
    for same in (of_epochs, flags):
        assert "is done" in cli.run(f"--workdir={tmp_path / 'run'}", *same).stdout
    more = cli.run(f"--workdir={tmp_path / 'run'}", *flags, "--config.data.max_tokens=99")
    assert more.returncode == 2, more.stdout


def test_transformers_loads_the_student_and_writes_the_same_text(done):
    workdir, _ = done
    model = AutoModelForCausalLM.from_pretrained(workdir / "student")
    tokenizer = AutoTokenizer.from_pretrained(workdir / "student")
    samples = [json.loads(x) for x in (workdir / "samples.jsonl").read_text().splitlines()]
    after = [s for s in samples if s["model"] == "student after"]
    assert len(after) == 2
    for sample in after:
        inputs = tokenizer(sample["prompt"], return_tensors="pt")
        output = model.generate(
            **inputs, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
        new = output[0, inputs["input_ids"].shape[1] :].tolist()
        if tokenizer.eos_token_id in new:
            new = new[: new.index(tokenizer.eos_token_id)]
        assert tokenizer.decode(new) == sample["text"]


def test_kill_and_rerun_equals_a_run_without_interruption(done, flags, tmp_path):
    """Losses and batches are bit-equal; killed without a chance to save."""
    whole, _ = done
    workdir = tmp_path / "killed"
    arguments = cli.command(f"--workdir={workdir}", *flags)
    with subprocess.Popen(
        arguments, cwd=cli.ROOT, env=cli.environment(), stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 240
        while not list(workdir.glob("checkpoints/step_?/_CHECKPOINT_METADATA")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert not (workdir / "report.json").exists()
    again = cli.run(f"--workdir={workdir}", *flags)
    assert again.returncode == 0, again.stderr
    assert "resuming from step" in again.stdout
    assert losses(workdir) == losses(whole)
    assert batches(workdir) == batches(whole)
    last = lambda path: cli.metrics(path)[-1]["eval/nll"]
    assert last(workdir) == last(whole)


def test_sigterm_saves_and_exits_75_and_the_rerun_goes_on(done, flags, tmp_path):
    whole, _ = done
    workdir = tmp_path / "stopped"
    flags = [f for f in flags if "checkpoint.every" not in f] + ["--config.checkpoint.every=0"]
    with subprocess.Popen(
        cli.command(f"--workdir={workdir}", *flags), cwd=cli.ROOT, env=cli.environment(),
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 240
        while not (workdir / "metrics.jsonl").exists() or not losses(workdir):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        code = process.wait(timeout=120)
    if code == 0:  # the signal came after the last step
        pytest.fail("the run ended before the signal: make it longer")
    assert code == 75, rest
    assert "stopped by a signal" in rest
    again = cli.run(f"--workdir={workdir}", *flags)
    assert again.returncode == 0, again.stderr
    assert "resuming from step" in again.stdout
    assert losses(workdir) == losses(whole)


def test_a_signal_in_the_last_step_stops_after_saving_it(done, flags, tmp_path, monkeypatch):
    """What comes after the last step is done by the same command."""
    flags = [f for f in flags if "steps" not in f]
    flags += ["--config.steps=1", "--config.optim.warmup_steps=0"]
    with monkeypatch.context() as patch:
        patch.setattr("distill_jax.loop.saving", cli.stop_asked)
        stopped = cli.run(f"--workdir={tmp_path}", *flags)
    assert stopped.returncode == 75, stopped.stderr
    assert "stopped by a signal after saving the last step, 1" in stopped.stderr
    assert not (tmp_path / "report.json").exists()
    again = cli.run(f"--workdir={tmp_path}", *flags)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "report.json").exists()
    assert sorted(losses(tmp_path)) == [1]


@pytest.mark.parametrize(
    "mesh",
    [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 4, "sequence": 2}],
)
def test_eight_devices_equal_one(done, flags, tmp_path, mesh):
    whole, _ = done
    sizes = [f"--config.mesh.{name}={size}" for name, size in mesh.items()]
    result = cli.run_process(f"--workdir={tmp_path / 'eight'}", *flags, *sizes, devices=8)
    assert result.returncode == 0, result.stderr
    one, eight = losses(whole), losses(tmp_path / "eight")
    np.testing.assert_allclose(list(eight.values()), list(one.values()), rtol=1e-5)
    assert batches(tmp_path / "eight") == batches(whole)


def test_microbatches_and_prefetch_change_nothing(done, flags, tmp_path):
    whole, _ = done
    more = ("--config.data.microbatches=4", "--config.data.prefetch=0")
    assert cli.run(f"--workdir={tmp_path / 'parts'}", *flags, *more).returncode == 0
    one, four = losses(whole), losses(tmp_path / "parts")
    np.testing.assert_allclose(list(four.values()), list(one.values()), rtol=1e-5)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A jsonl file whose documents fit one window, and their texts."""
    path = cli.write_text(tmp_path_factory.mktemp("short") / "short.jsonl", sentences=1)
    return path, [json.loads(line)["text"] for line in path.read_text().splitlines()]


def reference_nll(directory, texts):
    """A plain loop over documents with transformers: summed NLL and predicted tokens."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            log_q = model(ids).logits[0, :-1].double().log_softmax(-1)
        total -= log_q.gather(1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
    return total / count, count


def test_evaluate_equals_a_plain_transformers_loop(world, short, tmp_path):
    path, texts = short
    result = cli.run(
        f"--workdir={tmp_path / 'alone'}", "--config.job=evaluate",
        f"--config.student.path={world / 'student'}",
        f"--config.data.eval_source={path}", "--config.data.seq_len=64",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "alone" / "report.json").read_text())
    nll, count = reference_nll(world / "student", texts)
    assert report["eval/tokens"] == count
    np.testing.assert_allclose(report["eval/nll"], nll, atol=1e-4)
    assert "eval/forward_kl" not in report
    assert len(cli.metrics(tmp_path / "alone")) == 1


def test_evaluate_against_a_teacher(world, short, tmp_path):
    path, texts = short
    result = cli.run(
        f"--workdir={tmp_path / 'pair'}", "--config.job=evaluate",
        f"--config.student.path={world / 'student'}", f"--config.teacher.path={world / 'teacher'}",
        f"--config.data.eval_source={path}", "--config.data.seq_len=64",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "pair" / "report.json").read_text())
    np.testing.assert_allclose(
        report["eval/teacher_nll"], reference_nll(world / "teacher", texts)[0], atol=1e-4
    )
    assert report["eval/forward_kl"] > 0
    assert report["eval/reverse_kl"] > 0
    assert 0 <= report["eval/agreement_top1"] <= 1


def test_generate_prints_and_writes_the_continuations(world, tmp_path):
    result = cli.run(
        f"--workdir={tmp_path / 'text'}", "--config.job=generate",
        f"--config.student.path={world / 'student'}",
        "--config.generate.prompts=('the quick',)", "--config.generate.temperature=0.7",
        "--config.generate.max_new_tokens=16",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    line = json.loads((tmp_path / "text" / "samples.jsonl").read_text())
    assert line["prompt"] == "the quick"
    assert f"> the quick\n{line['text']}\n" in result.stdout


def test_jobs_that_read_a_runs_workdir_are_of_its_student_and_text(done):
    """No key is repeated, and nothing of the run is touched."""
    workdir, _ = done
    names = ("config.json", "metrics.jsonl", "report.json", "report.html", "samples.jsonl")
    before = {name: (workdir / name).read_bytes() for name in names}
    report = json.loads(before["report.json"])
    for job in ("evaluate", "diagnose", "generate"):
        more = ("--config.generate.prompts=('a slow dog',)", "--config.study.prompts=0")
        result = cli.run(f"--workdir={workdir}", f"--config.job={job}", *more, config=None)
        assert result.returncode == 0, result.stderr
    (found,) = (workdir / "evaluate").glob("held-out-*")
    measured = json.loads((found / "report.json").read_text())
    for name in ("eval/nll", "eval/forward_kl", "eval/tokens"):
        np.testing.assert_allclose(measured[name], report[name], rtol=1e-5)
    (found,) = (workdir / "diagnose").glob("held-out-*")
    diagnosed = json.loads((found / "report.json").read_text())
    np.testing.assert_allclose(diagnosed["eval/nll"], report["eval/nll"], rtol=1e-5)
    assert diagnosed["study_command"] == report["study_command"]  # not from the distilled student
    (found,) = (workdir / "generate").glob("a-slow-dog-*")
    assert json.loads((found / "samples.jsonl").read_text())["prompt"] == "a slow dog"
    assert before == {name: (workdir / name).read_bytes() for name in names}


def test_a_run_without_a_student_yet_says_so(done, flags, tmp_path):
    shutil.copy(done[0] / "config.json", tmp_path)
    result = cli.run(f"--workdir={tmp_path}", *flags, "--config.job=evaluate")
    assert result.returncode == 2
    assert "has no student yet" in result.stderr


def test_export_writes_the_student_of_a_checkpoint(done, flags):
    workdir, _ = done
    weights = (workdir / "student" / "model.safetensors").read_bytes()
    result = cli.run(
        f"--workdir={workdir}", *flags, "--config.generate.prompts=('the quick', 'a slow dog')",
        "--config.generate.max_new_tokens=12", "--config.job=export",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (workdir / "student" / "model.safetensors").read_bytes() == weights


def test_export_converts_a_model_to_a_directory(world, tmp_path):
    result = cli.run(
        f"--workdir={tmp_path / 'copy'}", "--config.job=export", "--config.export.dtype=bfloat16",
        f"--config.student.path={world / 'student'}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "copy" / "student")
    assert model.dtype == torch.bfloat16
