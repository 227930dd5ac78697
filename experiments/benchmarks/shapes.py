"""What is benchmarked: shapes of models and batches, and the inputs made from them.

Random weights: time depends on shapes, not on what the models know. Shapes in names: types.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import Model, bind
from distill_jax.types import Array, Batch, Params

HEAD_WIDTH = 64


class Shape(NamedTuple):
    """Two models and a batch. `groups` are the groups of contenders that run on it."""

    name: str
    student: ModelConfig
    teacher: ModelConfig
    rows: int
    length: int
    groups: tuple[str, ...] = ("loss", "step")


class LossInputs(NamedTuple):
    """Final hidden states and heads of both sides, with labels and their weights."""

    hidden_BTD: Array
    weight_DV: Array
    teacher_hidden_BTD: Array
    teacher_weight_DV: Array
    labels_BT: Array
    weight_BT: Array


class Pair(NamedTuple):
    """Student and teacher with their parameters, and the batch both read."""

    student: Model
    teacher: Model
    student_params: Params
    teacher_params: Params
    batch: Batch


class Case(NamedTuple):
    """The inputs that all contenders of a shape share; no pair where only the loss is timed.

    dtype: what both models compute in; parameters are float32.
    """

    shape: Shape
    loss: LossInputs
    pair: Pair | None
    dtype: str = "float32"


def llama(width: int, blocks: int, vocab: int, **changes) -> ModelConfig:
    """A llama with heads of width 64, 8/3 of the width as neurons, and a head of its own."""
    own = {
        "heads": width // HEAD_WIDTH,
        "kv_heads": width // HEAD_WIDTH,
        "head_width": HEAD_WIDTH,
        "neurons": round(width * 8 / 3 / 64) * 64,
        "max_positions": 8192,
        "rope_theta": 1e5,
        "tied": False,
    }
    own |= changes
    return ModelConfig(
        family="llama", vocab=vocab, width=width, blocks=blocks, norm_eps=1e-5, activation="silu",
        **own,
    )  # fmt: skip


def make_case(shape: Shape, seed: int = 0, dtype: str = "float32") -> Case:
    """Float32 inputs of a shape, the same for every contender, and models that compute in dtype."""
    keys = jax.random.split(jax.random.key(seed), 6)
    batch = make_batch(shape, seed)
    hidden = lambda key, width: jax.random.normal(key, (shape.rows, shape.length, width))
    # Logits of about unit variance, as the head of a trained model gives within a factor of a few.
    head = lambda key, c: jax.random.normal(key, (c.width, c.vocab)) * c.width**-0.5
    loss = LossInputs(
        hidden(keys[0], shape.student.width),
        head(keys[1], shape.student),
        hidden(keys[2], shape.teacher.width),
        head(keys[3], shape.teacher),
        batch.labels_BT,
        batch.weight_BT,
    )
    if "step" not in shape.groups:
        return Case(shape, loss, None, dtype)
    student, teacher = bound(shape.student, dtype), bound(shape.teacher, dtype)
    params = (jax.jit(student.init)(keys[4]), jax.jit(teacher.init)(keys[5]))
    return Case(shape, loss, Pair(student, teacher, *params, batch), dtype)


def bound(config: ModelConfig, dtype: str = "float32", mesh: Mesh | None = None) -> Model:
    """The decoder with float32 parameters, keeping every intermediate for the backward pass."""
    return bind(config, param_dtype="float32", compute_dtype=dtype, remat="none", mesh=mesh)


def make_batch(shape: Shape, seed: int = 0) -> Batch:
    """Full rows of one document each, every label counted."""
    size = (shape.rows, shape.length)
    r = np.random.default_rng(seed)
    tokens = r.integers(0, shape.student.vocab, (shape.rows, shape.length + 1)).astype(np.int32)
    position = np.broadcast_to(np.arange(shape.length, dtype=np.int32), size)
    return Batch(
        tokens_BT=jnp.asarray(tokens[:, :-1]),
        labels_BT=jnp.asarray(tokens[:, 1:]),
        weight_BT=jnp.ones(size, jnp.float32),
        segment_BT=jnp.ones(size, jnp.int32),
        position_BT=jnp.asarray(position),
        document_BT=jnp.zeros(size, jnp.int32),
    )


def _smollm2(blocks: int, neurons: int) -> ModelConfig:
    return llama(576, blocks, 49152, kv_heads=3, neurons=neurons, tied=True)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "small", llama(256, 4, 32_000), llama(512, 8, 32_000), 4, 256,
            ("loss", "step", "probe"),
        ),
        # Four times the width as neurons, and the rotary base that Tunix's llama always has.
        Shape(
            "small_4x",
            llama(256, 4, 32_000, neurons=1024, rope_theta=1e6),
            llama(512, 8, 32_000, neurons=2048, rope_theta=1e6),
            4, 256, ("step",),
        ),
        Shape("wide_student", llama(1024, 1, 32_000), llama(1024, 1, 32_000), 4, 256, ("loss",)),
        Shape("wide_vocab", llama(256, 4, 128_000), llama(512, 8, 128_000), 2, 256),
        Shape("smollm2", _smollm2(21, 560), _smollm2(30, 1536), 2, 512),
    )
}  # fmt: skip
