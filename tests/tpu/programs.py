"""Small models, and the programs of a run beside its training step, compiled for TPUs."""

import jax
import jax.numpy as jnp

from distill_jax.jobs.cache import _compute
from distill_jax.models.architecture import ModelConfig
from distill_jax.sampling import make_continue
from distill_jax.setup.teachers import temperatures_of
from experiments.tpu_compiler import world as worlds
from experiments.tpu_compiler.world import World

LENGTH, BLOCK_TOKENS, VOCAB = 4096, 128, 4096
SIZES = {
    "family": "llama", "vocab": VOCAB, "width": 256, "blocks": 2, "heads": 2, "kv_heads": 1,
    "head_width": 128, "neurons": 256, "max_positions": 2 * LENGTH, "norm_eps": 1e-5,
    "rope_theta": 1e4, "activation": "silu", "tied": False,
}  # fmt: skip


def tiny(**changes) -> ModelConfig:
    """The architecture of a small model."""
    return ModelConfig(**(SIZES | changes))


def make_world(topology: str, student: ModelConfig, teacher: ModelConfig, rows: int, **changes):
    """A run of long rows."""
    sizes = {"data__seq_len": LENGTH, "model__block_tokens": BLOCK_TOKENS}
    return worlds.make_world(topology, student, teacher, rows, **(sizes | changes))


def evaluate(world: World):
    """The step of the evaluation during training."""
    arguments = (world.state.params, (world.teacher.params,), world.batch)
    return worlds.steps_of(world).eval_step.lower(*arguments).compile()


def cache(world: World):
    """What the job cache computes of a batch."""
    temperatures = temperatures_of(world.setting.recipe.terms)
    compute = _compute(world.config, world.teacher, temperatures, world.mesh)
    return compute.lower(world.teacher.params, world.batch).compile()


def decode(world: World, *, new_tokens: int = 64):
    """The reading of prompts of half a row, the writing after them, and what is carried over."""
    of = {"temperature": 0.7, "top_p": 1.0, "stop_ids": (0,), "cache_dtype": "bfloat16"}
    program = make_continue(world.teacher.model, max_new_tokens=new_tokens, **of)
    rows, length = world.batch.tokens_BT.shape
    prompts = jax.ShapeDtypeStruct((rows, length // 2), jnp.int32)
    lengths = jax.ShapeDtypeStruct((rows,), jnp.int32)
    begin = program.begin.lower(world.teacher.params, prompts, lengths).compile()
    written = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(program.begin, world.teacher.params, prompts, lengths),
        begin.output_shardings,
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    arguments = (world.teacher.params, written, prompts, lengths, keys, new_tokens)
    return begin, program.go_on.lower(*arguments).compile(), written
