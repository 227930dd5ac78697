"""Inputs of every block besides the residual stream: rotary tables and masks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.attention import cache_mask, packed_mask, within_window
from distill_jax.models.rope import rotary_tables
from distill_jax.types import Array


class View(NamedTuple):
    """Rotary tables and mask of one kind of block, global or local."""

    cos_BTh: Array
    sin_BTh: Array
    mask_BTS: Array


class Context(NamedTuple):
    """The views of global and local blocks; `local_view` is None without local blocks."""

    global_view: View
    local_view: View | None


def local_flags(config: ModelConfig) -> np.ndarray:
    """bool [L]: which blocks are local."""
    return np.asarray(config.local_blocks or (False,) * config.blocks)


def packed_context(config: ModelConfig, segment_BT: Array, position_BT: Array) -> Context:
    """The context of packed rows: causal attention within each segment."""
    return _context(config, packed_mask(segment_BT), position_BT, position_BT)


def cache_context(config: ModelConfig, position_BT: Array, slots: int) -> Context:
    """The context of queries at `position_BT` that attend to a cache with slot == position."""
    slot_BS = jnp.broadcast_to(jnp.arange(slots), (position_BT.shape[0], slots))
    return _context(config, cache_mask(position_BT, slots), position_BT, slot_BS)


def _context(config, mask_BTS, query_BT, key_BS):
    def view(theta, scaling, mask):
        return View(*rotary_tables(query_BT, config.turned_width, theta, scaling), mask)

    global_view = view(config.rope_theta, config.rope_scaling, mask_BTS)
    if not local_flags(config).any():
        return Context(global_view, None)
    near_BTS = within_window(mask_BTS, query_BT, key_BS, config.sliding_window)
    if config.rope_local_theta is None:
        return Context(global_view, global_view._replace(mask_BTS=near_BTS))
    return Context(global_view, view(config.rope_local_theta, None, near_BTS))


def view_of(context, local):
    """The view of a block; its flag `local` may be traced, since all blocks run in one scan."""
    if context.local_view is None:
        return context.global_view
    pick = lambda near, far: jnp.where(local, near, far)
    return jax.tree.map(pick, context.local_view, context.global_view)
