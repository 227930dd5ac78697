"""Small models and batches that many tests share; nothing here knows what is tested."""

import jax
import numpy as np

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import bind
from distill_jax.types import Batch

VOCAB = 61


def model(width=16, blocks=2, vocab=VOCAB, dtype="float32", family="llama", **more):
    config = ModelConfig(
        family=family, vocab=vocab, width=width, blocks=blocks, heads=4, kv_heads=2, head_width=8,
        neurons=24, max_positions=64, norm_eps=1e-5, rope_theta=1e4, activation="silu", tied=True,
        **more,
    )  # fmt: skip
    return bind(config, param_dtype=dtype, compute_dtype=dtype, remat="none")


def params(of, seed=0):
    """Random parameters, larger than an initialisation's, so that distributions are not flat."""
    fresh = of.init(jax.random.key(seed))
    matrices = jax.tree.map(lambda x: x * 8 if x.ndim > 2 else x, fresh)
    return matrices | {"embedding": fresh["embedding"] * 20}


def batch(seed=0, rows=4, length=16, vocab=VOCAB):
    """Two packed pieces a row and some padding; every seventh label does not count."""
    r = np.random.default_rng(seed)
    tokens = r.integers(0, vocab, (rows, length + 1)).astype(np.int32)
    first = r.integers(2, length // 2, (rows, 1))
    last = r.integers(length // 2 + 1, length, (rows, 1))
    place = np.arange(length)[None]
    segment = np.where(place < first, 1, np.where(place < last, 2, 0)).astype(np.int32)
    position = np.where(place < first, place, place - first).astype(np.int32)
    boundary = (place == first - 1) | (place == last - 1)
    weight = ((segment > 0) & ~boundary & (place % 7 != 3)).astype(np.float32)
    inputs = np.where(segment > 0, tokens[:, :-1], 0)
    labels = np.where(segment > 0, tokens[:, 1:], 0)
    return Batch(inputs, labels, weight, segment, position, segment - 1)
