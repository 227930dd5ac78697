"""The job replay: silent where a run is sound, and each planted fault by its name."""

import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from distill_jax import checkpoint
from distill_jax.files import sealed
from distill_jax.loop import BATCH_HASH
from tests import cli
from tests.test_checkpoint_damage import arrays, flip


@pytest.fixture(scope="module")
def done(flags, tmp_path_factory):
    """A run of six steps, with the checkpoints of steps 4 and 6."""
    workdir = tmp_path_factory.mktemp("done") / "run"
    result = cli.run(f"--workdir={workdir}", *flags)
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.fixture
def copy(done, tmp_path):
    return shutil.copytree(done, tmp_path / "run")


def replay(workdir, *more):
    return cli.run(f"--workdir={workdir}", "--config.job=replay", *more, config=None)


def hashes(workdir):
    files = (path for path in workdir.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rewrite(workdir, step, **changed):
    """Changes the training line of a step, with its seal."""
    path, lines = workdir / "metrics.jsonl", cli.metrics(workdir)
    for i, line in enumerate(lines):
        if line["step"] == step and "train/loss" in line:
            line = {k: v for k, v in line.items() if k != "seal"}
            lines[i] = sealed(line | {f"train/{k}": v for k, v in changed.items()})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_sound_run_gives_the_same_bits_and_no_file_changes(done):
    before = hashes(done)
    again = replay(done)
    assert (again.returncode, again.stderr) == (0, "")
    assert "\nsteps 5 to 6 again: nothing differs (42 arrays, 2 losses)\n" in again.stdout
    assert hashes(done) == before


def test_a_number_that_was_wrong_before_it_was_saved_is_found_by_its_array(
    copy, flags, monkeypatch
):
    """Its fingerprint is right."""
    for path in ("checkpoints/step_6", "student"):
        shutil.rmtree(copy / path)
    (copy / "report.json").unlink()
    save = checkpoint.save

    def wrong(manager, state, metrics):
        if state.step == 6:
            bits = jax.lax.bitcast_convert_type(state.params["embedding"], jnp.uint32)
            one = jax.lax.bitcast_convert_type(bits.at[3, 5].set(bits[3, 5] ^ 1), jnp.float32)
            state = state._replace(params=state.params | {"embedding": one})
        save(manager, state, metrics)

    monkeypatch.setattr(checkpoint, "save", wrong)
    assert cli.run(f"--workdir={copy}", *flags).returncode == 0
    before = hashes(copy)
    again = replay(copy)
    assert again.returncode == 76
    assert again.stderr.count("\n") == 1
    assert (
        "checkpoint of step 6: 1 of 42 arrays differ, first params/embedding (1 of" in again.stdout
    )
    assert hashes(copy) == before


@pytest.mark.parametrize(
    ("name", "told"),
    [("loss", "loss was 1.25 and is"), ("learning_rate", "learning_rate was 1.25 and is")],
)
def test_the_first_step_whose_numbers_are_others_is_named(copy, name, told):
    for step in (6, 5, 1):
        rewrite(copy, step, **{name: 1.25})
    again = replay(copy)
    assert again.returncode == 76
    assert f"\nstep 5: {told}" in again.stdout
    assert ", of the same batch\n" in again.stdout
    assert "step 6:" not in again.stdout


def test_another_batch_is_told_apart_from_other_numbers(copy):
    rewrite(copy, 6, **{BATCH_HASH.removeprefix("train/"): 1})
    again = replay(copy)
    assert again.returncode == 76
    assert "\nstep 6: loss was " in again.stdout
    assert ", of another batch\n" in again.stdout


def test_a_text_that_has_changed_is_refused(copy, world, tmp_path, flags):
    text = tmp_path / "text.jsonl"
    text.write_text((world / "text.jsonl").read_text().replace("fox", "ox"))
    config = json.loads((copy / "config.json").read_text())
    del config["seal"]
    (copy / "config.json").write_text(json.dumps(sealed(config | {"data.source": str(text)})))
    again = replay(copy)
    assert again.returncode == 2
    assert "the text of data.train is not what" in again.stderr


def test_a_damaged_checkpoint_is_told_and_the_losses_are_compared(copy):
    path = arrays(copy / "checkpoints/step_6")
    flip(path, path.stat().st_size // 2)
    again = replay(copy)
    assert again.returncode == 76
    assert again.stdout.count("\nthe checkpoint of step 6 is damaged (") == 1
    assert "\nstep 5" not in again.stdout
    assert replay(copy, "--config.replay.step=5").returncode == 0


@pytest.mark.parametrize(
    ("step", "told"),
    [(4, "no good checkpoint before step 4"), (7, "config.replay.step is 7: use at most 6")],
)
def test_a_step_that_cannot_be_run_is_refused_with_a_remedy(copy, step, told):
    again = replay(copy, f"--config.replay.step={step}")
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert told in again.stderr


def test_a_damaged_one_is_not_begun_from(copy):
    path = arrays(copy / "checkpoints/step_4")
    flip(path, path.stat().st_size // 2)
    again = replay(copy)
    assert again.returncode == 2
    assert "no good checkpoint before step 6" in again.stderr
    assert "the checkpoint of step 4 is damaged" in again.stdout


def test_a_step_that_is_recorded_nowhere_is_run_twice(copy):
    shutil.rmtree(copy / "checkpoints/step_6")
    (copy / "metrics.jsonl").unlink()
    again = replay(copy, "--config.replay.step=5")
    assert again.returncode == 0, again.stderr
    assert (
        "\nstep 5 again: nothing differs (42 arrays, 0 losses, step 5 with itself" in again.stdout
    )


@pytest.mark.parametrize("job", ["export", None])
def test_a_directory_of_no_run_is_refused(world, tmp_path, job):
    student = f"--config.student.path={world / 'student'}"
    if job:
        assert cli.run(f"--workdir={tmp_path}", f"--config.job={job}", student).returncode == 0
    refused = cli.run(f"--workdir={tmp_path}", "--config.job=replay", student)
    assert refused.returncode == 2
    assert "holds no training run" in refused.stderr
