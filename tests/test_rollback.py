"""Where updates stay refused a run goes back, skips the stretch and goes on, or ends with 76.

The numbers break down for real: the loss of some steps has a weight whose gradients float16 cannot
hold.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import checkpoint
from distill_jax.optim import OPTIMIZERS, make_optimizer, make_schedule
from distill_jax.rollback import ROLLBACK, Streak, jumped, restore_before
from distill_jax.types import NumbersBrokeDown, TrainState
from distill_jax.workdir import write_lines
from tests import cli, tiny
from tests.test_checkpoint_damage import arrays, flip
from tests.test_optim import PEAK, STEPS, options
from tests.test_workdir_damage import numbers

# Updates 7 and 8 are refused. The checkpoint of step 6 has the very student that broke down.
BACK = (
    "2 updates in a row were refused, the last one because its numbers are not finite: back to the"
    " checkpoint of step 4, and on from step 9 (batches of steps 5 to 8 are skipped)"
)


@pytest.fixture(scope="module")
def flags_here(flags):
    return (
        *flags, "--config.steps=11", "--config.model.compute_dtype=float16",
        "--config.terms.forward_kl.schedule=steps:6=1e6,8=1", "--config.optim.max_skipped=2",
        "--config.generate.max_new_tokens=4",
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(flags_here, tmp_path_factory):
    """A run that went back once, and what it said."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    result = cli.run(f"--workdir={workdir}", *flags_here)
    assert result.returncode == 0, result.stderr
    return workdir, result


def weights(workdir):
    return (workdir / "student/model.safetensors").read_bytes()


def test_a_run_goes_back_and_on_after_the_stretch(whole):
    workdir, result = whole
    assert result.stderr.count(BACK) == 1
    lines = cli.metrics(workdir)
    # Every step is tried once and leaves its line, also those that are skipped.
    assert [line["step"] for line in lines if "train/batch" in line] == [*range(1, 12)]
    assert [(line["step"], line[ROLLBACK]) for line in lines if ROLLBACK in line] == [(8, 4)]
    refused = [line["step"] for line in lines if line.get("train/skipped_in_a_row")]
    assert refused == [7, 8]
    report = json.loads((workdir / "report.json").read_text())
    said = "After step 8, training went back to the student of step 4"
    assert any(text.startswith(said) for text in report["findings"])


@pytest.mark.parametrize("stopped", [5, 7, 9])
def test_a_run_that_was_stopped_goes_back_alike(stopped, whole, flags_here, tmp_path):
    """Before the stretch, beside a checkpoint that the other lacks; within it; after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill_jax.loop.shared", lambda flag, step: step == stopped)
        result = cli.run(f"--workdir={tmp_path}", *flags_here)
    assert result.returncode == 75, result.stderr
    again = cli.run(f"--workdir={tmp_path}", *flags_here)
    assert again.returncode == 0, again.stderr
    assert (BACK in again.stderr) == (stopped < 8)
    assert numbers(tmp_path) == numbers(whole[0])
    assert weights(tmp_path) == weights(whole[0])


def test_a_run_that_died_as_it_went_back_goes_back_again(whole, flags_here, tmp_path):
    def dies(*_):
        raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill_jax.loop.jumped", dies)  # what it does is noted, and not yet saved
        assert cli.run(f"--workdir={tmp_path}", *flags_here).returncode == 70
    assert any(ROLLBACK in line for line in cli.metrics(tmp_path))
    again = cli.run(f"--workdir={tmp_path}", *flags_here)
    assert again.returncode == 0, again.stderr
    assert BACK in again.stderr
    assert numbers(tmp_path) == numbers(whole[0])
    assert weights(tmp_path) == weights(whole[0])


def test_numbers_that_break_down_again_at_once_end_the_run(flags_here, tmp_path):
    longer = "--config.terms.forward_kl.schedule=steps:6=1e6,10=1"
    result = cli.run(f"--workdir={tmp_path}", *flags_here, longer)
    assert result.returncode == 76, result.stderr
    assert result.stderr.count(BACK) == 1
    assert result.stderr.count("error") == 1
    assert "2 updates in a row, up to step 10 of 11" in result.stderr


def test_a_replay_begins_after_the_rollback(whole, flags_here):
    """The stretch before it does not lead to the steps after it."""
    replay = (f"--workdir={whole[0]}", *flags_here, "--config.job=replay")
    again = cli.run(*replay)
    assert again.returncode == 0, again.stderr
    refused = cli.run(*replay, "--config.replay.step=8")
    assert refused.returncode == 2
    assert "no good checkpoint before step 8 and after the rollback at step 8" in refused.stderr


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of every second step, and of step 5."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    manager = checkpoint.open_manager(directory, keep_last=9, keep_best=0, metric="eval/nll")
    for step in (2, 4, 5, 6):
        checkpoint.save(manager, state_at(step), None)
    manager.close()
    return directory


def state_at(step):
    numbers = [jnp.int32(step) for _ in TrainState._fields]
    return TrainState(*numbers)._replace(params={"a": jnp.full(99, step / 7)})


# By case: the end of two refused updates, after which steps the run went on already, how often it
# may, steps between checkpoints, and the step that it goes back to.
CASES = {
    "two updates before them": (10, [], 2, 2, 6),
    "not one that only they follow": (8, [], 2, 2, 4),
    "not one just before them": (9, [], 2, 2, 4),
    "not one of a stop": (9, [], 2, 4, 4),
    "none before them": (5, [], 2, 2, None),
    "trained since the last time": (10, [5], 2, 2, 6),
    "nothing trained since": (10, [6], 2, 2, None),
    "too often": (10, [1, 3], 2, 2, None),
    "never": (10, [], 0, 2, None),
    "no checkpoints on the way": (10, [], 2, 0, None),
}


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_where_a_run_goes_back_to(case, damaged, saved, tmp_path):
    end, before, most, every, expected = CASES[case]
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    if damaged:
        flip(arrays(directory / "step_6"), 300)
        expected = {6: None if before else 4}.get(expected, expected)
    write_lines(tmp_path / "metrics.jsonl", [{"step": step, ROLLBACK: 1} for step in before])
    manager = checkpoint.open_manager(directory, keep_last=9, keep_best=0, metric="eval/nll")
    told, streak = [], Streak(end, 2, 20, "of a test")
    limits = {"every": every, "most": most, "tell": told.append}
    go_back = lambda: restore_before(
        manager, state_at(0), streak, tmp_path / "metrics.jsonl", **limits
    )
    if expected is None:
        with pytest.raises(NumbersBrokeDown, match=f"up to step {end} of 20"):
            go_back()
        assert told == []
    else:
        state = go_back()
        assert int(state.step) == expected
        np.testing.assert_array_equal(state.params["a"], state_at(expected).params["a"])
        assert f"back to the checkpoint of step {expected}, and on from step {end + 1}" in told[-1]
    manager.close()


@pytest.mark.parametrize("frozen", [(), ("embedding",)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_jump_takes_the_schedule_along_and_leaves_the_moments(name, frozen):
    """The update at the new step is that of the state, at the rate of the new step."""
    params = tiny.params(tiny.model())
    chosen = options(name=name, frozen=frozen)
    optimizer = make_optimizer(chosen, STEPS)
    gradient = jax.tree.map(jnp.ones_like, params)
    _, opt_state = optimizer.update(gradient, optimizer.init(params), params)
    zero = jnp.int32(0)
    state = TrainState(jnp.int32(1), params, opt_state, zero, jnp.int32(3), {}, None)
    later = jumped(state, 50)
    assert (int(later.step), int(later.skipped_in_a_row)) == (50, 0)
    rate = make_schedule(chosen, PEAK, STEPS)
    update = lambda state: optimizer.update(gradient, state.opt_state, params)[0]
    ratio = float(rate(50)) / float(rate(1))
    for now, then in zip(*map(jax.tree.leaves, (update(later), update(state))), strict=True):
        np.testing.assert_allclose(now, ratio * then, rtol=1e-4, atol=1e-7)
