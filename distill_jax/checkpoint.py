"""Checkpoints of a run: student, optimizer and step, written by orbax in the background.

The fingerprints of its arrays are committed with a checkpoint and compared whenever it is read; one
that is damaged is never gone on from. No data position is stored: batches are a function of the
step.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from distill_jax.checkpoint_arrays import read_arrays
from distill_jax.checkpoint_files import (
    METRICS,
    STATE,
    Damaged,
    flaw,
    metric_of,
    place,
    seal_of,
)
from distill_jax.files import set_aside
from distill_jax.fingerprint import fingerprints
from distill_jax.sharding import anywhere, barrier
from distill_jax.types import TrainState, UserError

CheckpointManager = ocp.CheckpointManager
NONE_LEFT = -1  # in place of a step
LATER = ("spikes", "recent")  # fields of a state that former versions did not keep; zeros at first


class Kept(NamedTuple):
    """Which checkpoints orbax keeps: the last few, and the few with the lowest `metric`.

    So that no run hangs on one that was written badly, the last one before it that looks whole
    stays, too, until the next one is written. Those that are due every so many steps stay as they
    would without any others, such as those of a run that was stopped: it may go back to them.
    """

    directory: Path
    keep_last: int
    keep_best: int
    metric: str
    every: int  # 0: none is due

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """For each checkpoint, by step; the last one is being written."""
        steps = [one.step for one in checkpoints]
        values = {step: metric_of(place(self.directory, step), self.metric) for step in steps[:-1]}
        values[steps[-1]] = (checkpoints[-1].metrics or {}).get(self.metric)
        best = sorted(_known(values).items(), key=lambda item: (item[1], -item[0]))
        whole = (s for s in reversed(steps[:-1]) if not flaw(place(self.directory, s)))
        kept = {*steps[-self.keep_last :], *dict(best[: self.keep_best]), next(whole, None)}
        due = [step for step in steps if self.every and step % self.every == 0]
        kept |= {*due[-max(2, self.keep_last) :]}
        return [step in kept for step in steps]


def open_manager(
    directory: Path, *, keep_last: int, keep_best: int, metric: str, every: int = 0
) -> ocp.CheckpointManager:
    """A manager that keeps the last few checkpoints and the few with the lowest `metric`.

    every: steps between two that are due, whatever else is saved.
    """
    directory = directory.absolute()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=Kept(directory, keep_last, keep_best, metric, every),
        # Without it the metrics of a checkpoint are not stored.
        best_fn=lambda metrics: metrics.get(metric, math.inf),
        best_mode="min",
        step_prefix="step",
        create=True,
        cleanup_tmp_directories=jax.process_index() == 0,
        enable_async_checkpointing=True,
        lightweight_initialize=True,  # reads no file of a checkpoint: any may be damaged
    )
    return ocp.CheckpointManager(directory, options=options)


def save(
    manager: ocp.CheckpointManager, state: TrainState, metrics: dict[str, float] | None
) -> None:
    """Starts a save of `state` under its step; returns once the arrays are copied."""
    step = int(state.step)
    seal = {"arrays": fingerprints(state), METRICS: metrics}
    items = ocp.args.Composite(**{STATE: ocp.args.StandardSave(state)})
    manager.save(step, args=items, metrics=metrics, force=True, custom_metadata=seal)


def flaws(manager: ocp.CheckpointManager) -> dict[int, str]:
    """By step, what is wrong with a checkpoint that is seen without reading its arrays."""
    return _known({s: flaw(place(Path(manager.directory), s)) for s in manager.all_steps()})


def metric_values(manager: ocp.CheckpointManager, metric: str) -> dict[int, float]:
    """By step, the `metric` of each whole checkpoint that was saved with an evaluation."""
    of = lambda step: metric_of(place(Path(manager.directory), step), metric)
    return _known({step: of(step) for step in manager.all_steps()})


def lowest(values: dict[int, float]) -> int:
    """The step with the lowest value; of equal ones the last."""
    return min(values, key=lambda step: (values[step], -step))


def restore(
    manager: ocp.CheckpointManager,
    abstract: Any,
    step: int,
    tell: Callable[[str], None] = lambda _: None,
) -> TrainState:
    """The state of `step`, verified, in the shapes and shardings of `abstract`.

    Fields that a former version did not keep are None: completed() makes them. All processes call
    it. tell(text): gets a line where a former version wrote no fingerprints. Raises Damaged, on all
    processes.
    """
    path, reason = place(Path(manager.directory), step), None
    try:
        seal = seal_of(path)
        state = TrainState(**read_arrays(path / STATE, _as_kept(seal, abstract)))
    except Damaged as error:
        reason = str(error)
    if anywhere(reason is not None):
        raise Damaged(reason or "another process could not read it")
    if int(state.step) != step:
        raise Damaged(f"it is of step {int(state.step)}")
    if seal is None:
        tell(f"the checkpoint of step {step} has no fingerprints, as a former version wrote it")
        return state
    then, now = seal["arrays"], fingerprints(state)
    other = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if anywhere(bool(other)):
        more = f" and {len(other) - 1} more arrays" if other[1:] else ""
        raise Damaged(f"{other[0] if other else 'an array'}{more}: not as saved")
    return state


def absent(state: TrainState) -> list[str]:
    """The fields that the version which saved a state did not keep."""
    return [name for name in LATER if getattr(state, name) is None]


def completed(state: TrainState, abstract: TrainState) -> TrainState:
    """The state with what a former version did not keep: as before the first update."""
    zeros = lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding)
    new = {name: jax.tree.map(zeros, getattr(abstract, name)) for name in absent(state)}
    return state._replace(**new)


def restore_good(
    manager: ocp.CheckpointManager,
    abstract: Any,
    tell: Callable[[str], None],
    among: Callable[[int], bool] = lambda step: True,
) -> TrainState:
    """The newest state that is as it was saved. All processes call it, and take the same one.

    Process 0 says which one is tried next, of the steps that `among` takes. Damaged ones that are
    newer are set aside, each with a line to tell(text). Raises UserError where none is good; then
    nothing is renamed.
    """
    manager.wait_until_finished()
    directory, damaged = Path(manager.directory), {}
    while (step := _next(manager, damaged, among)) != NONE_LEFT:
        try:
            state = completed(restore(manager, abstract, step, tell), abstract)
        except Damaged as error:
            damaged[step] = str(error)
            continue
        for bad, reason in damaged.items() if jax.process_index() == 0 else ():
            free = set_aside(place(directory, bad))
            tell(f"the checkpoint of step {bad} is damaged ({reason}): it is now {free}")
        if damaged:
            barrier(f"damaged checkpoints before {step}")
            manager.reload()
        return state
    listed = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
    raise UserError(
        f"{directory} holds no checkpoint to go on from ({listed or 'none at all'}): put a copy of"
        " one back in its place, or remove that directory to train from the start"
    )


def good_steps(manager: ocp.CheckpointManager, abstract: Any) -> list[int]:
    """The steps of all checkpoints that are as they were saved; reads every one of them."""
    good = []
    for step in manager.all_steps():
        try:
            restore(manager, abstract, step)
        except Damaged:
            continue
        good.append(step)
    return good


def _as_kept(seal, abstract):
    """Without the fields of which a seal names no array; one without names none of them."""
    named = {name.split("/")[0] for name in (seal or {"arrays": ()})["arrays"]}
    gone = lambda name, value: name in LATER and name not in named and value is not None
    return {name: value for name, value in abstract._asdict().items() if not gone(name, value)}


def _known(values):
    return {step: value for step, value in values.items() if value is not None}


def _next(manager, tried, among) -> int:
    """The newest step that was not tried yet, as process 0 sees it."""
    untried = (s for s in manager.all_steps() if s not in tried and s < 2**31 and among(s))
    step = np.int32(max(untried, default=NONE_LEFT))
    return int(step if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(step))
