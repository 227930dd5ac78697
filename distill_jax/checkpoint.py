"""Checkpoints of a run: student, optimizer and step, written by orbax in the background.

A checkpoint is a directory with orbax's commit marker; one that was interrupted has none and is
never restored. No data position is stored: batches are a function of the step.
"""

import math
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
    # A run that goes on with another metric may have kept checkpoints that lack it.
    value = lambda metrics: metrics.get(metric, math.inf)
    best = policies.BestN(
        get_metric_fn=value,
        reverse=True,  # ascending keeps the largest
        n=keep_best,
        keep_checkpoints_without_metrics=False,
    )
    keep = policies.AnyPreservationPolicy([policies.LatestN(keep_last), best])
    options = ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        best_fn=value,  # without it the metrics of a checkpoint are not stored
        best_mode="min",
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


def metric_values(manager: ocp.CheckpointManager, metric: str) -> dict[int, float]:
    """By step, the `metric` of each checkpoint that was saved with an evaluation."""
    values = {step: (manager.metrics(step) or {}).get(metric) for step in manager.all_steps()}
    return {step: value for step, value in values.items() if value is not None}


def lowest(values: dict[int, float]) -> int:
    """The step with the lowest value; of equal ones the last."""
    return min(values, key=lambda step: (values[step], -step))


def restore(manager: ocp.CheckpointManager, abstract: Any, step: int | None = None) -> TrainState:
    """The state of `step` (the latest by default) in the shapes and shardings of `abstract`."""
    step = manager.latest_step() if step is None else step
    items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    return manager.restore(step, args=items).state
