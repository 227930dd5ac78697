"""Laws of matrices in few bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.quantised import (
    LARGEST,
    Bits,
    product,
    quantise,
    quantise_rows,
    rows_of,
    transposed,
    widened,
)

INPUTS, OUTPUTS = 48, 20
BITS = [Bits("int8", 0), Bits("int8", 16), Bits("int4", 0), Bits("int4", 16), Bits("int4", 32)]
every = pytest.mark.parametrize("bits", BITS, ids=lambda bits: f"{bits.dtype}-{bits.group}")


def matrix(seed=0, *lead):
    """Outputs of very different sizes, and numbers of which few are large."""
    r = np.random.default_rng(seed)
    return (r.standard_t(4, (*lead, INPUTS, OUTPUTS)) * np.exp(r.normal(0, 2, OUTPUTS))).astype(
        np.float32
    )


def exact(weight):
    """values * scale in float64."""
    groups = weight.scale.shape[-2]
    scale = np.repeat(np.asarray(weight.scale, np.float64), weight.shape[-2] // groups, -2)
    return np.asarray(weight.values, np.float64) * scale


@every
def test_the_product_is_that_of_the_exact_matrix(bits):
    weight = quantise(matrix(), bits)
    x_xI = np.random.default_rng(1).normal(size=(7, INPUTS)).astype(np.float32)
    expected = x_xI.astype(np.float64) @ exact(weight)
    size = np.abs(x_xI.astype(np.float64)) @ np.abs(exact(weight))
    assert np.all(np.abs(product(x_xI, weight) - expected) <= 1e-6 * size)
    # One scale per output multiplies the sum: only the numbers of x and the result are rounded.
    half = product(jnp.asarray(x_xI, jnp.bfloat16), weight, jnp.float32)
    assert half.dtype == jnp.float32
    assert np.all(np.abs(half - expected) <= 2**-7 * size)


@every
def test_no_number_is_off_by_more_than_half_a_step(bits):
    wide = matrix()
    weight = quantise(wide, bits)
    groups = weight.scale.shape[-2]
    step = np.repeat(np.abs(np.asarray(weight.scale, np.float64)), INPUTS // groups, -2)
    # What is as far from 0 as the extreme, on the other side, is off by a step at most.
    clipped = np.asarray(weight.values, int) == LARGEST[bits.dtype]
    assert np.all(np.abs(exact(weight) - wide) <= np.where(clipped, 1.01, 0.501) * step)
    widest = np.abs(wide.reshape(groups, INPUTS // groups, OUTPUTS)).max(1) / LARGEST[bits.dtype]
    assert np.all(np.abs(np.asarray(weight.scale, np.float64)) <= widest * 1.004)
    even = np.repeat(widest, INPUTS // groups, 0)
    plain = np.round(wide / even) * even
    error = lambda narrow: ((narrow - wide) ** 2).sum()
    assert error(exact(weight)) <= error(plain) * 1.02


@every
def test_outputs_that_are_zero_stay_so(bits):
    wide = matrix()
    wide[:, 3] = 0
    weight = quantise(wide, bits)
    assert not exact(weight)[:, 3].any()
    assert np.isfinite(exact(weight)).all()
    assert not exact(quantise(np.zeros((INPUTS, OUTPUTS)), bits)).any()


@every
def test_outputs_do_not_depend_on_each_other(bits):
    order, wide = np.random.default_rng(2).permutation(OUTPUTS), matrix()
    np.testing.assert_array_equal(
        exact(quantise(wide[:, order], bits)), exact(quantise(wide, bits))[:, order]
    )


@every
def test_a_stack_is_quantised_matrix_by_matrix(bits):
    stack = matrix(3, 2, 3)
    whole = quantise(stack, bits)
    for i in range(2):
        for j in range(3):
            one, part = quantise(stack[i, j], bits), jax.tree.map(lambda a, n=(i, j): a[n], whole)
            jax.tree.map(np.testing.assert_array_equal, part, one)


def test_a_group_that_does_not_divide_is_made_smaller():
    assert quantise(matrix(), Bits("int4", 36)).scale.shape == (INPUTS // 12, OUTPUTS)
    assert quantise(matrix(), Bits("int4", 5)).scale.shape == (INPUTS, OUTPUTS)


@every
def test_rows_of_a_table_are_those_of_the_wide_one(bits):
    weight = quantise_rows(matrix().T, bits)
    assert weight.shape == (OUTPUTS, INPUTS)
    ids = np.array([[3, 0], [OUTPUTS - 1, 3]])
    table = exact(transposed(weight)).T
    np.testing.assert_allclose(rows_of(weight, ids, jnp.float32), table[ids], rtol=1e-6)
    assert np.isnan(rows_of(weight, np.array([OUTPUTS]), jnp.float32)).all()
    np.testing.assert_allclose(widened(transposed(weight), jnp.float32), table.T, rtol=1e-6)


def test_the_matrices_take_the_bytes_that_their_name_says():
    """On CPUs a number of int4 has a byte of its own; compiled programs count half of one."""
    run = jax.jit(lambda weight, x: product(x, weight))
    sizes = []
    for bits in (Bits("int8", 0), Bits("int4", 0)):
        weight = quantise(matrix(), bits)
        made = run.lower(weight, jnp.ones((1, INPUTS))).compile().memory_analysis()
        sizes.append(made.argument_size_in_bytes - 4 * INPUTS - 2 * OUTPUTS)
    assert sizes == [INPUTS * OUTPUTS, INPUTS * OUTPUTS // 2]
