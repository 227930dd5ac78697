"""Limits of values that no library checks before the work begins, whichever job it is."""

from ml_collections import ConfigDict

from distill_jax.config import at_least, choose, leaves
from distill_jax.setup.models import DTYPES
from distill_jax.types import UserError

LEAST = {
    "seed": 0,
    "watchdog_s": 0,
    "log.every": 0,
    "model.block_tokens": 1,
    "data.batch_size": 1,
    "data.microbatches": 1,
    "data.prefetch": 0,
    "eval.batch_size": 1,
    "optim.clip_norm": 0,
    "optim.decay_steps": 0,
    "optim.epsilon": 0,
    "optim.max_skipped": 0,
    "optim.muon_iterations": 1,
    "terms.taid.rate": 0,
    "eval.task_limit": 0,
    "cache.batch_size": 1,
}
# Beyond them libraries that are given the number fail: steps are counted in int32, seeds in int64.
LARGEST = 2**63 - 1
MOST = {"seed": 2**62, "steps": 2**31 - 1}  # of the seeds of a study, each is one more
CONFIDENCE = (0.5, 0.9999)  # beyond it no quantile of few seeds can be computed
# What is kept of an average per step; with 1 nothing new would ever count.
SHARES = (
    "optim.beta1",
    "optim.beta2",
    "optim.muon_momentum",
    "teacher.average_decay",
    "terms.taid.momentum",
)
ABSENT = -1  # of the keys below; any other number below 0 is a mistake
MAY_BE_ABSENT = ("verdict.margin", "verdict.slice_margin")
CHECKPOINTS = ("latest", "best")
OF_DTYPE = ("teacher.dtype", "student.dtype", "model.compute_dtype", "export.dtype")


def check_limits(c: ConfigDict) -> None:
    """Raises UserError for the first value that is out of its limits."""
    for key, least in LEAST.items():
        at_least(key, c[key], least)
    for key, value in leaves(c).items():
        if isinstance(value, int) and value > (most := MOST.get(key, LARGEST)):
            raise UserError(f"config.{key} is {value}: use at most {most}")
    low, high = CONFIDENCE
    if not low <= c.study.confidence <= high:
        raise UserError(f"config.study.confidence is {c.study.confidence}: use {low} to {high}")
    for key in SHARES:
        if not 0 <= c[key] < 1:
            raise UserError(f"config.{key} is {c[key]}: use 0 or more, and less than 1")
    for key in MAY_BE_ABSENT:
        if not (c[key] >= 0 or c[key] == ABSENT):
            raise UserError(f"config.{key} is {c[key]}: use 0 or more, or {ABSENT} to leave it out")
    for key in OF_DTYPE:
        choose(key, c[key], DTYPES)
    if not c.export.checkpoint.isdecimal():  # a step
        choose("export.checkpoint", c.export.checkpoint, CHECKPOINTS)
