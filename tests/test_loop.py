"""The loop around steps that do nothing: what counts as a step, what is left, what ends a run."""

import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import stopping
from distill_jax.loop import evaluations_left, train
from distill_jax.progress import COMPILE, Progress
from distill_jax.run import LoopOptions, Run
from distill_jax.types import COMPILING, Mean, NumbersBrokeDown, TrainState
from tests import cli, tiny

COMPILE_S, BATCH_S = 0.4, 0.12


@pytest.fixture
def ended(monkeypatch):
    """The codes that the process would have ended with."""
    codes = []
    monkeypatch.setattr(stopping.os, "_exit", codes.append)
    return codes


def run_of(workdir, *, batches=1, steps=4, every=2, bad=(), **options):
    """A run whose step takes COMPILE_S to trace, and whose evaluation BATCH_S for each batch.

    bad: the steps whose updates are refused.
    """
    traced = []

    @jax.jit
    def step(state, teachers, batch, key):
        traced.append(1)
        time.sleep(COMPILE_S)
        mean = Mean(jnp.sum(batch) * 0.0, jnp.float32(8))
        refused = jnp.isin(state.step + 1, jnp.array(bad, jnp.int32)).astype(jnp.int32)
        in_a_row = (state.skipped_in_a_row + 1) * refused
        one = jnp.float32(1)
        metrics = {"loss": one, "gradient_norm": one, "nll": mean, "skipped_in_a_row": in_a_row}
        return state._replace(step=state.step + 1, skipped_in_a_row=in_a_row), metrics

    def evaluate(params, advance):
        advance(f"{COMPILING} the evaluation", 0, 0)
        time.sleep(COMPILE_S)
        advance("batches", 0, 0)
        for i in range(batches):
            time.sleep(BATCH_S)
            advance("batches", i + 1, batches)
        return {"eval/nll": 1.0}

    zero = jnp.int32(0)
    limits = {
        "max_skipped": 0,
        "max_rollbacks": 0,
        "checkpoint_every": 0,
        "watchdog_s": 0.0,
    } | options
    ignore = lambda *_, **__: None
    return traced, Run(
        workdir=workdir,
        options=LoopOptions(steps=steps, eval_every=every, **limits),
        manager=SimpleNamespace(save=ignore, wait_until_finished=ignore, close=ignore),
        state=TrainState(zero, {}, {}, zero, zero, {}, None),
        teacher_params=(),
        key=jax.random.key(0),
        train_step=step,
        batches=lambda start: ((tiny.batch(), jnp.ones(3)) for _ in range(start, steps)),
        evaluate=evaluate,
        tokens_by_source=lambda host: {},
        learning_rate=lambda step: 0.1,
        on_start=lambda params: None,
        writers=(),
    )


def test_a_step_is_compiled_once_and_its_compilation_counts_as_no_step(tmp_path):
    traced, run = run_of(tmp_path)
    progress = Progress()
    train(run, progress)
    assert len(traced) == 1
    steps = [line for line in cli.metrics(tmp_path) if "train/loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert max(line["device_s"] for line in steps) < COMPILE_S / 2
    assert min(line["train/tokens_per_s"] for line in steps) > 8 / (COMPILE_S / 2)
    # One compilation of the step, and what three evaluations call one.
    assert COMPILE_S * 4 < progress.seconds(COMPILE) < COMPILE_S * 4 + 1
    assert 3 * BATCH_S < progress.seconds("evaluate") < 3 * BATCH_S + COMPILE_S


def test_what_is_left_holds_the_evaluations_to_come_without_compiling(tmp_path):
    _, run = run_of(tmp_path, batches=5)
    progress, left = Progress(), []

    def rate(step):
        progress.line(progress.clock())
        return 0.1

    with progress.within(lambda stage: left.append(stage.left_s) or ""):
        train(run._replace(learning_rate=rate), progress)
    assert left[0] is None
    one = 5 * BATCH_S
    np.testing.assert_allclose(left[1], 2 * one, atol=one / 3)  # after step 1: steps 2 and 4
    np.testing.assert_allclose(left[3], one, atol=one / 3)


def test_a_run_that_never_learnt_broke_down_however_short_it_is(tmp_path):
    _, run = run_of(tmp_path, bad=(1, 2, 3, 4), max_skipped=20)
    with pytest.raises(NumbersBrokeDown, match="4 updates in a row, up to step 4 of 4"):
        train(run, Progress())
    _, run = run_of(tmp_path, bad=(2, 3, 4), max_skipped=20)
    train(run, Progress())


def test_numbers_that_break_down_in_the_last_step_leave_nothing_to_go_on_with(tmp_path):
    _, run = run_of(tmp_path, bad=(3, 4), max_skipped=2, max_rollbacks=2, checkpoint_every=1)
    with pytest.raises(NumbersBrokeDown, match="2 updates in a row, up to step 4 of 4"):
        train(run, Progress())


def test_evaluations_left_are_those_that_the_loop_makes():
    for steps in range(1, 12):
        for every in range(5):
            due = [s for s in range(1, steps + 1) if (every and s % every == 0) or s == steps]
            for step in range(steps + 1):
                assert evaluations_left(step, steps, every) == sum(s > step for s in due)


def test_the_watchdog_counts_evaluated_batches_and_no_compilation(tmp_path, ended):
    """A limit below a compilation and below a whole evaluation, above one batch."""
    _, run = run_of(tmp_path, batches=6, watchdog_s=2.5 * BATCH_S)
    train(run, Progress())
    assert ended == []


def test_the_watchdog_ends_what_hangs(ended):
    told = []
    with stopping.watchdog(0.1, told.append):
        time.sleep(0.3)
    assert ended[0] == 74
    assert "watchdog_s" in told[0]
