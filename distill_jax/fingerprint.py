"""A number for each array of a state that tells whether its bits are still the same.

It is computed where the array lives, whatever the mesh, and costs one pass over the memory.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.types import Array, path_name


def fingerprints(tree: Any) -> dict[str, int]:
    """The fingerprint of every array, by its path; waits for the arrays. All processes call it."""
    paths, leaves = zip(*jax.tree.leaves_with_path(tree), strict=True)
    sums = jax.device_get(_all(leaves))
    return {path_name(path): int(value) for path, value in zip(paths, sums, strict=True)}


@jax.jit
def _all(leaves):
    return [fingerprint(x) for x in leaves]


def fingerprint(x: Array) -> Array:
    """uint32: the sum modulo 2**32 of the 32-bit words of x [...], each mixed with its position.

    Integers add up to the same in any order, so the devices that hold x change nothing. A change
    in one word is always seen, since the mixing is one to one; any other, such as two words that
    changed places, but for one case in 2**32. The mixing is the last part of MurmurHash3 (Appleby).
    """
    words = bits(x)
    if x.ndim:  # XLA's sum over a few neighbours takes a tenth of its sum over a whole array on CPU
        few = math.gcd(words.shape[-1], 32)
        words = words.reshape(*words.shape[:-1], -1, few)
    place = jnp.zeros((), jnp.uint32)
    for axis in range(words.ndim):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place += along * np.uint32(stride)
    mixed = words + place * np.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
    mixed ^= mixed >> 16
    if x.ndim:  # the barrier keeps XLA from making both sums one again
        mixed = jax.lax.optimization_barrier(jnp.sum(mixed, axis=-1, dtype=jnp.uint32))
    return jnp.sum(mixed, dtype=jnp.uint32)


def bits(x):
    """The bits of x as uint32: two words of a wider element, one of a narrower one."""
    if x.dtype == bool:
        return jnp.asarray(x, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * min(4, x.dtype.itemsize)}"))
    return bits.astype(jnp.uint32)
