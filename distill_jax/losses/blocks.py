"""The time axis in blocks, so that only some tokens' logits exist at a time. Shapes: types.py."""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.types import Array


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
