"""The only loop that trains: owns time, progress, evaluation, saving and stopping."""

import json
import math
import sys
import time
import zlib
from typing import Any

import jax
import numpy as np

from distill_jax import checkpoint
from distill_jax.files import sealed
from distill_jax.losses.tokens import finish
from distill_jax.progress import COMPILE, Progress, Stage, say
from distill_jax.rollback import ROLLBACK, Streak, jumped, restore_before
from distill_jax.run import Run
from distill_jax.signals import saving
from distill_jax.stopping import shared, watchdog
from distill_jax.types import (
    Batch,
    Mean,
    NumbersBrokeDown,
    Stopped,
    TrainState,
)
from distill_jax.workdir import METRICS, read_lines, rewind

NLL = "eval/nll"  # in the line of every evaluation
BATCH_HASH = "train/batch"  # of a step's tokens: identifies, measures nothing


def train(run: Run, progress: Progress) -> TrainState:
    """Trains from the step of the run's state to the last.

    Where updates stay refused it goes back to a checkpoint, and on with the batches after them.
    Raises Stopped after a signal and a save, NumbersBrokeDown when it cannot go back, or when every
    update up to the last step was refused.
    """
    state = run.state
    start = int(state.step)
    unmeasured, done = False, []
    if jax.process_index() == 0:
        # Steps after the checkpoint are run again, and their lines written again.
        if said := rewind(run.workdir / METRICS, start if start else -1):
            say(said, sys.stderr)
        done = read_lines(run.workdir / METRICS)
        unmeasured = start == run.options.steps and not any(
            line["step"] == start and NLL in line for line in done
        )
    for writer in run.writers:
        writer.start(start)
    log = _Log(run, done)
    if start == 0:
        run.on_start(state.params)
    # The watchdog bounds how long a save in flight is waited for, whatever ended the steps.
    with watchdog(run.options.watchdog_s, _say_error) as alive:
        try:
            if start == 0 or shared(unmeasured, 0):
                _evaluate(run, state, start, log, progress, alive)
            with saving(run.manager.wait_until_finished) as stop:
                try:
                    state = _trained(run, state, start, log, stop, alive, progress)
                except NumbersBrokeDown as error:
                    if shared(stop.asked.is_set(), 0):  # or a study would go on with its next arm
                        raise Stopped(f"stopped by a signal; {error}") from None
                    raise
                with progress.stage("write", "saving the last checkpoint"):
                    run.manager.wait_until_finished()
        finally:
            alive()
            log.close()
            run.manager.close()
    if shared(stop.asked.is_set(), 0):
        raise Stopped(f"stopped by a signal after saving the last step, {run.options.steps}")
    return state


def _trained(run, state, start, log, stop, alive, progress):
    of = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    options, abstract = run.options, jax.tree.map(of, state)
    while True:
        try:
            with progress.stage("train", "training") as stage:
                return _steps(run, state, start, log, stop, alive, progress, stage)
        except Streak as error:
            broke = error.with_traceback(None)  # which holds a state: two need not fit
        if broke.step == options.steps:
            raise NumbersBrokeDown(str(broke))
        alive(math.inf)
        with progress.stage("load", "reading the checkpoint before"):
            state = restore_before(
                run.manager, abstract, broke, run.workdir / METRICS,
                every=options.checkpoint_every, most=options.max_rollbacks, tell=_say,
            )  # fmt: skip
        # If the process dies before the save, the same steps end here again.
        log.rolled_back(broke.step, int(state.step))
        start, state = broke.step, jumped(state, broke.step)
        checkpoint.save(run.manager, state, None)
        alive()


def _steps(run, state, start, log, stop, alive, progress, stage):
    options, late = run.options, None
    for step, (host, batch) in enumerate(run.batches(start), start + 1):
        if step == start + 1:
            _compile(run, state, batch, progress, alive)
            stage.tell(f"step {start}/{options.steps}")
            log.restart()
        state, metrics = run.train_step(state, run.teacher_params, batch, run.key)
        stop.begun.set()
        # Metrics are fetched one step late, so that the next step is dispatched first.
        if late is not None:
            log.train(*late, stage)
        late = (step, host, metrics)
        alive()
        stopping = shared(stop.asked.is_set(), step)
        last = step == options.steps
        due = lambda every, step=step: bool(every) and step % every == 0
        evaluation = None
        if due(options.eval_every) or last or stopping or due(options.checkpoint_every):
            log.train(*late, stage)
            late = None
        if due(options.eval_every) or last:
            evaluation = _evaluate(run, state, step, log, progress, alive)
        if due(options.checkpoint_every) or last or stopping:
            with progress.stage("write", f"saving step {step}"):
                checkpoint.save(run.manager, state, evaluation)
            log.restart()
            alive()
        if stopping and not last:
            run.manager.wait_until_finished()
            raise Stopped(f"stopped by a signal after saving step {step} of {options.steps}")
    return state


def _say(text):
    say(text, sys.stderr)


def _say_error(text):
    say(f"error: {text}", sys.stderr, everywhere=True)


def _compile(run, state, batch, progress, alive):
    """Compiles the training step before the first call, which then finds the program."""
    with progress.stage(COMPILE, "compiling the training step"):
        alive(math.inf)  # a compilation cannot say that it goes on
        run.train_step.lower(state, run.teacher_params, batch, run.key).compile()
        alive()


def _evaluate(run, state, step, log, progress, alive):
    """Measures the student, writes and shows it."""
    compiled = progress.seconds(COMPILE)
    with progress.stage("evaluate", f"evaluating at step {step}") as stage:
        began = time.monotonic()

        def advance(what: str, done: int, total: int) -> None:
            stage.advance(what, done, total)
            alive(0.0 if total else math.inf)

        values = run.evaluate(state.params, advance)
        seconds = time.monotonic() - began - (progress.seconds(COMPILE) - compiled)
    if not math.isfinite(values[NLL]):
        log.close()
        raise NumbersBrokeDown(
            f"{NLL} at step {step} of {run.options.steps} is not finite: use a wider"
            " config.model.compute_dtype, or a lower config.optim.learning_rate"
        )
    values = {name: value for name, value in values.items() if math.isfinite(value)}
    log.line(step, values, seconds)
    alive()
    return values


class _Log:
    """Writes metrics.jsonl, and tells how far the training is."""

    def __init__(self, run: Run, done: list[dict[str, Any]]):
        """done: the lines of what was done before a stop, which counts on; process 0 has them."""
        self.run = run
        self.before = time.monotonic()
        self.began = self.before - max((line.get("wall_s", 0.0) for line in done), default=0.0)
        self.tokens = sum(line.get("train/tokens", 0) for line in done)
        self.rates: list[float] = []
        self.evaluation_s = 0.0  # of one; 0 before any was made
        self.file = (run.workdir / METRICS).open("a") if jax.process_index() == 0 else None

    def restart(self) -> None:
        """What went on until now was no step."""
        self.before = time.monotonic()

    def train(self, step: int, host: Batch, metrics: dict[str, Any], stage: Stage) -> None:
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
        by_source = self.run.tokens_by_source(host) if self.file is not None else {}
        values |= {f"train/tokens/{name}": count for name, count in by_source.items()}
        values["train/tokens_per_s"] = tokens / device_s
        values["train/learning_rate"] = self.run.learning_rate(step - 1)
        values[BATCH_HASH] = batch_hash(host)
        self._write(step, values, device_s=device_s, tokens=self.tokens)
        self._tell(step, values, pace, tokens / pace, stage)
        in_a_row, options = int(values["train/skipped_in_a_row"]), self.run.options
        # A run may be shorter than max_skipped; where nothing was learnt there is no student.
        if in_a_row >= options.max_skipped > 0 or in_a_row == step == options.steps:
            raise Streak(step, in_a_row, options.steps, _refusal(values))

    def line(self, step: int, values: dict[str, float], seconds: float) -> None:
        """Writes and shows an evaluation. seconds: what it took, without compiling."""
        now = time.monotonic()
        known = {name: _number(value) for name, value in values.items()}
        self._write(step, known, device_s=now - self.before, tokens=self.tokens)
        self.before, self.evaluation_s = now, seconds
        shown = [f"{k} {values[k]:.4g}" for k in SHOWN_EVALUATION if k in values]
        say(f"step {step}/{self.run.options.steps}  " + "  ".join(shown), sys.stderr)

    def rolled_back(self, step: int, since: int) -> None:
        """Writes that the run goes on after `step` with the state of `since`."""
        device_s = time.monotonic() - self.before
        self._write(step, {ROLLBACK: since}, device_s=device_s, tokens=self.tokens)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def _write(self, step, values, **more):
        wall_s = round(time.monotonic() - self.began, 3)
        line = {"step": step, "wall_s": wall_s, **more, **values}
        if self.file is not None:
            self.file.write(json.dumps(sealed(line), allow_nan=False) + "\n")
            self.file.flush()
        numbers = {n: value for n, value in values.items() if value is not None and n != BATCH_HASH}
        for writer in self.run.writers:
            writer.metrics(step, numbers)

    def _tell(self, step, values, pace, speed, stage):
        names = ("loss", "forward_kl", "nll")
        numbers = {n: values[f"train/{n}"] for n in names if values.get(f"train/{n}") is not None}
        if memory := _device_memory():
            numbers["GB"] = memory
        options = self.run.options
        left = pace * (options.steps - step)
        left += self.evaluation_s * evaluations_left(step, options.steps, options.eval_every)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        more = f"{speed:,.0f} tokens/s  {shown}"
        stage.tell(f"step {step}/{options.steps}", left, pace, more)


def _refusal(values):
    """Why the update of a step was refused, by its numbers."""
    loss, norm = values["train/loss"], values["train/gradient_norm"]
    if loss is None or norm is None:
        return "its numbers are not finite"
    return f"it is a spike (loss {loss:.4g}, gradient norm {norm:.4g})"


def batch_hash(host: Batch) -> int:
    """Of a batch's tokens; process 0 alone has those of all processes."""
    return zlib.crc32(np.ascontiguousarray(host.tokens_BT))


def evaluations_left(step: int, steps: int, every: int) -> int:
    """Evaluations after `step`: every so many steps, if any, and after the last.

    >>> evaluations_left(3, 10, 4), evaluations_left(3, 10, 0)
    (3, 1)
    """
    if step >= steps:
        return 0
    between = (steps - 1) // every - step // every if every else 0
    return between + 1


SHOWN_EVALUATION = (NLL, "eval/forward_kl", "eval/agreement_top1", "eval/teacher_nll")


def _number(value: Any) -> float | None:
    """A finite Python number; None for what is absent or not finite."""
    value = finish(value) if isinstance(value, Mean) else float(value)
    return value if value is not None and np.isfinite(value) else None


def _device_memory() -> float | None:
    """Gigabytes in use on the fullest device; None where the backend does not say."""
    used = [(d.memory_stats() or {}).get("bytes_in_use") for d in jax.local_devices()]
    return max(used) / 1e9 if used and None not in used else None
