"""Fingerprints of arrays: every changed bit is seen, and no mesh or dtype changes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.fingerprint import fingerprint, fingerprints

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool")
SHAPES = [(), (1,), (7,), (5, 3), (4, 32), (2, 3, 48), (2, 2, 2, 33)]


def values(shape, dtype, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(-99, 99, shape), dtype)


def naive(x):
    """The same with Python integers, one word after another."""
    x = np.asarray(x)
    words = x.astype(np.uint32) if x.dtype == bool else x.view(f"uint{8 * x.dtype.itemsize}")
    total = 0
    for place, word in enumerate(words.reshape(-1).tolist()):
        mixed = (word + place * 0x9E3779B9) % 2**32
        mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B % 2**32
        mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 % 2**32
        total += mixed ^ mixed >> 16
    return total % 2**32


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_sum_that_its_words_say(dtype):
    arrays = [values(shape, dtype) for shape in SHAPES]
    assert list(fingerprints(arrays).values()) == [naive(x) for x in arrays]


def test_every_flipped_bit_is_seen():
    x = np.asarray(values((3, 8), "float32"))
    flipped = np.stack([x.view(np.uint32)] * (x.size * 32)).reshape(-1, x.size)
    flipped[np.arange(x.size * 32), np.repeat(np.arange(x.size), 32)] ^= np.tile(
        np.uint32(1) << np.arange(32, dtype=np.uint32), x.size
    )
    seen = jax.vmap(fingerprint)(flipped.reshape(-1, *x.shape))
    assert not np.any(seen == fingerprint(x))


@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 2, 6)])
def test_any_two_words_that_changed_places_are_seen(shape):
    x = np.arange(24, dtype=np.float32)
    swapped = []
    for i in range(24):
        for j in range(i):
            other = x.copy()
            other[[i, j]] = other[[j, i]]
            swapped.append(other.reshape(shape))
    assert not np.any(jax.vmap(fingerprint)(jnp.stack(swapped)) == fingerprint(x.reshape(shape)))


def test_the_same_values_of_another_shape_order_or_sign_of_zero_differ():
    x = values((4, 32), "float32")
    others = (x[::-1], x.T, -x, x.at[0, 0].set(0), x.astype(jnp.bfloat16))
    assert len({naive(x), *fingerprints(others).values()}) == 1 + len(others)
    zero = jnp.zeros(3)
    assert naive(zero) != naive(-zero)
