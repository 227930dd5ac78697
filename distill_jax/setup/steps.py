"""How many updates a run makes: config.steps, or config.epochs once its rows are counted."""

import math
from collections.abc import Callable

from ml_collections import ConfigDict

from distill_jax.config import load_base
from distill_jax.schema import check_values
from distill_jax.types import UserError

# (config, base) -> the config with defaults that fit its steps, and a line on each
Fit = Callable[[ConfigDict, ConfigDict], tuple[ConfigDict, tuple[str, ...]]]


def fit_to_steps(c: ConfigDict, base: ConfigDict) -> tuple[ConfigDict, tuple[str, ...]]:
    """The config whose defaults fit a short run, and a line on each that was made smaller.

    Warm-up becomes a tenth of the steps, the fall of wsd a fifth of what follows the warm-up. What
    the user has changed stays, and is an error where it does not fit. With config.epochs all of it
    waits for the number of rows, and steps are 0. Raises UserError where both are given.
    """
    fitted, lines = c.copy_and_resolve_references(), []
    if c.epochs:
        if c.steps not in (0, base.steps):
            raise UserError(
                f"config.steps is {c.steps} and config.epochs {c.epochs:g}: give one of them;"
                " --config.steps=0 leaves it to the epochs"
            )
        fitted.steps = 0
        return fitted, ()
    used = ["warmup_steps"] + ["decay_steps"] * (c.optim.schedule == "wsd")
    for key in used:
        if key == "warmup_steps":
            most, instead = c.steps - 1, c.steps // 10
        else:
            most = c.steps - fitted.optim.warmup_steps
            instead = max(1, most // 5)
        default = base.optim[key]
        if c.steps > 0 and c.optim[key] == default > most:
            fitted.optim[key] = instead
            lines.append(
                f"config.optim.{key} is {instead}: its default {default} does not fit"
                f" {c.steps} steps"
            )
    return fitted, tuple(lines)


def with_steps(
    c: ConfigDict, rows: int, fit: Fit = fit_to_steps
) -> tuple[ConfigDict, tuple[str, ...]]:
    """The config with the steps of config.epochs over so many rows, and with epochs 0 from then on.

    As after `fit`; a config without epochs is given back. A part of a batch is a step.
    """
    if not c.epochs:
        return c, ()
    derived = c.copy_and_resolve_references()
    # Without the last digits, 0.1 epochs of 30 batches would be 4 steps.
    derived.steps = max(1, math.ceil(round(c.epochs * rows / c.data.batch_size, 6)))
    derived.epochs = 0.0
    check_values({"steps": derived.steps})
    return fit(derived, load_base())


def describe_steps(c: ConfigDict, rows: int) -> str:
    """How far the steps of a config go through its rows, in words."""
    size = c.data.batch_size
    passes = f"{c.steps * size / rows:.3g}"
    return (
        f"{-(-rows // size):,} steps of {size} rows are one epoch; the run's {c.steps:,} steps are"
        f" {passes} epoch{'s' * (passes != '1')}"
    )
