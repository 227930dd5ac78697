"""Attention masks and attention. S indexes keys: positions or cache slots."""

import jax
import jax.numpy as jnp

from distill_jax.types import Array

QUERY_BLOCK = 128  # queries processed at a time; the backward pass recomputes their scores


def packed_mask(segment_BT: Array) -> Array:
    """bool [B, T, S]: causal, within one segment of the row.

    Padding (segment 0) attends to earlier padding and itself, so that no softmax is empty.
    """
    length = segment_BT.shape[1]
    same_BTS = segment_BT[:, :, None] == segment_BT[:, None, :]
    return same_BTS & jnp.tril(jnp.ones((length, length), bool))


def cache_mask(position_BT: Array, slots: int) -> Array:
    """bool [B, T, S]: a query attends to slots up to its own position (slot == position)."""
    return jnp.arange(slots) <= position_BT[:, :, None]


def within_window(mask_BTS: Array, query_BT: Array, key_BS: Array, window: int) -> Array:
    """The mask limited to keys fewer than `window` positions back (a query itself counts)."""
    return mask_BTS & (query_BT[:, :, None] - key_BS[:, None, :] < window)


def attention(
    query_BTNH: Array,
    key_BSKH: Array,
    value_BSKH: Array,
    mask_BTS: Array,
    *,
    scale: float,
    softcap: float | None,
    sink_N: Array | None = None,
) -> Array:
    """Grouped-query attention, softmax in float32. Gives [B, T, N, H] in the dtype of the query.

    softcap c replaces each scaled score s by c * tanh(s / c) before masking. sink_N: per head the
    score of a key that has no value, so that less than everything is attended to (2309.17453). With
    as many keys as queries, the mask must be causal (packed_mask).
    """
    # JAX's version has kernels for GPUs and TPUs; on a CPU its gradient takes four times as long as
    # this one, and it has no soft cap and no sinks.
    if softcap is None and sink_N is None and jax.default_backend() != "cpu":
        return jax.nn.dot_product_attention(
            query_BTNH, key_BSKH, value_BSKH, mask=mask_BTS[:, None], scale=scale
        )
    batch, length, heads, width = query_BTNH.shape
    kv_heads = key_BSKH.shape[2]
    grouped = query_BTNH.reshape(batch, length, kv_heads, heads // kv_heads, width)
    query_BKGTH = jnp.moveaxis(grouped, 1, 3)
    key_BKSH, value_BKSH = jnp.swapaxes(key_BSKH, 1, 2), jnp.swapaxes(value_BSKH, 1, 2)
    packed = length == key_BSKH.shape[1]
    sink_KG = None if sink_N is None else sink_N.reshape(kv_heads, -1).astype(jnp.float32)
    part = jax.checkpoint(_attend, static_argnums=(5, 6))
    mixed = []
    for start in range(0, length, QUERY_BLOCK):
        rows = slice(start, start + QUERY_BLOCK)
        seen = slice(0, start + QUERY_BLOCK) if packed else slice(None)
        keys, values = key_BKSH[:, :, seen], value_BKSH[:, :, seen]
        queries, mask = query_BKGTH[:, :, :, rows], mask_BTS[:, rows, seen]
        mixed.append(part(queries, keys, values, mask, sink_KG, scale, softcap))
    mixed_BTKGH = jnp.moveaxis(jnp.concatenate(mixed, axis=3), 3, 1)
    return mixed_BTKGH.reshape(batch, length, heads, width)


def _attend(query_BKGTH, key_BKSH, value_BKSH, mask_BTS, sink_KG, scale, softcap):
    """Attention of one block of queries; the heads of a group share one product with their keys."""
    batch, kv_heads, group, length, width = query_BKGTH.shape
    rows_BKRH = query_BKGTH.reshape(batch, kv_heads, group * length, width)
    score_BKRS = scale * jnp.einsum(
        "bkrh,bksh->bkrs", rows_BKRH, key_BKSH, preferred_element_type=jnp.float32
    )
    if softcap is not None:
        score_BKRS = softcap * jnp.tanh(score_BKRS / softcap)
    mask_B1RS = jnp.tile(mask_BTS, (1, group, 1))[:, None]
    score_BKRS = jnp.where(mask_B1RS, score_BKRS, jnp.finfo(jnp.float32).min)
    if sink_KG is None:
        weight_BKRS = jax.nn.softmax(score_BKRS, axis=-1).astype(value_BKSH.dtype)
    else:
        sink_BKR1 = jnp.repeat(sink_KG, length, axis=1)[None, :, :, None]
        sink_BKR1 = jnp.broadcast_to(sink_BKR1, (batch, *sink_BKR1.shape[1:]))
        with_sink = jax.nn.softmax(jnp.concatenate([score_BKRS, sink_BKR1], axis=-1), axis=-1)
        weight_BKRS = with_sink[..., :-1].astype(value_BKSH.dtype)
    mixed = jnp.einsum("bkrs,bksh->bkrh", weight_BKRS, value_BKSH)
    return mixed.reshape(batch, kv_heads, group, length, width)
