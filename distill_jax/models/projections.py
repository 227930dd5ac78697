"""Matrices and biases of the blocks: fresh ones, the product, the way back to the residual stream.

Matrices are stored [in, out], possibly in few bits (quantised.py); they are cast to the compute
dtype where they are used.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import SymbolicZero

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.norms import normalize
from distill_jax.quantised import Quantised, is_quantised, product
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
    stored = held(weight)
    few_bits = is_quantised(stored)
    y = product(x, stored) if few_bits else _wide_product(x, stored.astype(x.dtype))
    return y if bias is None else y + bias[...].astype(x.dtype)


@jax.custom_vjp
def _wide_product(x: Array, weight: Array) -> Array:
    """x @ weight, whose gradient of the weight is computed as [in, out].

    JAX's own rule computes it as [out, in] and turns it, and XLA on a CPU then writes the cotangent
    column by column: forward and backward of four blocks of two products, 256 by 1,024, took 2.2
    times the CPU seconds.
    """
    return x @ weight


def _forward(x, weight):
    # What needs no gradient has none computed, and keeps nothing for it: frozen matrices.
    kept = x.value if weight.perturbed else None, weight.value if x.perturbed else None
    return x.value @ weight.value, kept


def _backward(kept, cotangent):
    x, weight = kept
    if isinstance(cotangent, SymbolicZero):
        return None, None
    tokens = tuple(range(cotangent.ndim - 1))
    of_weight = lambda: jax.lax.dot_general(x, cotangent, ((tokens, tokens), ((), ())))
    return (
        None if weight is None else cotangent @ weight.T,
        None if x is None else of_weight(),
    )


_wide_product.defvjp(_forward, _backward, symbolic_zeros=True)


def back_to_stream(half: nnx.Module, y_BTD: Array) -> Array:
    """What a half adds to the residual stream, given the output of its last projection."""
    if half.config.post_norms:
        y_BTD = normalize(y_BTD, half.post_norm[...], half.config)
    return y_BTD * half.config.residual_scale
