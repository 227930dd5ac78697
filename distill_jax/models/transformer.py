"""The decoder: its block (attention half, feed-forward half), embedding and head.

Matrices are stored [in, out]; a block's parameters are those of ONE layer here, binding.py stacks
them. Parameters are cast to the compute dtype where they are used; norm statistics, rotary angles
and the softmax are float32.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.attention import attention, cached_attention
from distill_jax.models.context import Context, patterns, tables_of
from distill_jax.models.experts import Experts
from distill_jax.models.feed_forward import FeedForward
from distill_jax.models.norms import norm_weight, normalize, normed, stream_norm
from distill_jax.models.projections import back_to_stream, held, matrix, project, vector
from distill_jax.models.rope import rotate
from distill_jax.quantised import is_quantised, rows_of, transposed
from distill_jax.types import Array, Routing, Unembed


class Attention(nnx.Module):
    """The attention half's parameters and arithmetic, without the residual sum."""

    def __init__(self, config: ModelConfig, dtype, key, mesh: Mesh | None):
        self.config, self.mesh = config, mesh
        query_width = config.heads * config.head_width
        kv_width = config.kv_heads * config.head_width
        keys = jax.random.split(key, 4)
        self.norm = stream_norm(config.pre_norms, config, dtype)
        self.norm_bias = vector(config.norm_bias, config.width, dtype)
        self.query = matrix(keys[0], config.width, query_width, config, dtype)
        self.key = matrix(keys[1], config.width, kv_width, config, dtype)
        self.value = matrix(keys[2], config.width, kv_width, config, dtype)
        self.output = matrix(keys[3], query_width, config.width, config, dtype)
        self.query_bias = vector(config.qkv_bias, query_width, dtype)
        self.key_bias = vector(config.qkv_bias, kv_width, dtype)
        self.value_bias = vector(config.qkv_bias, kv_width, dtype)
        self.sink_bias = vector(config.attention_sinks, config.heads, dtype)
        self.output_bias = vector(config.output_bias, config.width, dtype)
        self.query_norm = self._heads_norm(config.heads, dtype)
        self.key_norm = self._heads_norm(config.kv_heads, dtype)
        self.post_norm = stream_norm(config.post_norms, config, dtype)

    def _heads_norm(self, heads, dtype):
        """The weight of a norm over each head's width, or over all heads side by side."""
        config = self.config
        width = {"head": 1, "whole": heads}.get(config.query_key_norm, 0) * config.head_width
        return norm_weight(width, config, dtype) if width else None

    def queries_keys_values(self, x_BTD, tables):
        """Queries [B,T,N,H], keys and values [B,T,K,H]; the first two normed and rotated."""
        config, batch_time = self.config, x_BTD.shape[:2]
        h_BTD = normed(self, x_BTD)
        heads = lambda y, count: y.reshape(*batch_time, count, config.head_width)

        def turned(y, norm, count):
            if config.query_key_norm == "whole":
                y = normalize(y, norm[...], config)
            y = heads(y, count)
            if config.query_key_norm == "head":
                y = normalize(y, norm[...], config)
            return rotate(y, *tables)

        query = turned(project(h_BTD, self.query, self.query_bias), self.query_norm, config.heads)
        key = turned(project(h_BTD, self.key, self.key_bias), self.key_norm, config.kv_heads)
        value = heads(project(h_BTD, self.value, self.value_bias), config.kv_heads)
        return query, key, value

    def head_outputs(self, query_BTNH, key_BSKH, value_BSKH, context, kind):
        """The heads' outputs side by side, [B, T, N*H]."""
        of_model, of_kinds = patterns(self.config)
        which = {"patterns": of_model, "index": jnp.asarray(of_kinds)[kind]}
        arrays = query_BTNH, key_BSKH, value_BSKH
        sink_N = None if self.sink_bias is None else self.sink_bias[...]
        if context.segment_BT is None:
            mixed_BTNH = cached_attention(*arrays, context.position_BT, sink_N, **which)
        else:
            which |= {"mesh": self.mesh}
            mixed_BTNH = attention(*arrays, context.segment_BT, sink_N, **which)
        return mixed_BTNH.reshape(*mixed_BTNH.shape[:2], -1)

    def project_back(self, head_outputs):
        """What the half adds to the residual stream, [B, T, D]."""
        return back_to_stream(self, project(head_outputs, self.output, self.output_bias))


def second_input(config: ModelConfig, x_BTD: Array, middle_BTD: Array) -> Array:
    """What the feed-forward half takes in: the stream before, or after, the attention half."""
    return x_BTD if config.parallel_residual else middle_BTD


class Block(nnx.Module):
    """One layer; its halves add to the residual stream one after the other, or in parallel."""

    def __init__(self, config: ModelConfig, dtype, key, mesh: Mesh | None = None):
        attention_key, feed_forward_key = jax.random.split(key)
        self.config = config
        self.attention = Attention(config, dtype, attention_key, mesh)
        self.feed_forward = (
            Experts(config, dtype, feed_forward_key, mesh)
            if config.experts
            else FeedForward(config, dtype, feed_forward_key)
        )

    def __call__(
        self, x_BTD: Array, context: Context, kind, store=lambda key, value: (key, value)
    ) -> Array:
        """The residual stream after the block."""
        middle_BTD = self.attend(x_BTD, context, kind, store)
        return middle_BTD + self.feed_forward(second_input(self.config, x_BTD, middle_BTD))

    def routed(
        self, x_BTD: Array, context: Context, kind, counted_BT: Array
    ) -> tuple[Array, Routing]:
        """The same of a block with experts, and where its router sent the counted tokens."""
        middle_BTD = self.attend(x_BTD, context, kind)
        of = second_input(self.config, x_BTD, middle_BTD), counted_BT
        added_BTD, routing = self.feed_forward.routed(*of)
        return middle_BTD + added_BTD, routing

    def attend(
        self, x_BTD: Array, context: Context, kind, store=lambda key, value: (key, value)
    ) -> Array:
        """The residual stream after the attention half; `kind` is this block's of block_kinds.

        store(key_BTKH, value_BTKH) -> (key_BSKH, value_BSKH): for a key/value cache.
        """
        return x_BTD + self.attention.project_back(self.head_outputs(x_BTD, context, kind, store))

    def head_outputs(
        self, x_BTD: Array, context: Context, kind, store=lambda key, value: (key, value)
    ) -> Array:
        """[B, T, N*H] before the attention half's output projection."""
        tables = tables_of(context, kind)
        query, key, value = self.attention.queries_keys_values(x_BTD, tables)
        return self.attention.head_outputs(query, *store(key, value), context, kind)


class EmbeddingAndHead(nnx.Module):
    """Embedding, final norm and head: everything outside the blocks."""

    def __init__(self, config: ModelConfig, dtype, key):
        self.config = config
        keys = jax.random.split(key)
        self.embedding = matrix(keys[0], config.vocab, config.width, config, dtype)
        # Assigned once: NNX refuses a parameter in the place of None.
        self.position_embedding = (
            matrix(jax.random.fold_in(key, 2), config.max_positions, config.width, config, dtype)
            if config.learned_positions
            else None
        )
        self.final_norm = norm_weight(config.width, config, dtype)
        self.final_norm_bias = vector(config.norm_bias, config.width, dtype)
        self.head = (
            None if config.tied else matrix(keys[1], config.width, config.vocab, config, dtype)
        )

    def embed(self, tokens_BT, position_BT, compute_dtype):
        """[B, T, D]. A token id outside the vocabulary gives NaN, not another token's row."""
        x_BTD = rows_of(held(self.embedding), tokens_BT, compute_dtype)
        x_BTD = x_BTD * jnp.asarray(self.config.embedding_scale, compute_dtype)
        if self.position_embedding is None:
            return x_BTD
        # Padding may have positions beyond the table, and a NaN there would reach the cache; texts
        # longer than the table are refused before anything runs.
        table_PD = self.position_embedding[...].astype(compute_dtype)
        return x_BTD + jnp.take(table_PD, position_BT, axis=0, mode="clip")

    def finish(self, x_BTD):
        """Final hidden states, after the last norm."""
        bias = None if self.final_norm_bias is None else self.final_norm_bias[...]
        return normalize(x_BTD, self.final_norm[...], self.config, bias)

    def unembed(self, compute_dtype):
        """The head; a tied embedding is transposed here, once. A quantised one stays narrow."""
        weight_DV = transposed(held(self.embedding)) if self.config.tied else held(self.head)
        return Unembed(
            weight_DV if is_quantised(weight_DV) else weight_DV.astype(compute_dtype),
            softcap=self.config.final_softcap,
            scale=self.config.logit_scale,
        )
