"""Going back to a checkpoint where updates stay refused, and on with the batches after them.

Refused updates change nothing, so the batches before them are skipped, too, as PaLM's were
(2204.02311, section 5.1): what led there is not trained again. The student may have been harmed
some updates before its numbers showed it, so the checkpoint is from at least as many updates before
the refused ones as these are.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

from distill_jax import checkpoint
from distill_jax.types import NumbersBrokeDown, TrainState, UserError
from distill_jax.words import plural
from distill_jax.workdir import read_lines

ROLLBACK = "train/rolled_back_to"  # a step, in a line of the step after which the run goes on


class Streak(Exception):
    """So many updates in a row, up to that of `step`, were refused."""

    def __init__(self, step: int, in_a_row: int, steps: int, last: str):
        """last: what was wrong with the last one."""
        super().__init__(
            f"{plural(in_a_row, 'update')} in a row, up to step {step} of {steps}, were refused,"
            f" the last one because {last}: lower config.optim.learning_rate or the weights of"
            " config.terms, or look at the data of those steps"
        )
        self.step, self.in_a_row, self.last = step, in_a_row, last


def restore_before(
    manager: checkpoint.CheckpointManager,
    abstract: Any,
    streak: Streak,
    metrics: Path,
    *,
    every: int,
    most: int,
    tell: Callable[[str], None],
) -> TrainState:
    """The state of the last checkpoint well before a streak. All processes call it.

    metrics: where a run notes its rollbacks, of which there may be so many as `most`. One goes back
    to what was trained after the one before it. Only checkpoints of every so many steps count: a
    run that was stopped has others, and goes back as it would have without. Tells what it does.
    Raises NumbersBrokeDown where there is no such checkpoint.
    """
    # Process 0 says which steps are tried; it alone need see the file.
    before = [line["step"] for line in read_lines(metrics) if ROLLBACK in line]
    least, last = max(before, default=0), streak.step - 2 * streak.in_a_row
    may = every > 0 and len(before) < most
    among = lambda step: may and step % every == 0 and least < step <= last
    try:
        state = checkpoint.restore_good(manager, abstract, tell, among)
    except UserError:
        raise NumbersBrokeDown(str(streak)) from None
    since, updates = int(state.step), plural(streak.in_a_row, "update")
    tell(
        f"{updates} in a row were refused, the last one because {streak.last}: back to the"
        f" checkpoint of step {since}, and on from step {streak.step + 1} (batches of steps"
        f" {since + 1} to {streak.step} are skipped)"
    )
    return state


def jumped(state: TrainState, step: int) -> TrainState:
    """The same at a later step. Schedules are as far as that; moments stay as they are."""
    passed = step - int(state.step)
    scheduled = lambda x: isinstance(x, optax.ScaleByScheduleState)
    opt_state = jax.tree.map(
        lambda x: x._replace(count=x.count + passed) if scheduled(x) else x,
        state.opt_state,
        is_leaf=scheduled,
    )
    return state._replace(
        step=state.step + passed,
        opt_state=opt_state,
        skipped_in_a_row=state.skipped_in_a_row * 0,
    )
