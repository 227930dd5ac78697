"""Attention by blocks of queries and keys: what a CPU computes, and every platform can.

Forward, each block of queries keeps the largest score so far, the sum of exponentials and the
weighted sum of values, which a block of keys at a time is added to (2112.05682). Backward, scores
are computed again from the logsumexp (FlashAttention, 2205.14135). A scan goes over the pairs of
blocks of which any query sees any key, so that neither memory, nor the size of the program, nor the
time of compiling grows with T * S.

Letters besides those of types.py: i blocks of queries, j blocks of keys, q and s queries and keys
of a block, r the q of all heads that share a key: one product serves them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.lax import optimization_barrier
from jax.sharding import Mesh

from distill_jax.models.attention_mesh import over_mesh
from distill_jax.models.attention_pattern import Pattern
from distill_jax.types import Array

BLOCK = 128  # positions of a block, at most
KEPT = "attention"  # the name of outputs and logsumexp, for policies of rematerialization
LOWEST = float(np.finfo(np.float32).min)


def attend(
    query_BTNH: Array,
    key_BTKH: Array,
    value_BTKH: Array,
    segment_BT: Array,
    sink_N: Array | None,
    *,
    pattern: Pattern,
    mesh: Mesh | None,
) -> Array:
    """Causal attention within each segment of a row: [B, T, N, H] in the dtype of the query."""
    part = partial(attend_from, pattern=pattern)
    return over_mesh(part, query_BTNH, key_BTKH, value_BTKH, segment_BT, sink_N, mesh=mesh)


def attend_from(
    query_BTNH: Array,
    key_BSKH: Array,
    value_BSKH: Array,
    segment_BS: Array,
    sink_N: Array | None,
    first: int | Array,
    *,
    pattern: Pattern,
) -> Array:
    """The same of a part of the queries, on one device; `first` may be traced.

    first: the place in the row of the first query. Segments are those of the whole row.
    """
    places = _Places(
        jax.lax.dynamic_slice_in_dim(segment_BS, first, query_BTNH.shape[1], axis=1),
        segment_BS,
        jnp.asarray(first, jnp.int32),
    )
    from_beginning = isinstance(first, int) and first == 0
    return _attend(pattern, from_beginning, query_BTNH, key_BSKH, value_BSKH, sink_N, places)


class _Places(NamedTuple):
    """Of queries and keys: their segments, and the place of the first query."""

    query_BT: Array
    key_BS: Array
    first: Array


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(pattern, from_beginning, query_BTNH, key_BSKH, value_BSKH, sink_N, places):
    return _forward(pattern, from_beginning, query_BTNH, key_BSKH, value_BSKH, sink_N, places)[0]


def _forward(pattern, from_beginning, query_BTNH, key_BSKH, value_BSKH, sink_N, places):
    blocks = _blocks(query_BTNH, key_BSKH, value_BSKH, places)
    batch, kv_heads, rows, width = blocks.query_iBKrH.shape[1:]

    def one(so_far, pair):
        i, j = pair
        mine = jax.tree.map(lambda x: x[i], so_far)

        def seen(mine):
            highest_BKr, sum_BKr, mixed_BKrH = mine
            score_BKrs = _scores(blocks, i, j, pattern)
            new_BKr = jnp.maximum(highest_BKr, jnp.max(score_BKrs, -1))
            weight_BKrs = jnp.exp(score_BKrs - new_BKr[..., None])
            fade_BKr = jnp.exp(highest_BKr - new_BKr)
            added_BKrH = jnp.einsum(
                "bkrs,bksh->bkrh", weight_BKrs.astype(value_BSKH.dtype), blocks.value_jBKsH[j],
                preferred_element_type=jnp.float32,
            )  # fmt: skip
            sum_BKr = sum_BKr * fade_BKr + jnp.sum(weight_BKrs, -1)
            return new_BKr, sum_BKr, mixed_BKrH * fade_BKr[..., None] + added_BKrH

        mine = _where_seen(from_beginning, blocks, i, j, pattern, seen, mine)
        return jax.tree.map(lambda x, new: x.at[i].set(new), so_far, mine), None

    shape = (blocks.query_iBKrH.shape[0], batch, kv_heads, rows)
    if sink_N is None:
        highest_iBKr, sum_iBKr = jnp.full(shape, LOWEST), jnp.zeros(shape)
    else:
        # A sink is a key without a value: the first of all, with the weight exp(0).
        sink_BKr = jnp.broadcast_to(_of_rows(sink_N, kv_heads, rows), shape[1:])
        highest_iBKr, sum_iBKr = jnp.broadcast_to(sink_BKr, shape), jnp.ones(shape)
    start = (highest_iBKr, sum_iBKr, jnp.zeros((*shape, width)))
    (highest_iBKr, sum_iBKr, mixed_iBKrH), _ = jax.lax.scan(
        one, start, _pairs(blocks, pattern, from_beginning)
    )
    # Queries that fill up the last block may see nothing at all.
    sum_iBKr = jnp.where(sum_iBKr > 0, sum_iBKr, 1)
    mixed_iBKrH = (mixed_iBKrH / sum_iBKr[..., None]).astype(query_BTNH.dtype)
    out_BTNH = checkpoint_name(_from_rows(mixed_iBKrH, query_BTNH.shape), KEPT)
    lse_iBKr = checkpoint_name(highest_iBKr + jnp.log(sum_iBKr), KEPT)
    return out_BTNH, (query_BTNH, key_BSKH, value_BSKH, sink_N, places, out_BTNH, lse_iBKr)


def _backward(pattern, from_beginning, residuals, gradient_BTNH):
    query_BTNH, key_BSKH, value_BSKH, sink_N, places, out_BTNH, lse_iBKr = residuals
    blocks = _blocks(query_BTNH, key_BSKH, value_BSKH, places)
    dtype = query_BTNH.dtype
    kv_heads, rows = blocks.query_iBKrH.shape[2:4]
    given_iBKrH = _to_rows(gradient_BTNH, kv_heads, blocks.query_is.shape[-1])
    along_BTN = jnp.sum(gradient_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32), -1)
    along_iBKr = _to_rows(along_BTN[..., None], kv_heads, blocks.query_is.shape[-1])[..., 0]
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def one(so_far, pair):
        i, j = pair
        to_query, to_key, to_value = so_far
        mine = to_query[i], to_key[j], to_value[j]

        def seen(mine):
            query_BKrH, given_BKrH = blocks.query_iBKrH[i], given_iBKrH[i]
            key_BKsH, value_BKsH = blocks.key_jBKsH[j], blocks.value_jBKsH[j]
            score_BKrs = _scores(blocks, i, j, pattern)
            weight_BKrs = jnp.exp(score_BKrs - lse_iBKr[i][..., None])
            slope_BKrs = product("bkrh,bksh->bkrs", given_BKrH, value_BKsH)
            slope_BKrs = weight_BKrs * (slope_BKrs - along_iBKr[i][..., None]) * pattern.scale
            if pattern.softcap is not None:
                bounded_BKrs = jnp.maximum(score_BKrs / pattern.softcap, -1)  # masked: -inf
                slope_BKrs = slope_BKrs * (1 - bounded_BKrs**2)
            weight_BKrs, slope_BKrs = weight_BKrs.astype(dtype), slope_BKrs.astype(dtype)
            added = (
                product("bkrs,bksh->bkrh", slope_BKrs, key_BKsH),
                product("bkrs,bkrh->bksh", slope_BKrs, query_BKrH),
                product("bkrs,bkrh->bksh", weight_BKrs, given_BKrH),
            )
            return tuple(x + y for x, y in zip(mine, added, strict=True))

        mine = _where_seen(from_beginning, blocks, i, j, pattern, seen, mine)
        places = zip(so_far, (i, j, j), mine, strict=True)
        return tuple(x.at[place].set(new) for x, place, new in places), None

    zeros = lambda x: jnp.zeros(x.shape, jnp.float32)
    start = tuple(map(zeros, (blocks.query_iBKrH, blocks.key_jBKsH, blocks.value_jBKsH)))
    (to_query, to_key, to_value), _ = jax.lax.scan(
        one, start, _pairs(blocks, pattern, from_beginning)
    )
    to_sink = None
    if sink_N is not None:
        weight_iBKr = jnp.exp(_of_rows(sink_N, kv_heads, rows) - lse_iBKr)
        lost_BTN1 = _from_rows((-weight_iBKr * along_iBKr)[..., None], (*query_BTNH.shape[:3], 1))
        to_sink = jnp.sum(lost_BTN1, (0, 1, 3)).astype(sink_N.dtype)
    return (
        _from_rows(to_query, query_BTNH.shape).astype(dtype),
        _from_rows(to_key, key_BSKH.shape).astype(key_BSKH.dtype),
        _from_rows(to_value, value_BSKH.shape).astype(value_BSKH.dtype),
        to_sink,
        None,
    )


_attend.defvjp(_forward, _backward)


class _Blocks(NamedTuple):
    """Queries, keys and values by blocks; places and segments of the positions of each block.

    Positions that fill up a last block have the segment -1.
    """

    query_iBKrH: Array
    key_jBKsH: Array
    value_jBKsH: Array
    query_is: Array
    key_js: Array
    query_segment_iBs: Array
    key_segment_jBs: Array


def _blocks(query_BTNH, key_BSKH, value_BSKH, places):
    # What follows from places alone is the same in all blocks of a model. JAX would move it out of
    # their scan, which makes an array of the masks of all pairs, [T, S] and more.
    query_BTNH, places = optimization_barrier((query_BTNH, places))
    kv_heads = key_BSKH.shape[2]
    q, s = block_size(query_BTNH.shape[1]), block_size(key_BSKH.shape[1])

    def segments(x_BT, size):
        filled_BT = jnp.pad(x_BT, ((0, 0), (0, -x_BT.shape[1] % size)), constant_values=-1)
        return jnp.swapaxes(filled_BT.reshape(x_BT.shape[0], -1, size), 0, 1)

    query_segment, key_segment = segments(places.query_BT, q), segments(places.key_BS, s)
    return _Blocks(
        _to_rows(query_BTNH, kv_heads, q),
        _to_rows(key_BSKH, kv_heads, s),
        _to_rows(value_BSKH, kv_heads, s),
        places.first + jnp.arange(query_segment.shape[0] * q).reshape(-1, q),
        jnp.arange(key_segment.shape[0] * s).reshape(-1, s),
        query_segment,
        key_segment,
    )


def block_size(length: int) -> int:
    """Positions of each block of a row: all blocks alike, and the last one nearly full."""
    count = -(-length // BLOCK)
    return length if count == 1 else -(-length // (8 * count)) * 8


def _pairs(blocks, pattern, from_beginning):
    """(i, j), each [pairs], of which any query may see any key; of all blocks where the first
    place is not known before the program runs."""
    count_i, q = blocks.query_is.shape
    count_j, s = blocks.key_js.shape
    i, j = (x.reshape(-1) for x in np.mgrid[:count_i, :count_j])
    if from_beginning:
        near = _overlap(i * q, q, j * s, s, pattern)
        i, j = i[near], j[near]
    return jnp.asarray(i), jnp.asarray(j)


def _overlap(query, queries, key, keys, pattern):
    """Whether any of `queries` from the place `query` on sees any of `keys` from `key` on."""
    near = key <= query + queries - 1
    return near if pattern.window is None else near & (query - (key + keys - 1) < pattern.window)


def _where_seen(from_beginning, blocks, i, j, pattern, update, mine):
    """The update of a pair, left out where it turns out that no query sees a key: in rows of many
    short texts, most pairs."""
    of_query, of_key = blocks.query_segment_iBs[i], blocks.key_segment_jBs[j]
    lowest = jnp.maximum(jnp.min(of_query, -1), jnp.min(of_key, -1))
    highest = jnp.minimum(jnp.max(of_query, -1), jnp.max(of_key, -1))
    seen = jnp.any(lowest <= highest)
    if not from_beginning:
        q, s = blocks.query_is.shape[1], blocks.key_js.shape[1]
        seen &= _overlap(blocks.query_is[i, 0], q, blocks.key_js[j, 0], s, pattern)
    return jax.lax.cond(seen, update, lambda mine: mine, mine)


def _scores(blocks, i, j, pattern):
    """Scaled and capped scores [B, K, r, s], -inf where a query does not see a key."""
    score_BKrs = pattern.scale * jnp.einsum(
        "bkrh,bksh->bkrs", blocks.query_iBKrH[i], blocks.key_jBKsH[j],
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    if pattern.softcap is not None:
        score_BKrs = pattern.softcap * jnp.tanh(score_BKrs / pattern.softcap)
    back_qs = blocks.query_is[i][:, None] - blocks.key_js[j]
    near_qs = back_qs >= 0
    if pattern.window is not None:
        near_qs &= back_qs < pattern.window
    same_Bqs = blocks.query_segment_iBs[i][:, :, None] == blocks.key_segment_jBs[j][:, None]
    group = score_BKrs.shape[2] // near_qs.shape[0]
    seen_B1rs = jnp.tile(near_qs & same_Bqs, (1, group, 1))[:, None]
    return jnp.where(seen_B1rs, score_BKrs, -jnp.inf)


def _to_rows(x_BTNH, kv_heads, size):
    """[i, B, K, r, H]; a row's last block is filled with zeros."""
    batch, length, heads, width = x_BTNH.shape
    filled = jnp.pad(x_BTNH, ((0, 0), (0, -length % size), (0, 0), (0, 0)))
    split = filled.reshape(batch, -1, size, kv_heads, heads // kv_heads, width)
    return split.transpose(1, 0, 3, 4, 2, 5).reshape(
        -1, batch, kv_heads, heads // kv_heads * size, width
    )


def _from_rows(x_iBKrH, shape):
    """The inverse of _to_rows, for arrays of the shape [B, T, N, H]."""
    batch, length, heads, width = shape
    count, _, kv_heads, rows, _ = x_iBKrH.shape
    group = heads // kv_heads
    split = x_iBKrH.reshape(count, batch, kv_heads, group, rows // group, width)
    return split.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, heads, width)[:, :length]


def _of_rows(sink_N, kv_heads, rows):
    """A number of each head for all of its rows, float32 [K, r]."""
    sink_KG = sink_N.astype(jnp.float32).reshape(kv_heads, -1)
    return jnp.repeat(sink_KG, rows // sink_KG.shape[1], axis=1)
