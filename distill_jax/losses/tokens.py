"""The tokens of a batch: cut into blocks along the time axis, and averaged by their weights.

Only one block's logits are in memory at a time. `weighted_mean` is the only place where weights
are applied to values. Shapes: types.py.
"""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.types import Array, Mean


def block_length(block_tokens: int, rows: int, length: int) -> int:
    """Positions per row such that a block of `rows` rows has about `block_tokens` tokens."""
    return min(length, max(1, block_tokens // rows))


def cut(tree: Any, size: int) -> Any:
    """Every array [B, T, ...] as [blocks, B, size, ...]; the last block is padded with zeros."""

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
    """Sums per-token values over the weighted tokens; `finish` divides.

    Values of weight zero are replaced before the multiplication, because 0 * inf is NaN.

    >>> finish(weighted_mean(jnp.array([1.0, 2.0, jnp.inf]), jnp.array([1.0, 1.0, 0.0])))
    1.5
    """
    kept_x = jnp.where(weight_x > 0, value_x, 0.0)
    return Mean(jnp.sum(kept_x * weight_x), jnp.sum(weight_x))


def merge(a: Mean, b: Mean) -> Mean:
    """Merges the averages of two disjoint sets of tokens."""
    return Mean(a.total + b.total, a.count + b.count)


def finish(mean: Mean) -> float | None:
    """The average as a Python number; None where nothing was counted."""
    count = float(mean.count)
    return float(mean.total) / count if count else None
