"""The only file that converts between NNX modules and parameter dicts (split, merge)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.blockwise_attention import KEPT
from distill_jax.models.context import block_kinds, cache_context, packed_context
from distill_jax.models.quantise import quantised_params
from distill_jax.models.transformer import Block, EmbeddingAndHead
from distill_jax.quantised import Bits
from distill_jax.types import Hidden


class Model(NamedTuple):
    """A decoder as functions of its parameters; hashable, so it can be a static argument of jit.

    bits: how the matrices of its parameters are quantised; None: they are not
    init(key) -> params
    abstract() -> params of jax.ShapeDtypeStruct, nothing allocated
    apply(params, tokens_BT, segment_BT, position_BT, *, keep_layers=False) -> types.Hidden
    unembed(params) -> types.Unembed, weight_DV in the compute dtype, or Quantised as it is stored
    embed(params, tokens_BT, position_BT) -> x_BTD
    finish(params, x_BTD) -> final hidden states, after the last norm
    block(block_params) -> Block with the parameters of one layer
    context(segment_BT, position_BT) -> the Context that every block's `attend` takes
    new_cache(batch, slots, dtype) -> {"key", "value"}, each [L, B, S, K, H]
    decode(params, tokens_BT, position_BT, cache, length_B=None) -> (types.Hidden, cache)

    The same as apply, block by block:
        x, context = model.embed(params, tokens, position), model.context(segment, position)
        for i, kind in enumerate(block_kinds(model.config)):
            block = model.block(jax.tree.map(lambda w: w[i], params["blocks"]))
            x = block(x, context, kind)

    decode writes keys and values to slot == position, and a query attends to slots up to its own
    position, so rows may be at different positions. The positions of a row must differ: continue
    them over right padding; its slots are overwritten before any query attends to them.
    A position beyond the last slot is not stored. length_B: tokens of each row's text, for models
    that turn long texts otherwise; None: up to the row's last position.
    """

    config: ModelConfig
    bits: Bits | None
    init: Callable
    abstract: Callable
    apply: Callable
    unembed: Callable
    embed: Callable
    finish: Callable
    block: Callable
    context: Callable
    new_cache: Callable
    decode: Callable


def bind(
    config: ModelConfig,
    *,
    param_dtype,
    compute_dtype,
    remat: str,
    mesh: Mesh | None = None,
    bits: Bits | None = None,
) -> Model:
    """The decoder of a config. remat: what the backward pass keeps, a key of REMAT.

    mesh: that attention and experts are computed on; all else goes by the shardings of the arrays.
    bits: how the matrices are quantised, which are random or abstract here; None: they are in
    param_dtype.
    """
    param_dtype, compute_dtype = jnp.dtype(param_dtype), jnp.dtype(compute_dtype)
    make_block = lambda key: Block(config, param_dtype, key, mesh)
    make_ends = lambda key: EmbeddingAndHead(config, param_dtype, key)
    block = _merger(make_block)
    merge_ends = _merger(make_ends)
    ends = lambda params: merge_ends({k: v for k, v in params.items() if k != "blocks"})

    def init(key):
        ends_key, blocks_key = jax.random.split(key)
        pure = lambda module: nnx.to_pure_dict(nnx.state(module))
        block_keys = jax.random.split(blocks_key, config.blocks)
        stacked = jax.vmap(lambda block_key: pure(make_block(block_key)))(block_keys)
        params = {**pure(make_ends(ends_key)), "blocks": stacked}
        return quantised_params(params, bits) if bits else params

    def embed(params, tokens_BT, position_BT):
        return ends(params).embed(tokens_BT, position_BT, compute_dtype)

    def apply(params, tokens_BT, segment_BT, position_BT, *, keep_layers=False):
        context = packed_context(config, segment_BT, position_BT)

        def layer(x_BTD, inputs):
            block_params, kind = inputs
            one, routing = block(block_params), None
            if config.experts:
                x_BTD, routing = one.routed(x_BTD, context, kind, segment_BT > 0)
            else:
                x_BTD = one(x_BTD, context, kind)
            return x_BTD, (x_BTD if keep_layers else None, routing)

        x_BTD, (layers_LBTD, routing) = jax.lax.scan(
            REMAT[remat](layer),
            embed(params, tokens_BT, position_BT),
            (params["blocks"], block_kinds(config)),
        )
        return Hidden(ends(params).finish(x_BTD), layers_LBTD, routing)

    def new_cache(batch, slots, dtype):
        shape = (config.blocks, batch, slots, config.kv_heads, config.head_width)
        return {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}

    def decode(params, tokens_BT, position_BT, cache, length_B=None):
        context = cache_context(config, position_BT, length_B)
        row_B1 = jnp.arange(tokens_BT.shape[0])[:, None]

        # The cache is carried, not scanned over: only the new slots are written, in place.
        def layer(carry, inputs):
            x_BTD, cache = carry
            index, block_params, kind = inputs
            stored = {}

            def store(key_BTKH, value_BTKH):
                for name, new in (("key", key_BTKH), ("value", value_BTKH)):
                    new = new.astype(cache[name].dtype)
                    stored[name] = cache[name].at[index, row_B1, position_BT].set(new, mode="drop")
                return [stored[name][index].astype(compute_dtype) for name in ("key", "value")]

            x_BTD = block(block_params)(x_BTD, context, kind, store)
            return (x_BTD, stored), None

        inputs = (jnp.arange(config.blocks), params["blocks"], block_kinds(config))
        first = (embed(params, tokens_BT, position_BT), cache)
        (x_BTD, cache), _ = jax.lax.scan(layer, first, inputs)
        return Hidden(ends(params).finish(x_BTD)), cache

    return Model(
        config=config,
        bits=bits,
        init=init,
        abstract=lambda: jax.eval_shape(init, jax.random.key(0)),
        apply=apply,
        unembed=lambda params: ends(params).unembed(compute_dtype),
        embed=embed,
        finish=lambda params, x_BTD: ends(params).finish(x_BTD),
        block=block,
        context=lambda segment_BT, position_BT: packed_context(config, segment_BT, position_BT),
        new_cache=new_cache,
        decode=decode,
    )


def _merger(make):
    """params -> module, for modules built by make(key)."""
    graph, _ = nnx.split(nnx.eval_shape(make, jax.random.key(0)))
    return lambda params: nnx.merge(graph, params)


def _remat(policy):
    return lambda layer: jax.checkpoint(layer, policy=policy, prevent_cse=False)


_PROJECTIONS_AND_ATTENTION = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(KEPT),
)
REMAT = {
    "none": lambda layer: layer,  # keep every intermediate
    "dots": _remat(_PROJECTIONS_AND_ATTENTION),  # keep what matrices give, and attention
    "full": _remat(jax.checkpoint_policies.nothing_saveable),  # keep only the blocks' inputs
}
