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


def best_step(manager: ocp.CheckpointManager, metric: str) -> int | None:
    """The step with the lowest `metric`; of equal ones the last. None where no checkpoint has it.

    A checkpoint saved between two evaluations has no metrics, and is not best.
    """
    values = {step: (manager.metrics(step) or {}).get(metric) for step in manager.all_steps()}
    found = [(value, -step) for step, value in values.items() if value is not None]
    return -min(found)[1] if found else None


def restore(manager: ocp.CheckpointManager, abstract: Any, step: int | None = None) -> TrainState:
    """The state of `step` (the latest by default) in the shapes and shardings of `abstract`."""
    step = manager.latest_step() if step is None else step
    items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    return manager.restore(step, args=items).state
