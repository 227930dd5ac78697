"""Attention on TPUs: the splash kernel that ships with JAX, under shard_map as kernels must be.

What the kernel has: causal and local masks known when the program is traced (a block of keys that
no query of a block may see is not computed), segments, a soft cap, keys and values shared by groups
of heads, sinks, and a backward pass from the outputs and their logsumexp. No [T, S] array exists.
What is done here: rows are padded to whole blocks, scores are scaled through the queries, and rows,
heads and queries are split over the mesh.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from distill_jax.models.attention_mesh import split_of
from distill_jax.models.attention_pattern import Pattern
from distill_jax.models.blockwise_attention import KEPT
from distill_jax.models.kernel_work import telling
from distill_jax.types import Array

LANES = 128  # the least block: a row of the chip's registers
# Positions per block. Measured by others: a third faster at 1,024 on v6e (apple/axlearn #958), 512
# on the chips before it.
LONGEST_BLOCK = {"TPU v6 lite": 1024}
LONGEST_BLOCK_ELSEWHERE = 512
KEYS_AT_ONCE = 512  # of a block of keys: their scores are in registers together


def attend(
    query_BTNH: Array,
    key_BTKH: Array,
    value_BTKH: Array,
    segment_BT: Array,
    sink_N: Array | None,
    *,
    pattern: Pattern,
    mesh: Mesh | None,
    interpret: bool = False,
) -> Array:
    """Causal attention within each segment of a row: [B, T, N, H] in the dtype of the query.

    segment 0 is padding; it sees earlier padding and itself. The scale multiplies the queries in
    float32, before they are rounded to their dtype again. interpret: the kernel's arithmetic by
    XLA, on any platform, for tests.
    """
    length = query_BTNH.shape[1]
    split = split_of(mesh, query_BTNH.shape, key_BTKH.shape[2])
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    block, padded = whole_blocks(length, split.query_ways, device.device_kind)
    scaled = (query_BTNH.astype(jnp.float32) * pattern.scale).astype(query_BTNH.dtype)
    kernel = _kernel(padded, block, pattern, split.query_ways, interpret)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, padded - length)) + ((0, 0),) * (x.ndim - 2))
    arrays = [pad(x) for x in (scaled, key_BTKH, value_BTKH, segment_BT, segment_BT)]
    blocks = kernel.fwd_mask_info.block_mask  # None: all are computed
    with telling(*((1, 1) if blocks is None else (np.count_nonzero(blocks), blocks.size))):
        out_BTNH = _over_mesh(kernel, arrays, sink_N, split, mesh)
    return out_BTNH[:, :length]


def _over_mesh(kernel, arrays, sink_N, split, mesh):
    if mesh is None or mesh.size == 1:
        return _on_device(kernel, *arrays, sink_N)
    over_queries = NamedSharding(mesh, P(None, split.sequence))
    specs = (split.query, split.key, split.key, split.query_rows, split.key_rows, split.sink)
    return jax.shard_map(
        _on_device,
        mesh=mesh,
        in_specs=(kernel.manual_sharding_spec(over_queries), *specs),
        out_specs=split.query,
        check_vma=False,
    )(kernel, *arrays, sink_N)


def _on_device(kernel, query_BTNH, key_BSKH, value_BSKH, segment_BT, segment_BS, sink_N):
    """The kernel, which knows one row, over the rows of a device."""

    def row(query, key, value, query_segment, key_segment):
        heads_first = [jnp.swapaxes(x, 0, 1) for x in (query, key, value)]
        out_NTH = kernel(*heads_first, splash.SegmentIds(query_segment, key_segment), sink_N)
        return jnp.swapaxes(out_NTH, 0, 1)

    return jax.vmap(row)(query_BTNH, key_BSKH, value_BSKH, segment_BT, segment_BS)


def whole_blocks(length: int, ways: int, device_kind: str) -> tuple[int, int]:
    """(positions per block, positions of a padded row): the longest block that pads by an eighth at
    most, beyond what the shortest pads."""
    round_up = lambda multiple: -(-length // multiple) * multiple
    least = round_up(LANES * ways)
    block = LONGEST_BLOCK.get(device_kind, LONGEST_BLOCK_ELSEWHERE)
    while block > LANES and round_up(block * ways) > least * 9 / 8:
        block //= 2
    return block, round_up(block * ways)


@lru_cache(maxsize=16)  # seconds at 32,768 positions, and every trace of a block asks again
def _kernel(length, block, pattern, query_ways, interpret):
    """The kernel of a row; the mask is that of every head. Its arrays are constants of programs."""
    shape = (length, length)
    if pattern.window is None:
        mask = splash.CausalMask(shape)
    else:
        mask = splash.LocalMask(shape, window_size=(pattern.window - 1, 0), offset=0)
    at_once = min(block, KEYS_AT_ONCE)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=at_once,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=at_once,
        block_q_dq=block,
        block_kv_dq=block,
    )
    with jax.ensure_compile_time_eval():
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([mask]),
            block_sizes=sizes,
            attn_logits_soft_cap=pattern.softcap,
            head_shards=1,
            q_seq_shards=query_ways,
            residual_checkpoint_name=KEPT,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)
