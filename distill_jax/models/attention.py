"""Who may look at whom, and the weighted average itself. S is the key side (positions or slots)."""

import jax
import jax.numpy as jnp

from distill_jax.types import Array


def packed_mask(segment_BT: Array) -> Array:
    """bool [B, T, S]: causal, within one segment of the row.

    Padding (segment 0) sees earlier padding and itself, so that no row of the softmax is empty.
    """
    length = segment_BT.shape[1]
    same_BTS = segment_BT[:, :, None] == segment_BT[:, None, :]
    return same_BTS & jnp.tril(jnp.ones((length, length), bool))


def cache_mask(position_BT: Array, slots: int) -> Array:
    """bool [B, T, S]: a query sees the slots up to its own position (slot == position)."""
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
) -> Array:
    """Grouped-query attention, softmax in float32. Gives [B, T, N, H] in the dtype of the query.

    softcap c replaces each scaled score s by c * tanh(s / c) before masking.
    """
    mask_B1TS = mask_BTS[:, None]
    if softcap is None:
        return jax.nn.dot_product_attention(
            query_BTNH, key_BSKH, value_BSKH, mask=mask_B1TS, scale=scale
        )
    batch, length, heads, width = query_BTNH.shape
    kv_heads = key_BSKH.shape[2]
    grouped = query_BTNH.reshape(batch, length, kv_heads, heads // kv_heads, width)
    score_BKGTS = jnp.einsum(
        "BTKGH,BSKH->BKGTS", grouped, key_BSKH, preferred_element_type=jnp.float32
    )
    score_BKGTS = softcap * jnp.tanh(score_BKGTS * (scale / softcap))
    score_BKGTS = jnp.where(mask_B1TS[:, :, None], score_BKGTS, jnp.finfo(jnp.float32).min)
    weight_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1).astype(value_BSKH.dtype)
    mixed = jnp.einsum("BKGTS,BSKH->BTKGH", weight_BKGTS, value_BSKH)
    return mixed.reshape(batch, length, heads, width)
