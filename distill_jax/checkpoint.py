"""Checkpoints of a run: student, optimizer and step, written by orbax in the background.

A checkpoint is a directory with orbax's commit marker; one that was interrupted has none and is
never restored. No data position is stored: batches are a function of the step.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from distill_jax.types import TrainState

CheckpointManager = ocp.CheckpointManager


def open_manager(
    directory: Path, *, keep_last: int, keep_best: int, metric: str
) -> ocp.CheckpointManager:
    """A manager that keeps the last few checkpoints and the few with the lowest `metric`."""
    best = policies.BestN(
        get_metric_fn=lambda metrics: metrics[metric],
        reverse=True,  # ascending keeps the largest
        n=keep_best,
        keep_checkpoints_without_metrics=False,
    )
    keep = policies.AnyPreservationPolicy([policies.LatestN(keep_last), best])
    options = ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        step_prefix="step",
        create=True,
        cleanup_tmp_directories=jax.process_index() == 0,
        enable_async_checkpointing=True,
    )
    return ocp.CheckpointManager(directory.absolute(), options=options)


def save(
    manager: ocp.CheckpointManager, state: TrainState, metrics: dict[str, float] | None
) -> None:
    """Starts a save of `state` under its step; returns once the arrays are copied."""
    step = int(state.step)
    items = ocp.args.Composite(state=ocp.args.StandardSave(state))
    manager.save(step, args=items, metrics=metrics, force=True)


def restore(manager: ocp.CheckpointManager, abstract: Any, step: int | None = None) -> TrainState:
    """The state of `step` (the latest by default) in the shapes and shardings of `abstract`."""
    step = manager.latest_step() if step is None else step
    items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    return manager.restore(step, args=items).state
