"""How attention is split over a mesh: rows, heads and, where there is such an axis, queries."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from distill_jax.models.experts import ROWS
from distill_jax.types import Array

HEADS, SEQUENCE = "tensor", "sequence"


class Split(NamedTuple):
    """Specs for shard_map. A device has some rows, some heads and a part of the queries, and all
    keys of its rows and heads, which are gathered where they were split.

    query [B,T,N,H]; key [B,S,K,H]; query_rows [B,T]; key_rows [B,S]; sink [N]
    sequence    the axis that splits queries, or None
    query_ways  parts of a row's queries
    """

    query: P
    key: P
    query_rows: P
    key_rows: P
    sink: P
    sequence: str | None
    query_ways: int


def split_of(mesh: Mesh | None, query_shape: tuple[int, ...], kv_heads: int) -> Split:
    """What a mesh splits of queries [B, T, N, H]; a size that its axes do not divide is whole."""
    batch, length, heads, _ = query_shape
    ways = {} if mesh is None else dict(mesh.shape)
    row_ways = int(np.prod([ways.get(axis, 1) for axis in ROWS]))
    rows = ROWS if row_ways > 1 and batch % row_ways == 0 else None
    head_ways = ways.get(HEADS, 1)
    split_heads = head_ways > 1 and heads % head_ways == 0 and kv_heads % head_ways == 0
    on_heads = HEADS if split_heads else None
    query_ways = ways.get(SEQUENCE, 1)
    if length % query_ways:
        query_ways = 1
    on_queries = SEQUENCE if query_ways > 1 else None
    return Split(
        query=P(rows, on_queries, on_heads),
        key=P(rows, None, on_heads),
        query_rows=P(rows, on_queries),
        key_rows=P(rows),
        sink=P(on_heads),
        sequence=on_queries,
        query_ways=query_ways,
    )


def over_mesh(attend: Callable, query, key, value, segment, sink, *, mesh: Mesh | None) -> Array:
    """attend(query_BTNH, key_BSKH, value_BSKH, segment_BS, sink_N, first_query) on each device.

    `first_query` is the place in the row of a device's first query: 0 where a device has all.
    """
    if mesh is None or mesh.size == 1:
        return attend(query, key, value, segment, sink, 0)
    split = split_of(mesh, query.shape, key.shape[2])

    def on_device(query, key, value, segment, sink):
        first = 0 if split.sequence is None else jax.lax.axis_index(SEQUENCE) * query.shape[1]
        return attend(query, key, value, segment, sink, first)

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(split.query, split.key, split.key, split.key_rows, split.sink),
        out_specs=split.query,
        check_vma=False,
    )(query, key, value, segment, sink)
