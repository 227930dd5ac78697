"""Attention on NVIDIA GPUs: tokamax's flash kernel where it serves, blockwise attention elsewhere.

What was weighed, each for packed rows in linear memory, windows, a soft cap, sinks and groups:

- jax.nn.dot_product_attention(implementation="cudnn"): no segments, no soft cap, no sinks; a mask
  is an array of [T, S]. cuDNN's packed layout is private to JAX, of Hopper and later, and wants the
  greatest number of texts per row.
- jax.experimental.pallas.ops.gpu.attention: segments, also on GPUs before Hopper, but no windows,
  soft cap or sinks, keys repeated for groups, and no block of other texts left out; nobody keeps it
  (maxtext #4384), and JAX 0.11 deprecates the Triton form of Pallas it is in.
- tokamax 0.0.12, of Google, kept: for each query the first key that it sees, so segments and
  windows; soft cap; groups; forward and backward, in half precision. Its form for Hopper is used.
  That for Blackwell adds up the gradient of the queries in no fixed order, so that a step run again
  gives other numbers, and has no room for heads wider than 64; that in Triton makes a mask of
  [T, S] in the backward pass.

Sinks are added here: with a sink s, outputs shrink by exp(lse) / (exp(lse) + exp(s)), and the
kernel's backward pass takes the larger sum in place of its own. tokamax's public function has no
argument for the first key, so its operator is called, of this one version. All else, and any other
GPU, gets the blockwise form, whose memory is linear too; `lacks` says why.
"""

import importlib.metadata
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from distill_jax.models import blockwise_attention
from distill_jax.models.attention_mesh import over_mesh
from distill_jax.models.attention_pattern import Pattern
from distill_jax.models.blockwise_attention import KEPT
from distill_jax.models.kernel_work import BACKWARD, FORWARD, telling
from distill_jax.types import Array

TOKAMAX = "0.0.12"
BLOCK = 128  # rows are padded to it: the kernel's longest


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
    """Causal attention within each segment of a row: [B, T, N, H] in the dtype of the query.

    segment 0 is padding. The kernel takes a segment for one run of positions, as rows are packed:
    a second run of padding does not see the first.
    """
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    if lacks(query_BTNH.dtype, getattr(device, "compute_capability", "")):
        form = blockwise_attention.attend
        args = query_BTNH, key_BTKH, value_BTKH, segment_BT, sink_N
        return form(*args, pattern=pattern, mesh=mesh)
    on_device = partial(_on_device, pattern=pattern)
    return over_mesh(on_device, query_BTNH, key_BTKH, value_BTKH, segment_BT, sink_N, mesh=mesh)


def lacks(dtype, compute_capability: str) -> str:
    """Why the kernel does not serve, in words; "": it does."""
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"the kernel computes in half precision, and this is {jnp.dtype(dtype)}"
    if compute_capability.split(".")[0] != "9":
        shown = compute_capability or "unknown"
        return f"the kernel is for compute capability 9 (Hopper), and this is {shown}"
    try:
        found = importlib.metadata.version("tokamax")
    except importlib.metadata.PackageNotFoundError:
        found = "not installed"
    return "" if found == TOKAMAX else f"tokamax is {found}: pip install tokamax=={TOKAMAX}"


def _on_device(query_BTNH, key_BSKH, value_BSKH, segment_BS, sink_N, first_query, *, pattern):
    """The queries from `first_query` on, against all keys of the row."""
    length, keys = query_BTNH.shape[1], key_BSKH.shape[1]
    first_BS = first_keys(segment_BS, pattern.window)
    first_BT = jax.lax.dynamic_slice_in_dim(first_BS, first_query, length, axis=1)
    last_T = first_query + jnp.arange(length)
    pad = lambda x, n: jnp.pad(x, ((0, 0), (0, -n % BLOCK)) + ((0, 0),) * (x.ndim - 2))
    query_BTNH, first_BT = (pad(x, length) for x in (query_BTNH, first_BT))
    end_T = jnp.pad(last_T + 1, (0, -length % BLOCK), constant_values=1)
    key_BSKH, value_BSKH = (pad(x, keys) for x in (key_BSKH, value_BSKH))
    # Whole rows of one text: where texts begin is not known when the program is traced.
    seen = sum(min(place + 1, pattern.window or keys) for place in range(keys))
    with telling(seen, keys * keys):
        out = _flash(query_BTNH, key_BSKH, value_BSKH, sink_N, first_BT, end_T, pattern)
    return out[:, :length]


def first_keys(segment_BS: Array, window: int | None) -> Array:
    """int32 [B, S]: for each position, the first that it sees."""
    place_S = jnp.arange(segment_BS.shape[1])
    starts_BS = jnp.diff(segment_BS, axis=1, prepend=-1) != 0
    first_BS = jax.lax.cummax(jnp.where(starts_BS, place_S, 0), axis=1)
    return first_BS if window is None else jnp.maximum(first_BS, place_S - (window - 1))


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _flash(query_BTNH, key_BSKH, value_BSKH, sink_N, first_BT, end_T, pattern):
    return _forward(query_BTNH, key_BSKH, value_BSKH, sink_N, first_BT, end_T, pattern)[0]


def _forward(query_BTNH, key_BSKH, value_BSKH, sink_N, first_BT, end_T, pattern):
    arrays = query_BTNH, key_BSKH, value_BSKH
    kernel, options = _operator(pattern, first_BT, end_T)
    kernel = kernel.replace(config=kernel.bind(*arrays, **options).heuristics_config)
    run = lambda *arrays: kernel(*arrays, return_residuals=True, **options)
    out_BTNH, (largest_BNT, sum_BNT) = _named(FORWARD, run)(*arrays)
    lse_BNT = largest_BNT + jnp.log(sum_BNT)
    if sink_N is not None:
        with_sink_BNT = jnp.logaddexp(lse_BNT, sink_N.astype(jnp.float32)[:, None])
        kept_BTN = jnp.swapaxes(jnp.exp(lse_BNT - with_sink_BNT), 1, 2)
        out_BTNH = (out_BTNH * kept_BTN[..., None]).astype(out_BTNH.dtype)
        lse_BNT = with_sink_BNT
    out_BTNH, lse_BNT = checkpoint_name((out_BTNH, lse_BNT), KEPT)
    return out_BTNH, (arrays, sink_N, first_BT, end_T, out_BTNH, lse_BNT)


def _backward(pattern, kept, gradient_BTNH):
    arrays, sink_N, first_BT, end_T, out_BTNH, lse_BNT = kept
    kernel, options = _operator(pattern, first_BT, end_T)
    bound = kernel.bind(*arrays, **options)
    options = {name: x for name, x in bound.kwargs.items() if name != "return_residuals"}
    # The kernel divides exp(score - first) by the second.
    sums = lse_BNT, jnp.ones_like(lse_BNT)
    args = sums, out_BTNH, gradient_BTNH, *bound.args
    backward = kernel.vjp
    backward = backward.replace(config=backward.bind(*args, **options).heuristics_config)
    run = lambda arrays, out, gradient: backward(sums, out, gradient, *arrays, **options)
    found = _named(BACKWARD, run)(bound.args, out_BTNH, gradient_BTNH)
    sink_gradient_N = None
    if sink_N is not None:
        product_BTNH = out_BTNH.astype(jnp.float32) * gradient_BTNH.astype(jnp.float32)
        weight_BNT = jnp.exp(sink_N.astype(jnp.float32)[:, None] - lse_BNT)
        gradient_N = -jnp.einsum("bnt,btnh->n", weight_BNT, product_BTNH)
        sink_gradient_N = gradient_N.astype(sink_N.dtype)
    return found["q"], found["k"], found["v"], sink_gradient_N, None, None


_flash.defvjp(_forward, _backward)


def _named(name, run):
    """Under this name in a traced program: how study/flops.py knows the kernels."""
    run.__name__ = name
    return jax.jit(run)


def _operator(pattern, first_BT, end_T):
    """tokamax's operator, and its options in this call.

    Its settings come from its rule for the chip, not from its store of timings, which is empty for
    packed rows and says so in the log at each call.
    """
    # Imported where it is used: other platforms have no need of it.
    from absl import flags
    from tokamax._src.ops.attention import base, pallas_mosaic_gpu

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # or tokamax reads its options from this program's command
    return pallas_mosaic_gpu.PallasMosaicGpuFlashAttention(), {
        "mask": base.Mask(k_start=first_BT[:, None], k_end=end_T),
        "logits_scale": pattern.scale,
        "logits_soft_cap": pattern.softcap,
    }
