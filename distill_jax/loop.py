"""The only loop that trains: owns time, progress, evaluation, saving and stopping."""

import json
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from tqdm import tqdm

from distill_jax import checkpoint
from distill_jax.losses.tokens import finish
from distill_jax.progress import progress_line, say
from distill_jax.signals import saving
from distill_jax.types import Array, Batch, Mean, NumbersBrokeDown, Params, Stopped, TrainState
from distill_jax.workdir import METRICS, rewind
from distill_jax.writers import Writer

STEPS_BETWEEN_STOP_CHECKS = 10  # with several processes
BATCH_HASH = "train/batch"  # of a step's tokens: identifies, measures nothing


class LoopOptions(NamedTuple):
    """Intervals in steps (0: never) and limits; configs/base.py documents each."""

    steps: int
    eval_every: int
    checkpoint_every: int
    log_every: int
    max_skipped: int
    watchdog_s: float


class Run(NamedTuple):
    """A training run as live objects; setup/training.py makes it."""

    workdir: Path
    options: LoopOptions
    manager: ocp.CheckpointManager
    state: TrainState  # fresh or restored; its buffers are donated
    teacher_params: tuple[Params, ...]
    key: Array  # for teachers that draw; folded with the step
    train_step: Callable[..., tuple[TrainState, dict[str, Any]]]
    batches: Callable[[int], Iterator[tuple[Batch, Batch]]]  # from a given step on: (host, global)
    evaluate: Callable[[Params], dict[str, float]]
    learning_rate: Callable[[int], float]
    on_start: Callable[[Params], None]  # called once, before the first step of a fresh run
    writers: tuple[Writer, ...]  # of process 0 only


def train(run: Run) -> TrainState:
    """Trains from the step of the run's state to the last.

    Raises Stopped after a signal and a save, NumbersBrokeDown when updates stay non-finite.
    """
    state = run.state
    start = int(state.step)
    if jax.process_index() == 0:
        # Steps after the checkpoint are run again, and their lines written again.
        rewind(run.workdir / METRICS, start if start else -1)
    for writer in run.writers:
        writer.start(start)
    log = _Log(run)
    if start == 0:
        run.on_start(state.params)
        log.line(0, run.evaluate(state.params))
    with saving() as stop, _watchdog(run.options.watchdog_s) as alive:
        state = _steps(run, state, start, log, stop, alive)
        run.manager.wait_until_finished()
    run.manager.close()
    if stop.asked.is_set():
        raise Stopped(f"stopped by a signal after saving the last step, {run.options.steps}")
    return state


def _steps(run, state, start, log, stop, alive):
    options, late = run.options, None
    for step, (host, batch) in enumerate(run.batches(start), start + 1):
        state, metrics = run.train_step(state, run.teacher_params, batch, run.key)
        stop.begun.set()
        # Metrics are fetched one step late, so that the next step is dispatched first.
        if late is not None:
            log.train(*late)
        late = (step, host, metrics)
        alive()
        stopping = _shared(stop.asked.is_set(), step)
        last = step == options.steps
        due = lambda every, step=step: bool(every) and step % every == 0
        evaluation = None
        if due(options.eval_every) or last or stopping or due(options.checkpoint_every):
            log.train(*late)
            late = None
        if due(options.eval_every) or last:
            evaluation = run.evaluate(state.params)
            log.line(step, evaluation)
            alive()
        if due(options.checkpoint_every) or last or stopping:
            checkpoint.save(run.manager, state, evaluation)
        if stopping and not last:
            run.manager.wait_until_finished()
            log.close()
            raise Stopped(f"stopped by a signal after saving step {step} of {options.steps}")
    log.close()
    return state


class _Log:
    """Writes metrics.jsonl and shows progress: a bar on a terminal, otherwise occasional lines."""

    def __init__(self, run: Run):
        self.run = run
        self.began = self.before = time.monotonic()
        self.rates: list[float] = []
        self.tokens = 0
        self.file = (run.workdir / METRICS).open("a") if jax.process_index() == 0 else None
        terminal = sys.stderr.isatty() and jax.process_index() == 0
        self.bar = tqdm(total=0, bar_format="{desc}", leave=True) if terminal else None

    def train(self, step: int, host: Batch, metrics: dict[str, Any]) -> None:
        """Fetches one step's metrics, writes them and shows them."""
        jax.block_until_ready(metrics)
        now = time.monotonic()
        device_s, self.before = now - self.before, now
        values = {f"train/{name}": _number(value) for name, value in metrics.items()}
        tokens = int(metrics["nll"].count)
        self.tokens += tokens
        self.rates = [*self.rates[-19:], device_s]
        pace = float(np.median(self.rates))
        values["train/tokens"] = tokens
        values["train/tokens_per_s"] = tokens / device_s
        values["train/learning_rate"] = self.run.learning_rate(step - 1)
        values[BATCH_HASH] = zlib.crc32(np.ascontiguousarray(host.tokens_BT))
        self._write(step, values, device_s=device_s, tokens=self.tokens)
        self._show(step, values, pace, tokens / pace)
        if values["train/skipped_in_a_row"] >= self.run.options.max_skipped > 0:
            raise NumbersBrokeDown(
                f"{values['train/skipped_in_a_row']:.0f} updates in a row up to step {step} were"
                " not finite: lower optim.learning_rate or look at the data of those steps"
            )

    def line(self, step: int, values: dict[str, float]) -> None:
        """Writes and shows an evaluation."""
        now = time.monotonic()
        self._write(step, values, device_s=now - self.before, tokens=self.tokens)
        self.before = now
        shown = [f"{k} {values[k]:.4g}" for k in SHOWN_EVALUATION if k in values]
        self._text(f"step {step}/{self.run.options.steps}  " + "  ".join(shown))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.file is not None:
            self.file.close()

    def _write(self, step, values, **more):
        wall_s = round(time.monotonic() - self.began, 3)
        line = {"step": step, "wall_s": wall_s, **more, **values}
        if self.file is not None:
            self.file.write(json.dumps(line, allow_nan=False) + "\n")
            self.file.flush()
        numbers = {n: value for n, value in values.items() if value is not None and n != BATCH_HASH}
        for writer in self.run.writers:
            writer.metrics(step, numbers)

    def _show(self, step, values, pace, speed):
        options = self.run.options
        names = ("loss", "forward_kl", "nll")
        numbers = {n: values[f"train/{n}"] for n in names if values.get(f"train/{n}") is not None}
        if memory := _device_memory():
            numbers["GB"] = memory
        text = progress_line(step, options.steps, pace * (options.steps - step), speed, numbers)
        if self.bar is not None:
            self.bar.set_description_str(text)
        elif options.log_every and (step % options.log_every == 0 or step in (1, options.steps)):
            self._text(text)

    def _text(self, text):
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            say(text, sys.stderr)


SHOWN_EVALUATION = ("eval/nll", "eval/forward_kl", "eval/agreement_top1", "eval/teacher_nll")


def _number(value: Any) -> float | None:
    """A finite Python number; None for what is absent or not finite."""
    value = finish(value) if isinstance(value, Mean) else float(value)
    return value if value is not None and np.isfinite(value) else None


def _device_memory() -> float | None:
    """Gigabytes in use on the fullest device; None where the backend does not say."""
    used = [(d.memory_stats() or {}).get("bytes_in_use") for d in jax.local_devices()]
    return max(used) / 1e9 if used and None not in used else None


def _shared(flag: bool, step: int) -> bool:
    """Whether any process has set the flag: all must agree, or the next collective hangs.

    Several processes compare flags only every few steps, because that waits for the device.
    """
    if jax.process_count() == 1:
        return flag
    if step % STEPS_BETWEEN_STOP_CHECKS:
        return False
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


@contextmanager
def _watchdog(limit_s: float) -> Iterator[Callable[[], None]]:
    """Ends the process with code 74 if the yielded function is not called for `limit_s` seconds.

    A hung collective cannot be interrupted from Python, hence os._exit.
    """
    last, over = [time.monotonic()], threading.Event()

    def watch():
        while not over.wait(min(limit_s / 4, 10.0)):
            silent = time.monotonic() - last[0]
            if silent > limit_s:
                text = f"no step finished for {silent:.0f} s (watchdog_s is {limit_s:g}): run again"
                print(f"error: {text}", file=sys.stderr, flush=True)
                os._exit(74)

    thread = threading.Thread(target=watch, daemon=True)
    if limit_s > 0:
        thread.start()
    try:
        yield lambda: last.__setitem__(0, time.monotonic())
    finally:
        over.set()
