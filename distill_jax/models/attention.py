"""Attention over packed rows, by the form of the platform that runs it, and over a cache.

S indexes keys: positions of a row, or slots of a cache. Neither makes an array of [T, S].
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from distill_jax.models import blockwise_attention, gpu_attention, splash_attention
from distill_jax.models.attention_pattern import Pattern
from distill_jax.models.platforms import platform_of
from distill_jax.types import Array

CACHED_QUERIES = 128  # of a prompt, processed at a time


def attention(
    query_BTNH: Array,
    key_BTKH: Array,
    value_BTKH: Array,
    segment_BT: Array,
    sink_N: Array | None,
    *,
    patterns: tuple[Pattern, ...],
    index: Array | int,
    mesh: Mesh | None,
) -> Array:
    """Grouped-query attention, causal within each segment of a row; softmax in float32.

    Gives [B, T, N, H] in the dtype of the query. Padding (segment 0) sees earlier padding and
    itself, so that no softmax is empty. sink_N: per head the score of a key that has no value, so
    that less than everything is attended to (2309.17453). index: which of the patterns; it may be
    traced, since all blocks run in one scan. mesh: that the arrays lie on; its platform chooses the
    form.
    """
    attend = KERNELS[platform_of(mesh)]
    # Residuals of equal shape are shared by the branches of a switch, so that each is kept once.
    forms = [partial(attend, pattern=pattern, mesh=mesh) for pattern in patterns]
    return _one_of(forms, index, query_BTNH, key_BTKH, value_BTKH, segment_BT, sink_N)


def cached_attention(
    query_BTNH: Array,
    key_BSKH: Array,
    value_BSKH: Array,
    position_BT: Array,
    sink_N: Array | None,
    *,
    patterns: tuple[Pattern, ...],
    index: Array | int,
) -> Array:
    """The same of queries at `position_BT` over a cache with slot == position, without a gradient.

    A query sees the slots up to its own position. Queries of a long prompt take turns.
    """
    forms = [partial(_cached, pattern=pattern) for pattern in patterns]
    return _one_of(forms, index, query_BTNH, key_BSKH, value_BSKH, position_BT, sink_N)


def _one_of(forms, index, *arrays):
    return forms[0](*arrays) if len(forms) == 1 else jax.lax.switch(index, forms, *arrays)


def _cached(query_BTNH, key_BSKH, value_BSKH, position_BT, sink_N, *, pattern):
    batch, length, heads, width = query_BTNH.shape
    of_cache = partial(
        _of_cache, key_BKSH=jnp.swapaxes(key_BSKH, 1, 2), value_BKSH=jnp.swapaxes(value_BSKH, 1, 2),
        sink_N=sink_N, pattern=pattern,
    )  # fmt: skip
    if length <= CACHED_QUERIES:
        return of_cache(query_BTNH, position_BT)
    count = -(-length // CACHED_QUERIES)
    filled = count * CACHED_QUERIES - length

    def blocks(x):
        x = jnp.pad(x, ((0, 0), (0, filled)) + ((0, 0),) * (x.ndim - 2))
        return jnp.swapaxes(x.reshape(batch, count, CACHED_QUERIES, *x.shape[2:]), 0, 1)

    mixed = jax.lax.map(lambda some: of_cache(*some), (blocks(query_BTNH), blocks(position_BT)))
    return jnp.swapaxes(mixed, 0, 1).reshape(batch, -1, heads, width)[:, :length]


def _of_cache(query_BTNH, position_BT, *, key_BKSH, value_BKSH, sink_N, pattern):
    """Attention of a few queries; the heads of a group share one product with their keys."""
    batch, length, heads, width = query_BTNH.shape
    kv_heads, slots = key_BKSH.shape[1:3]
    grouped = query_BTNH.reshape(batch, length, kv_heads, heads // kv_heads, width)
    rows_BKRH = jnp.moveaxis(grouped, 1, 3).reshape(batch, kv_heads, -1, width)
    score_BKRS = pattern.scale * jnp.einsum(
        "bkrh,bksh->bkrs", rows_BKRH, key_BKSH, preferred_element_type=jnp.float32
    )
    if pattern.softcap is not None:
        score_BKRS = pattern.softcap * jnp.tanh(score_BKRS / pattern.softcap)
    back_BTS = position_BT[:, :, None] - jnp.arange(slots)
    seen_BTS = back_BTS >= 0
    if pattern.window is not None:
        seen_BTS &= back_BTS < pattern.window
    seen_B1RS = jnp.tile(seen_BTS, (1, heads // kv_heads, 1))[:, None]
    score_BKRS = jnp.where(seen_B1RS, score_BKRS, jnp.finfo(jnp.float32).min)
    if sink_N is None:
        weight_BKRS = jax.nn.softmax(score_BKRS, axis=-1)
    else:
        sink_KR = jnp.repeat(sink_N.astype(jnp.float32).reshape(kv_heads, -1), length, axis=1)
        sink_BKR1 = jnp.broadcast_to(sink_KR[None, :, :, None], (*score_BKRS.shape[:3], 1))
        with_sink = jax.nn.softmax(jnp.concatenate([score_BKRS, sink_BKR1], axis=-1), axis=-1)
        weight_BKRS = with_sink[..., :-1]
    mixed = jnp.einsum("bkrs,bksh->bkrh", weight_BKRS.astype(value_BKSH.dtype), value_BKSH)
    mixed_BKGTH = mixed.reshape(batch, kv_heads, -1, length, width)
    return jnp.moveaxis(mixed_BKGTH, 3, 1).reshape(batch, length, heads, width)


# By the platform of the devices.
KERNELS = {
    "cpu": blockwise_attention.attend,
    "gpu": gpu_attention.attend,
    "tpu": splash_attention.attend,
}
