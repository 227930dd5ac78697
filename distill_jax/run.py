"""A training run as the loop takes it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from distill_jax.checkpoint import CheckpointManager
from distill_jax.types import Advance, Array, Batch, Params, TrainState
from distill_jax.writers import Writer


class LoopOptions(NamedTuple):
    """Intervals in steps (0: never) and limits; configs/base.py documents each."""

    steps: int
    eval_every: int
    checkpoint_every: int
    max_skipped: int
    max_rollbacks: int
    watchdog_s: float


class Run(NamedTuple):
    """A training run as live objects; setup/training.py makes it."""

    workdir: Path
    options: LoopOptions
    manager: CheckpointManager
    state: TrainState  # fresh or restored; its buffers are donated
    teacher_params: tuple[Params, ...]
    key: Array  # for teachers that draw; folded with the step
    train_step: Callable[..., tuple[TrainState, dict[str, Any]]]  # jitted
    batches: Callable[[int], Iterator[tuple[Batch, Batch]]]  # from a given step on: (host, global)
    evaluate: Callable[[Params, Advance], dict[str, float]]
    learning_rate: Callable[[int], float]
    tokens_by_source: Callable[[Batch], dict[str, int]]  # of a batch on the host; {}: of one source
    on_start: Callable[[Params], None]  # called once, before the first step of a fresh run
    writers: tuple[Writer, ...]  # of process 0 only
