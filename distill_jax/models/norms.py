"""Norms over the last axis: in float32, with the result in the dtype of the input."""

import jax
import jax.numpy as jnp
from flax import nnx

from distill_jax.models.architecture import ModelConfig
from distill_jax.types import Array


def normalize(x: Array, weight: Array, config: ModelConfig, bias: Array | None = None) -> Array:
    """The config's norm of x over the last axis, times the weight, plus the bias; dtype of x."""
    wide = NORMS[config.norm](x.astype(jnp.float32), config.norm_eps)
    weight = weight.astype(jnp.float32)
    wide = wide * (1.0 + weight if config.unit_offset_norm else weight)
    return (wide if bias is None else wide + bias.astype(jnp.float32)).astype(x.dtype)


def normed(half: nnx.Module, x_BTD: Array) -> Array:
    """The residual stream as a half of a block takes it in."""
    if half.norm is None:
        return x_BTD
    bias = half.norm_bias
    return normalize(x_BTD, half.norm[...], half.config, None if bias is None else bias[...])


def norm_weight(width: int, config: ModelConfig, dtype) -> nnx.Param:
    """A weight that leaves the normed values as they are."""
    return nnx.Param((jnp.zeros if config.unit_offset_norm else jnp.ones)(width, dtype))


def stream_norm(wanted: bool, config: ModelConfig, dtype) -> nnx.Param | None:
    """The weight of a norm of the residual stream; None where the model has none."""
    return norm_weight(config.width, config, dtype) if wanted else None


def _rms(wide, eps):
    return wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)


def _layer(wide, eps):
    """Of mean 0 before (LayerNorm, 1607.06450)."""
    return _rms(wide - jnp.mean(wide, axis=-1, keepdims=True), eps)


NORMS = {"rms": _rms, "layer": _layer}
