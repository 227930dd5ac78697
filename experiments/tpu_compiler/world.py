"""The programs of a run, compiled for TPUs that are not here, from the sizes of two models."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from distill_jax.config import load_base
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.families import FAMILIES
from distill_jax.setup.inputs import Setting
from distill_jax.setup.loss import make_recipe
from distill_jax.setup.models import Loaded, bind_config
from distill_jax.setup.teachers import Teachers
from distill_jax.setup.tpu_compiler import devices_of
from distill_jax.setup.training import abstract_state, compiled_steps, starter
from distill_jax.sharding import AXES, batch_sharding, parameter_shardings
from distill_jax.step import make_train_step
from distill_jax.types import Batch
from experiments.benchmarks import programs


class World(NamedTuple):
    """A run on a mesh: its config, models without weights, and what its steps are given."""

    config: Any
    mesh: Mesh
    teacher: Loaded
    student: Any  # binding.Model
    state: Any
    shardings: Any  # of the state
    batch: Batch
    setting: Setting

    @property
    def tokens(self) -> int:
        """Of a batch that a chip has."""
        return int(np.prod(self.batch.tokens_BT.sharding.shard_shape(self.batch.tokens_BT.shape)))


def make_world(
    topology: str, student: ModelConfig, teacher: ModelConfig, rows: int, **changes
) -> World:
    """A run with these keys of its config changed; `mesh__fsdp` is mesh.fsdp."""
    c = load_base()
    c.teacher.path, c.student.path, c.student.init = "TEACHER", "STUDENT", "random"
    c.teacher.dtype = c.model.compute_dtype = "bfloat16"
    c.data.batch_size, c.mesh.data, c.mesh.fsdp = rows, 1, -1
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    devices = np.array(devices_of(topology))
    sizes = [c.mesh[axis] for axis in AXES]
    mesh = Mesh(devices.reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    recipe = make_recipe(c)
    model = bind_config(c, student, c.student.dtype, mesh)
    state, shardings = abstract_state(model, starter(c, recipe), mesh, c.student.shard)
    taught = bind_config(c, teacher, c.teacher.dtype, mesh)
    loaded = Loaded(taught, _placed(taught, mesh, c.teacher.shard), None, "TEACHER", "")
    teachers = Teachers((loaded,), None, None, False)
    inputs = SimpleNamespace(mesh=mesh, teachers=teachers)
    setting = Setting(c, (), None, recipe, inputs, teachers, None, None)
    number, weight = (
        jax.ShapeDtypeStruct((rows, c.data.seq_len), dtype, sharding=batch_sharding(mesh))
        for dtype in (jnp.int32, jnp.float32)
    )
    batch = Batch(number, number, weight, number, number, number)
    return World(c, mesh, loaded, model, state, shardings, batch, setting)


def _placed(model, mesh, shard):
    params = model.abstract()
    shardings = parameter_shardings(params, FAMILIES[model.config.family].sharding, mesh, shard)
    of = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(of, params, shardings)


def steps_of(world: World):
    """The jitted steps of the run."""
    return compiled_steps(world.setting, world.student, world.shardings)


def train(world: World):
    """The training step, compiled."""
    return _compiled(world, steps_of(world).train_step)


def naive(world: World):
    """The same with the logits of all tokens and both models in memory, compiled."""
    pair = SimpleNamespace(
        student=world.student,
        teacher=world.teacher.model,
        teacher_params=world.teacher.params,
        batch=world.batch,
    )
    recipe = world.setting.recipe
    of = {"microbatches": 1, "state_shardings": world.shardings}
    return _compiled(
        world, make_train_step(programs.naive(pair).loss, recipe.optimizer, recipe.plan, **of)
    )


def _compiled(world, step):
    key = jax.eval_shape(lambda: jax.random.key(0))
    return step.lower(world.state, (world.teacher.params,), world.batch, key).compile()
