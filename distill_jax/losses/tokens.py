"""The tokens of a batch: cut into blocks along the time axis, and averaged by their weights.

Blocks keep only some tokens' logits in memory at a time. `weighted_mean` is the one place where a
mask meets a value. Shapes: types.py.
"""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.types import Array, Mean


def block_length(block_tokens: int, rows: int, length: int) -> int:
    """Positions of each of `rows` rows that make a block of about `block_tokens` tokens."""
    return min(length, max(1, block_tokens // rows))


def cut(tree: Any, size: int) -> Any:
    """Every array [B, T, ...] as [blocks, B, size, ...]; zeros fill up the last block."""

    def one(x: Array) -> Array:
        rows, length = x.shape[:2]
        count = -(-length // size)
        x = jnp.pad(x, [(0, 0), (0, count * size - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, count, size, *x.shape[2:]), 1, 0)

    return jax.tree.map(one, tree)


def join(blocks: Array, length: int) -> Array:
    """The inverse of `cut` for one array: [blocks, B, size, ...] as [B, length, ...]."""
    rows, tail = blocks.shape[1], blocks.shape[3:]
    return jnp.moveaxis(blocks, 0, 1).reshape(rows, -1, *tail)[:, :length]


def weighted_mean(value_x: Array, weight_x: Array) -> Mean:
    """Sums per-token values over the weighted tokens; the division is left to `finish`.

    A position of weight zero is replaced before it is multiplied, because 0 * inf is NaN.

    >>> finish(weighted_mean(jnp.array([1.0, 2.0, jnp.inf]), jnp.array([1.0, 1.0, 0.0])))
    1.5
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
