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
    """Rotary tables and mask of one kind of block."""

    cos_BTh: Array
    sin_BTh: Array
    mask_BTS: Array


class Context(NamedTuple):
    """The view of each kind of block that the model has."""

    views: tuple[View, ...]


class _Kind(NamedTuple):
    """local: sees a window only. turns: positions turn queries and keys (else NoPE, 2305.19466)."""

    local: bool
    turns: bool


def block_kinds(config: ModelConfig) -> np.ndarray:
    """int32 [L]: for each block, which of a Context's views is its own."""
    of_blocks = _of_blocks(config)
    kinds = sorted(set(of_blocks))
    return np.array([kinds.index(kind) for kind in of_blocks], np.int32)


def _of_blocks(config):
    local = config.local_blocks or (False,) * config.blocks
    turns = config.rope_blocks or (True,) * config.blocks
    return [_Kind(*flags) for flags in zip(local, turns, strict=True)]


def packed_context(config: ModelConfig, segment_BT: Array, position_BT: Array) -> Context:
    """The context of packed rows: causal attention within each segment."""
    long_BT = None
    if (short := short_texts(config)) is not None:
        same_BTS = segment_BT[:, :, None] == segment_BT[:, None, :]
        long_BT = jnp.any(same_BTS & (position_BT[:, None, :] >= short), axis=-1)
    return _context(config, packed_mask(segment_BT), position_BT, position_BT, long_BT)


def cache_context(
    config: ModelConfig, position_BT: Array, slots: int, length_B: Array | None = None
) -> Context:
    """The context of queries at `position_BT` that attend to a cache with slot == position.

    length_B: how many tokens each row's text has; None: it ends with the row's last position. Keys
    are stored as they were turned: where a text grows longer than short_texts, those of its shorter
    beginning stay in the cache until they are decoded again.
    """
    slot_BS = jnp.broadcast_to(jnp.arange(slots), (position_BT.shape[0], slots))
    long_BT = None
    if (short := short_texts(config)) is not None:
        length_B = jnp.max(position_BT, axis=1) + 1 if length_B is None else length_B
        long_BT = jnp.broadcast_to((length_B > short)[:, None], position_BT.shape)
    return _context(config, cache_mask(position_BT, slots), position_BT, slot_BS, long_BT)


def short_texts(config: ModelConfig) -> int | None:
    """Tokens of the longest text that counts as short; None: texts of all lengths are alike."""
    return config.rope_scaling and config.rope_scaling.short_texts


def _context(config, mask_BTS, query_BT, key_BS, long_BT):
    def view(kind):
        theta, scaling, mask = config.rope_theta, config.rope_scaling, mask_BTS
        if kind.local:
            mask = within_window(mask_BTS, query_BT, key_BS, config.sliding_window)
            if config.rope_local_theta is not None:
                theta, scaling = config.rope_local_theta, None
        far_BT = None if scaling is None else long_BT
        cos, sin = rotary_tables(query_BT, config.turned_width, theta, scaling, far_BT)
        if not kind.turns:
            cos, sin = jnp.ones_like(cos), jnp.zeros_like(sin)
        return View(cos, sin, mask)

    return Context(tuple(view(kind) for kind in sorted(set(_of_blocks(config)))))


def view_of(context: Context, kind) -> View:
    """The view of a block; its `kind` may be traced, since all blocks run in one scan."""
    if len(context.views) == 1:
        return context.views[0]
    return jax.tree.map(lambda *of: jax.lax.select_n(jnp.asarray(kind), *of), *context.views)
