"""Inputs of every block besides the residual stream: rotary tables, segments and positions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.attention_pattern import Pattern
from distill_jax.models.rope import rotary_tables
from distill_jax.types import Array


class Tables(NamedTuple):
    """Cosines and sines of the angles by which one kind of block turns queries and keys."""

    cos_BTh: Array
    sin_BTh: Array


class Context(NamedTuple):
    """What all blocks share.

    tables      those of each kind of block that the model has
    position_BT of the queries: in their text, or of a cache the slot
    segment_BT  of packed rows; None where keys lie in a cache
    """

    tables: tuple[Tables, ...]
    position_BT: Array
    segment_BT: Array | None


class _Kind(NamedTuple):
    """local: sees a window only. turns: positions turn queries and keys (else NoPE, 2305.19466)."""

    local: bool
    turns: bool


def block_kinds(config: ModelConfig) -> np.ndarray:
    """int32 [L]: for each block, which of a Context's tables is its own."""
    of_blocks = _of_blocks(config)
    kinds = sorted(set(of_blocks))
    return np.array([kinds.index(kind) for kind in of_blocks], np.int32)


def _of_blocks(config):
    local = config.local_blocks or (False,) * config.blocks
    turns = config.rope_blocks or (True,) * config.blocks
    return [_Kind(*flags) for flags in zip(local, turns, strict=True)]


def patterns(config: ModelConfig) -> tuple[tuple[Pattern, ...], np.ndarray]:
    """The patterns of attention that the model has, and int32 [kinds]: which of them a kind has."""
    scale = config.attention_scale
    of_kinds = [
        Pattern(
            window=config.sliding_window if kind.local else None,
            scale=config.head_width**-0.5 if scale is None else scale,
            softcap=config.attention_softcap,
        )
        for kind in sorted(set(_of_blocks(config)))
    ]
    own = tuple(dict.fromkeys(of_kinds))
    return own, np.array([own.index(pattern) for pattern in of_kinds], np.int32)


def packed_context(config: ModelConfig, segment_BT: Array, position_BT: Array) -> Context:
    """The context of packed rows: causal attention within each segment."""
    long_BT = None
    if (short := short_texts(config)) is not None:
        long_BT = _last_positions(segment_BT, position_BT) >= short
    return Context(_tables(config, position_BT, long_BT), position_BT, segment_BT)


def _last_positions(segment_BT, position_BT):
    """[B, T]: the largest position of each one's segment; those of a row count from 0 or 1."""
    most = segment_BT.shape[1] + 1
    largest = lambda segment, position: jax.ops.segment_max(position, segment, most)[segment]
    return jax.vmap(largest)(segment_BT, position_BT)


def cache_context(
    config: ModelConfig, position_BT: Array, length_B: Array | None = None
) -> Context:
    """The context of queries at `position_BT` that attend to a cache with slot == position.

    length_B: how many tokens each row's text has; None: it ends with the row's last position. Keys
    are stored as they were turned: where a text grows longer than short_texts, those of its shorter
    beginning stay in the cache until they are decoded again.
    """
    long_BT = None
    if (short := short_texts(config)) is not None:
        length_B = jnp.max(position_BT, axis=1) + 1 if length_B is None else length_B
        long_BT = jnp.broadcast_to((length_B > short)[:, None], position_BT.shape)
    return Context(_tables(config, position_BT, long_BT), position_BT, None)


def short_texts(config: ModelConfig) -> int | None:
    """Tokens of the longest text that counts as short; None: texts of all lengths are alike."""
    return config.rope_scaling and config.rope_scaling.short_texts


def _tables(config, position_BT, long_BT):
    def of(kind):
        theta, scaling = config.rope_theta, config.rope_scaling
        if kind.local and config.rope_local_theta is not None:
            theta, scaling = config.rope_local_theta, None
        far_BT = None if scaling is None else long_BT
        cos, sin = rotary_tables(position_BT, config.turned_width, theta, scaling, far_BT)
        if not kind.turns:
            cos, sin = jnp.ones_like(cos), jnp.zeros_like(sin)
        return Tables(cos, sin)

    return tuple(of(kind) for kind in sorted(set(_of_blocks(config))))


def tables_of(context: Context, kind) -> Tables:
    """The tables of a block; its `kind` may be traced, since all blocks run in one scan."""
    if len(context.tables) == 1:
        return context.tables[0]
    return jax.tree.map(lambda *of: jax.lax.select_n(jnp.asarray(kind), *of), *context.tables)
