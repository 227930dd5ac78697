"""The decoder: its block (attention half, feed-forward half), embedding and head.

Matrices are stored [in, out]; a block's parameters are those of ONE layer here, binding.py stacks
them. Parameters are cast to the compute dtype where they are used; norm statistics, rotary angles
and the softmax are float32.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from distill_jax.models.architecture import ACTIVATIONS, ModelConfig
from distill_jax.models.attention import attention
from distill_jax.models.context import Context, view_of
from distill_jax.models.rope import rotate
from distill_jax.types import Array, Unembed


def rms_norm(x: Array, weight: Array, config: ModelConfig) -> Array:
    """x / rms(x) times the weight over the last axis, in float32; dtype of x."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.norm_eps)
    weight = weight.astype(jnp.float32)
    return (wide * (1.0 + weight if config.unit_offset_norm else weight)).astype(x.dtype)


def _project(x, weight, bias=None):
    y = x @ weight[...].astype(x.dtype)
    return y if bias is None else y + bias[...].astype(x.dtype)


def _matrix(key, rows, columns, config, dtype):
    values = config.init_std * jax.random.normal(key, (rows, columns), jnp.float32)
    return nnx.Param(values.astype(dtype))


def _norm_weight(width, config, dtype):
    return nnx.Param((jnp.zeros if config.unit_offset_norm else jnp.ones)(width, dtype))


def _added(half, x, weight, bias=None):
    """What a half of a block adds to the residual stream, [B, T, D]."""
    added_BTD = _project(x, weight, bias)
    if half.config.post_norms:
        added_BTD = rms_norm(added_BTD, half.post_norm[...], half.config)
    return added_BTD


class Attention(nnx.Module):
    """The attention half's parameters and arithmetic, without the residual sum."""

    def __init__(self, config: ModelConfig, dtype, key):
        self.config = config
        query_width = config.heads * config.head_width
        kv_width = config.kv_heads * config.head_width
        keys = jax.random.split(key, 4)
        bias = lambda wanted, width: nnx.Param(jnp.zeros(width, dtype)) if wanted else None
        norm = lambda wanted, width: _norm_weight(width, config, dtype) if wanted else None
        self.norm = _norm_weight(config.width, config, dtype)
        self.query = _matrix(keys[0], config.width, query_width, config, dtype)
        self.key = _matrix(keys[1], config.width, kv_width, config, dtype)
        self.value = _matrix(keys[2], config.width, kv_width, config, dtype)
        self.output = _matrix(keys[3], query_width, config.width, config, dtype)
        self.query_bias = bias(config.qkv_bias, query_width)
        self.key_bias = bias(config.qkv_bias, kv_width)
        self.value_bias = bias(config.qkv_bias, kv_width)
        self.output_bias = bias(config.output_bias, config.width)
        self.query_norm = norm(config.query_key_norm, config.head_width)
        self.key_norm = norm(config.query_key_norm, config.head_width)
        self.post_norm = norm(config.post_norms, config.width)

    def queries_keys_values(self, x_BTD, view):
        """Queries [B,T,N,H], keys and values [B,T,K,H]; the first two normed and rotated."""
        config, batch_time = self.config, x_BTD.shape[:2]
        h_BTD = rms_norm(x_BTD, self.norm[...], config)
        heads = lambda y, count: y.reshape(*batch_time, count, config.head_width)
        query = heads(_project(h_BTD, self.query, self.query_bias), config.heads)
        key = heads(_project(h_BTD, self.key, self.key_bias), config.kv_heads)
        value = heads(_project(h_BTD, self.value, self.value_bias), config.kv_heads)
        if config.query_key_norm:
            query = rms_norm(query, self.query_norm[...], config)
            key = rms_norm(key, self.key_norm[...], config)
        turn = lambda y: rotate(y, view.cos_BTh, view.sin_BTh)
        return turn(query), turn(key), value

    def head_outputs(self, query_BTNH, key_BSKH, value_BSKH, view):
        """The heads' outputs side by side, [B, T, N*H]."""
        scale = self.config.attention_scale
        mixed_BTNH = attention(
            query_BTNH,
            key_BSKH,
            value_BSKH,
            view.mask_BTS,
            scale=self.config.head_width**-0.5 if scale is None else scale,
            softcap=self.config.attention_softcap,
        )
        return mixed_BTNH.reshape(*mixed_BTNH.shape[:2], -1)

    def project_back(self, head_outputs):
        """What the half adds to the residual stream, [B, T, D]."""
        return _added(self, head_outputs, self.output, self.output_bias)


class FeedForward(nnx.Module):
    """The feed-forward half: a gated activation between two projections."""

    def __init__(self, config: ModelConfig, dtype, key):
        self.config = config
        keys = jax.random.split(key, 3)
        self.norm = _norm_weight(config.width, config, dtype)
        self.gate = _matrix(keys[0], config.width, config.neurons, config, dtype)
        self.up = _matrix(keys[1], config.width, config.neurons, config, dtype)
        self.down = _matrix(keys[2], config.neurons, config.width, config, dtype)
        self.post_norm = _norm_weight(config.width, config, dtype) if config.post_norms else None

    def activations(self, x_BTD):
        """Input of the down projection, [B, T, F]."""
        h_BTD = rms_norm(x_BTD, self.norm[...], self.config)
        gate_BTF = ACTIVATIONS[self.config.activation](_project(h_BTD, self.gate))
        return gate_BTF * _project(h_BTD, self.up)

    def __call__(self, x_BTD):
        """The residual stream after this half."""
        return x_BTD + _added(self, self.activations(x_BTD), self.down)


class Block(nnx.Module):
    """One layer. A full pass is `feed_forward(attend(x, context, local))`."""

    def __init__(self, config: ModelConfig, dtype, key):
        attention_key, feed_forward_key = jax.random.split(key)
        self.attention = Attention(config, dtype, attention_key)
        self.feed_forward = FeedForward(config, dtype, feed_forward_key)

    def attend(
        self, x_BTD: Array, context: Context, local, store=lambda key, value: (key, value)
    ) -> Array:
        """The residual stream after the attention half; `local` is this block's local_flags entry.

        store(key_BTKH, value_BTKH) -> (key_BSKH, value_BSKH): for a key/value cache.
        """
        return x_BTD + self.attention.project_back(self.head_outputs(x_BTD, context, local, store))

    def head_outputs(
        self, x_BTD: Array, context: Context, local, store=lambda key, value: (key, value)
    ) -> Array:
        """[B, T, N*H] before the attention half's output projection."""
        view = view_of(context, local)
        query, key, value = self.attention.queries_keys_values(x_BTD, view)
        return self.attention.head_outputs(query, *store(key, value), view)


class EmbeddingAndHead(nnx.Module):
    """Embedding, final norm and head: everything outside the blocks."""

    def __init__(self, config: ModelConfig, dtype, key):
        self.config = config
        keys = jax.random.split(key)
        self.embedding = _matrix(keys[0], config.vocab, config.width, config, dtype)
        self.final_norm = _norm_weight(config.width, config, dtype)
        # Assigned once: NNX refuses a parameter in the place of None.
        self.head = (
            None if config.tied else _matrix(keys[1], config.width, config.vocab, config, dtype)
        )

    def embed(self, tokens_BT, compute_dtype):
        """[B, T, D]. A token id outside the vocabulary gives NaN, not another token's row."""
        x_BTD = jnp.take(self.embedding[...], tokens_BT, axis=0, mode="fill").astype(compute_dtype)
        return x_BTD * jnp.asarray(self.config.embedding_scale, compute_dtype)

    def finish(self, x_BTD):
        """Final hidden states, after the last norm."""
        return rms_norm(x_BTD, self.final_norm[...], self.config)

    def unembed(self, compute_dtype):
        """The head; a tied embedding is transposed here, once."""
        weight_DV = self.embedding[...].T if self.config.tied else self.head[...]
        return Unembed(
            weight_DV.astype(compute_dtype),
            softcap=self.config.final_softcap,
            scale=self.config.logit_scale,
        )
