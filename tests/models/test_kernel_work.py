"""Operations of the kernels of attention, counted in a traced program by study/flops.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import gpu_attention, splash_attention
from distill_jax.models.attention_pattern import Pattern
from distill_jax.study.flops import of_attention, program_flops
from tests.models.test_gpu_attention import defined  # noqa: F401

ROWS, LENGTH, HEADS, WIDTH, BLOCK = 2, 2048, 4, 64, 512


def counted(attend, window):
    """(forward, forward and backward, of the latter attention's), in products of a row's heads."""
    of = lambda heads: jax.ShapeDtypeStruct((ROWS, LENGTH, heads, WIDTH), jnp.bfloat16)
    segment = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    pattern = Pattern(window=window, scale=0.1, softcap=None)

    def run(query, key, value, segment):
        out = attend(query, key, value, segment, None, pattern=pattern, mesh=None)
        return out.astype(jnp.float32).sum()

    args, both = (of(HEADS), of(2), of(2), segment), jax.grad(run, (0, 1, 2))
    found = (
        program_flops(run, *args),
        program_flops(both, *args),
        program_flops(both, *args, only=of_attention),
    )
    return tuple(count / (2 * ROWS * HEADS * WIDTH) for count in found)


def pairs(size, window):
    """Of the places of a row, those that see each other; by blocks of `size` where any does."""
    place = np.arange(LENGTH)
    back = place[:, None] - place
    seen = (back >= 0) & (back < (window or LENGTH))
    count = LENGTH // size
    return size**2 * np.count_nonzero(seen.reshape(count, size, count, size).any((1, 3)))


@pytest.mark.parametrize("window", [None, 600])
def test_the_tpus_counts_the_blocks_that_it_computes(window):
    """Forward 2 products; backward 3 for queries, 4 for keys and values, and output x gradient."""
    once = pairs(BLOCK, window)
    both = 9 * once + LENGTH
    assert counted(splash_attention.attend, window) == (2 * once, both, both)


@pytest.mark.parametrize("window", [None, 600])
@pytest.mark.usefixtures("defined")
def test_the_gpus_counts_what_a_row_of_one_text_needs(window):
    once = pairs(1, window)
    assert counted(gpu_attention.attend, window) == (2 * once, 7 * once, 7 * once)
