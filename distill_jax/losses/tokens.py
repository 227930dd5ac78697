"""The tokens of a batch: cut into blocks along the time axis, and averaged by their weights.

Only one block's logits are in memory at a time. `weighted_mean` is the only place where weights
are applied to values. Shapes: types.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from distill_jax.types import Array, Mean


def block_length(block_tokens: int, rows: int, length: int) -> int:
    """Positions per row such that a block of `rows` rows has about `block_tokens` tokens."""
    return min(length, max(1, block_tokens // rows))


def mesh_blocks(
    block_tokens: int, rows: int, length: int, mesh: Mesh | None = None
) -> tuple[int, int]:
    """(size, parts) of `cut` such that each device of a mesh has about `block_tokens` of a block.

    For arrays that the compiler splits over the mesh: rows over `data`, `fsdp` and `expert`, the
    tokens of a row over `sequence`.
    """
    parts, ways = 1, 1
    if mesh is not None and length % mesh.shape["sequence"] == 0:
        parts = mesh.shape["sequence"]
    if mesh is not None:
        ways = mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["expert"]
    return block_length(block_tokens * ways, rows, length // parts), parts


def cut(tree: Any, size: int, parts: int = 1) -> Any:
    """Every array [B, T, ...] as [blocks, B, parts * size, ...], the last block padded with zeros.

    A block has `size` tokens of each of the equal parts of a row, so that no block lies on one
    device where the parts lie on several.
    """

    def one(x: Array) -> Array:
        rows, length, *tail = x.shape
        count = -(-length // parts // size)
        x = x.reshape(rows, parts, length // parts, *tail)
        missing = count * size - length // parts
        x = jnp.pad(x, [(0, 0), (0, 0), (0, missing)] + [(0, 0)] * len(tail))
        x = jnp.moveaxis(x.reshape(rows, parts, count, size, *tail), 2, 0)
        return x.reshape(count, rows, parts * size, *tail)

    return jax.tree.map(one, tree)


def join(blocks: Array, length: int, parts: int = 1) -> Array:
    """The inverse of `cut` for one array: [blocks, B, parts * size, ...] as [B, length, ...]."""
    count, rows, size, *tail = blocks.shape
    x = blocks.reshape(count, rows, parts, size // parts, *tail)
    x = jnp.moveaxis(x, 0, 2).reshape(rows, parts, -1, *tail)
    return x[:, :, : length // parts].reshape(rows, length, *tail)


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
