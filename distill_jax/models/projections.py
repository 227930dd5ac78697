"""Matrices and biases of the blocks: fresh ones, the product, the way back to the residual stream.

Matrices are stored [in, out], possibly in few bits (quantised.py); they are cast to the compute
dtype where they are used.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.norms import normalize
from distill_jax.quantised import Quantised, product
from distill_jax.types import Array


def matrix(key: Array, rows: int, columns: int, config: ModelConfig, dtype) -> nnx.Param:
    """A random matrix [rows, columns] of the config's standard deviation."""
    values = config.init_std * jax.random.normal(key, (rows, columns), jnp.float32)
    return nnx.Param(values.astype(dtype))


def vector(wanted: bool, width: int, dtype) -> nnx.Param | None:
    """A bias of zeros; None where the model has none."""
    return nnx.Param(jnp.zeros(width, dtype)) if wanted else None


def held(weight: nnx.Param) -> Array | Quantised:
    """The matrix of a parameter, as it is stored."""
    return weight.get_value()


def project(x: Array, weight: nnx.Param, bias: nnx.Param | None = None) -> Array:
    """x @ weight + bias, in the dtype of x."""
    y = product(x, held(weight))
    return y if bias is None else y + bias[...].astype(x.dtype)


def back_to_stream(half: nnx.Module, y_BTD: Array) -> Array:
    """What a half adds to the residual stream, given the output of its last projection."""
    if half.config.post_norms:
        y_BTD = normalize(y_BTD, half.post_norm[...], half.config)
    return y_BTD * half.config.residual_scale
