"""What every block needs beside the residual stream: rotary tables and masks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.attention import cache_mask, packed_mask, within_window
from distill_jax.models.rope import rotary_tables
from distill_jax.types import Array


class View(NamedTuple):
    """What one kind of block (global or local) sees: rotary tables and a mask."""

    cos_BTh: Array
    sin_BTh: Array
    mask_BTS: Array


class Context(NamedTuple):
    """What every block needs beside x. `local_view` is None when the config has no local block."""

    global_view: View
    local_view: View | None


def local_flags(config: ModelConfig) -> np.ndarray:
    """bool [L]: which blocks are local."""
    return np.asarray(config.local_blocks or (False,) * config.blocks)


def packed_context(config: ModelConfig, segment_BT: Array, position_BT: Array) -> Context:
    """The context of packed rows: causal within a segment, nothing across."""
    return _context(config, packed_mask(segment_BT), position_BT, position_BT)


def cache_context(config: ModelConfig, position_BT: Array, slots: int) -> Context:
    """The context of queries at `position_BT` that look into a cache whose slot is the position."""
    slot_BS = jnp.broadcast_to(jnp.arange(slots), (position_BT.shape[0], slots))
    return _context(config, cache_mask(position_BT, slots), position_BT, slot_BS)


def _context(config, mask_BTS, query_BT, key_BS):
    def view(theta, scaling, mask):
        return View(*rotary_tables(query_BT, config.head_width, theta, scaling), mask)

    global_view = view(config.rope_theta, config.rope_scaling, mask_BTS)
    if not local_flags(config).any():
        return Context(global_view, None)
    near_BTS = within_window(mask_BTS, query_BT, key_BS, config.sliding_window)
    if config.rope_local_theta is None:
        return Context(global_view, global_view._replace(mask_BTS=near_BTS))
    return Context(global_view, view(config.rope_local_theta, None, near_BTS))


def view_of(context, local):
    """The view of a block whose flag may be traced (all blocks run under one scan)."""
    if context.local_view is None:
        return context.global_view
    pick = lambda near, far: jnp.where(local, near, far)
    return jax.tree.map(pick, context.local_view, context.global_view)
