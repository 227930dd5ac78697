"""The one place where a mask meets a value. Shapes: types.py."""

import jax.numpy as jnp

from distill_jax.types import Array, Mean


def weighted_mean(value_x: Array, weight_x: Array) -> Mean:
    """Sums per-token values over the weighted tokens; the division is left to `finish`.

    A position of weight zero is replaced before it is multiplied, because 0 * inf is NaN.
    """
    kept_x = jnp.where(weight_x > 0, value_x, 0.0)
    return Mean(jnp.sum(kept_x * weight_x), jnp.sum(weight_x))


def merge(a: Mean, b: Mean) -> Mean:
    """Joins the averages of two disjoint sets of tokens."""
    return Mean(a.total + b.total, a.count + b.count)


def finish(mean: Mean) -> float | None:
    """The average as a Python number; None where nothing was counted, since absent is not zero."""
    count = float(mean.count)
    return float(mean.total) / count if count else None
