"""Matrices in 8 or 4 bits: whole numbers times a scale, per output or per group of inputs.

Only the weights are narrow: they are widened where they are multiplied, and the product runs in the
dtype of its other factor. Where every output has one scale, it multiplies the product, so that no
wide matrix of scaled values is made.

qwix does this to modules whose operations it intercepts, and to weights by the layers that they
belong to. The decoder here is one scanned block over plain dictionaries, whose products run inside
shard_map, a loop over blocks of tokens and a loop over experts; each needs the numbers and their
scale as arrays of its own, which is all that is written here.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.types import Array


class Quantised(NamedTuple):
    """values * scale: a matrix [.., I, O] of I inputs and O outputs.

    values  int8 or int4 [.., I, O]
    scale   bfloat16 [.., G, O], of each output and each of G equal groups of inputs, of any sign
    """

    values: Array
    scale: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the matrix."""
        return self.values.shape

    @property
    def size(self) -> int:
        """Numbers in the matrix; its scales are not counted."""
        return self.values.size


class Bits(NamedTuple):
    """How matrices are quantised. group: inputs that share a scale; 0: all of them."""

    dtype: str
    group: int


LARGEST = {"int8": 127, "int4": 7}  # by dtype


def array_bytes(shape: Sequence[int], dtype) -> int:
    """Of an array on an accelerator: two numbers of int4 share a byte.

    >>> array_bytes((3, 2), "int4")
    3
    """
    return -(-math.prod(shape) * jax.dtypes.itemsize_bits(jnp.dtype(dtype)) // 8)


def is_quantised(x) -> bool:
    """Whether it is one; where trees are walked, an array of its own."""
    return isinstance(x, Quantised)


def quantise(matrix: Array, bits: Bits) -> Quantised:
    """A matrix [.., I, O] in few bits, with the smaller squared error of two choices of the scale.

    Both give every number the nearest value. With the first none is off by more than half a step.
    The second has smaller steps: the extreme takes the least value, which is one further from 0
    than the largest; what is as far on the other side of 0 is off by a step at most. In 4 bits and
    groups of 32 the choice takes 30% off the KL of SmolLM2 135M from its wide weights. Where the
    group does not divide I, it is the greatest divisor that both have.

    >>> quantise(jnp.array([[0.0, 2.0], [0.0, -2 / 128]]), Bits("int8", 0)).values.tolist()
    [[0, -128], [0, 1]]
    """
    *lead, inputs, outputs = matrix.shape
    group, largest = math.gcd(bits.group, inputs), LARGEST[bits.dtype]
    grouped = matrix.astype(jnp.float32).reshape(*lead, inputs // group, group, outputs)
    top, bottom = jnp.max(grouped, -2), -jnp.min(grouped, -2)
    widest = jnp.maximum(top, bottom)

    def rounded(scale):
        scale = scale.astype(jnp.bfloat16)
        step = jnp.where(scale == 0, 1, scale).astype(jnp.float32)[..., None, :]
        values = jnp.clip(jnp.round(grouped / step), -largest - 1, largest)
        return values, scale, jnp.sum((values * step - grouped) ** 2, -2)

    even = rounded(widest / largest)
    shifted = rounded(jnp.where(top > bottom, -widest, widest) / (largest + 1))
    better = shifted[2] < even[2]
    values = jnp.where(better[..., None, :], shifted[0], even[0]).astype(bits.dtype)
    return Quantised(values.reshape(matrix.shape), jnp.where(better, shifted[1], even[1]))


def quantise_rows(table_VD: Array, bits: Bits) -> Quantised:
    """The same of an embedding [V, D]: its outputs are its rows."""
    return transposed(quantise(table_VD.T, bits))


def transposed(weight: Array | Quantised) -> Array | Quantised:
    """The last two axes swapped; scales stay with their outputs."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, -1, -2), weight)


def widened(weight: Array | Quantised, dtype) -> Array:
    """The whole matrix in a dtype."""
    if not is_quantised(weight):
        return weight.astype(dtype)
    *lead, _, outputs = weight.shape
    grouped = weight.values.astype(dtype).reshape(*lead, weight.scale.shape[-2], -1, outputs)
    return (grouped * weight.scale.astype(dtype)[..., None, :]).reshape(weight.shape)


def product(x_xI: Array, weight: Array | Quantised, dtype=None) -> Array:
    """x @ weight, computed in the dtype of x; the result is in `dtype`, or else that of x."""
    if not is_quantised(weight) or weight.scale.shape[-2] > 1:
        return jnp.matmul(x_xI, widened(weight, x_xI.dtype), preferred_element_type=dtype)
    wide = jnp.promote_types(x_xI.dtype, jnp.float32)
    y_xO = jnp.matmul(x_xI, weight.values.astype(x_xI.dtype), preferred_element_type=wide)
    return (y_xO * weight.scale.astype(wide)).astype(dtype or x_xI.dtype)


def rows_of(table_VD: Array | Quantised, ids: Array, dtype) -> Array:
    """Rows of an embedding [.., D]; NaN for an id outside it."""
    take = lambda x: jnp.take(x, ids, axis=0, mode="fill").astype(dtype)
    if not is_quantised(table_VD):
        return take(table_VD)
    values, scale = jax.tree.map(take, table_VD)
    width = table_VD.shape[1] // table_VD.scale.shape[1]
    return values * jnp.repeat(scale, width, axis=-1)
