"""Products of rows with the matrix of their group; rows are sorted by group, x indexes them.

This is what jax.lax.ragged_dot computes, which XLA expands on a CPU, and on a GPU without
experimental flags, to [groups, rows, width] with zeros for the rows of other groups; compiled for
TPUs its counted operations are as many times those of the rows as there are groups. Here a loop
takes blocks of rows, each of one group: memory and operations are those of the rows.
"""

import jax
import jax.numpy as jnp

from distill_jax.quantised import Quantised, is_quantised, product
from distill_jax.types import Array

# Rows of a block. A matrix is read once per block: 256 rows are 256 operations per byte of
# bfloat16, where products on TPUs and GPUs wait for memory below 160 to 560.
LEAST, MOST = 8, 256


def grouped_product(rows_xD: Array, weight_EDF: Array | Quantised, size_E: Array) -> Array:
    """rows @ the weight of their group, [x, F], in the dtype of the rows.

    The first size_E[0] rows belong to group 0, the next to group 1, and so on. Rows beyond the
    last group's have no meaning, and take no time. Differentiable in rows and weight;
    in nothing where the weight is quantised.

    >>> rows, weight = jnp.ones((3, 2)), jnp.stack([jnp.eye(2), 2 * jnp.eye(2)])
    >>> grouped_product(rows, weight, jnp.array([1, 2]))[:, 0].tolist()
    [1.0, 2.0, 2.0]
    """
    if is_quantised(weight_EDF):
        return product_by_blocks(rows_xD, weight_EDF, size_E)
    return _grouped(rows_xD, weight_EDF, size_E)


@jax.custom_vjp
def _grouped(rows_xD, weight_EDF, size_E):
    return product_by_blocks(rows_xD, weight_EDF, size_E)


def _forward(rows_xD, weight_EDF, size_E):
    return product_by_blocks(rows_xD, weight_EDF, size_E), (rows_xD, weight_EDF, size_E)


def _backward(residuals, gradient_xF):
    rows_xD, weight_EDF, size_E = residuals
    rows_gradient = product_by_blocks(gradient_xF, jnp.swapaxes(weight_EDF, 1, 2), size_E)
    total = jnp.sum(size_E)
    # Nothing flows into rows of no group.
    rows_gradient = jnp.where(_row(rows_gradient) < total, rows_gradient, 0)
    weight_gradient = outer_by_blocks(rows_xD, gradient_xF, size_E)
    return rows_gradient, weight_gradient.astype(weight_EDF.dtype), None


_grouped.defvjp(_forward, _backward)


def _row(x):
    return jnp.arange(x.shape[0])[:, None]


@jax.jit
def product_by_blocks(rows_xD: Array, weight_EDF: Array | Quantised, size_E: Array) -> Array:
    """grouped_product without a gradient."""
    rows, width = rows_xD.shape[0], weight_EDF.shape[2]
    block, count, place = _blocks(rows, size_E)
    padded_xD = jnp.pad(rows_xD, ((0, block), (0, 0)))

    def one(i, result_xF):
        # A block may reach beyond its group; the blocks after it write over those rows.
        group, start = place(i)
        some = jax.lax.dynamic_slice_in_dim(padded_xD, start, block)
        pick = lambda w: jax.lax.dynamic_index_in_dim(w, group, keepdims=False)
        some = product(some, jax.tree.map(pick, weight_EDF))
        return jax.lax.dynamic_update_slice_in_dim(result_xF, some, start, 0)

    result_xF = jnp.zeros((rows + block, width), rows_xD.dtype)
    return jax.lax.fori_loop(0, count, one, result_xF)[:rows]


@jax.jit
def outer_by_blocks(rows_xD: Array, gradient_xF: Array, size_E: Array) -> Array:
    """rows' @ gradient of every group, float32 [E, D, F]."""
    rows, groups = rows_xD.shape[0], size_E.shape[0]
    block, count, place = _blocks(rows, size_E)
    end_E = jnp.cumsum(size_E)
    pad = lambda x: jnp.pad(x, ((0, block), (0, 0)))
    padded_xD, padded_xF = pad(rows_xD), pad(gradient_xF)

    def one(i, result_EDF):
        group, start = place(i)
        take = lambda x: jax.lax.dynamic_slice_in_dim(x, start, block)
        inside = start + _row(take(padded_xD)) < end_E[group]
        some_xD, some_xF = (jnp.where(inside, take(x), 0) for x in (padded_xD, padded_xF))
        product = jnp.matmul(some_xD.T, some_xF, preferred_element_type=jnp.float32)
        return result_EDF.at[group].add(product)

    shape = (groups, rows_xD.shape[1], gradient_xF.shape[1])
    return jax.lax.fori_loop(0, count, one, jnp.zeros(shape, jnp.float32))


def _blocks(rows, size_E):
    """(rows of a block, number of blocks, i -> (group, first row) of block i)."""
    mean = max(1, -(-rows // size_E.shape[0]))
    block = min(MOST, max(LEAST, 1 << (mean - 1).bit_length()))
    blocks_E = -(-size_E // block)
    first_E, end_E = jnp.cumsum(size_E) - size_E, jnp.cumsum(blocks_E)

    def place(i):
        group = jnp.sum(end_E <= i)
        before = end_E[group] - blocks_E[group]
        return group, first_E[group] + (i - before) * block

    return block, end_E[-1], place


# The loops by their names in a traced program, where study/flops.py counts them as their products.
COUNTED = (product_by_blocks.__name__, outer_by_blocks.__name__)
