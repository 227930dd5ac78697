"""Which checkpoints are kept, and which one is best."""

import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import checkpoint
from distill_jax.types import TrainState

METRIC = "eval/nll"


def opened(directory, keep_last=1, keep_best=1, metric=METRIC):
    return checkpoint.open_manager(
        directory, keep_last=keep_last, keep_best=keep_best, metric=metric
    )


def saved(directory, values, **keep):
    """A state at every step from 1 on, with its metric where it has one."""
    manager = opened(directory, **keep)
    for step, value in enumerate(values, 1):
        state = TrainState(*[jnp.int32(step)] * len(TrainState._fields))
        checkpoint.save(manager, state, None if value is None else {METRIC: value, "other": -value})
        manager.wait_until_finished()
    manager.close()
    return state


CASES = {
    "the first": ([1.0, 2.0, 3.0], 1),
    "between": ([2.0, 1.0, 3.0], 2),
    "the last": ([3.0, 2.0, 1.0], 3),
    "the last of equals": ([1.0, 1.0, 2.0], 2),
    "not one without metrics": ([2.0, 1.0, None], 2),
    "none": ([None, None], None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_best_checkpoint_has_the_lowest_metric_and_outlives_a_restart(tmp_path, case):
    values, best = CASES[case]
    last = saved(tmp_path, values)
    manager = opened(tmp_path)  # as another process finds it
    found = checkpoint.metric_values(manager, METRIC)
    assert (checkpoint.lowest(found) if found else None) == best
    assert manager.latest_step() == len(values)
    if best is not None:
        assert int(checkpoint.restore(manager, last, best).step) == best
    kept = {best, len(values) - 1, len(values)}  # the one before the last, too
    assert set(manager.all_steps()) == kept - {None}
    manager.close()


def test_those_that_are_due_stay_whatever_else_was_saved(tmp_path):
    """A run that was stopped between may go back to the same ones as another."""
    manager = checkpoint.open_manager(tmp_path, keep_last=2, keep_best=0, metric=METRIC, every=4)
    for step in (4, 8, 12, 13, 14, 15):
        state = TrainState(*[jnp.int32(step)] * len(TrainState._fields))
        checkpoint.save(manager, state, None)
    manager.wait_until_finished()
    assert list(manager.all_steps()) == [8, 12, 14, 15]
    manager.close()


def test_another_metric_may_be_asked_for_later(tmp_path):
    saved(tmp_path, [1.0, 2.0], keep_last=2)
    manager = opened(tmp_path, metric="other")
    assert checkpoint.lowest(checkpoint.metric_values(manager, "other")) == 2
    assert checkpoint.metric_values(manager, "eval/none") == {}
    np.testing.assert_equal(manager.metrics(1)["other"], -1.0)
    manager.close()
