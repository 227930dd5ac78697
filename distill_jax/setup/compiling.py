"""The training step of a plan, compiled for chips that are not here; nothing is run or placed."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distill_jax.data.cache_records import DTYPES
from distill_jax.losses.terms import needs_teacher
from distill_jax.models.binding import bind
from distill_jax.models.families import FAMILIES
from distill_jax.objective import cached_teacher, live_teacher, partial_teacher
from distill_jax.planning.layout import CACHED
from distill_jax.quantised import array_bytes
from distill_jax.setup import teachers
from distill_jax.setup.loss import train_step_of
from distill_jax.setup.planning import Planned, teacher_model
from distill_jax.setup.training import abstract_state, starter
from distill_jax.sharding import AXES, batch_sharding, parameter_shardings
from distill_jax.types import Batch
from distill_jax.words import first_line

# How the compiler of TPUs says what a program needs that has no room.
_NEEDS = re.compile(r"(HLO temporaries \()?([\d.]+)([KMGT])\)? (?:exceeds|of [\d.]+[KMGT] hbm)")
_UNIT = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Compiled(NamedTuple):
    """What a compiler says of a step, in bytes of one chip.

    total      arguments, temporaries and outputs that are not arguments; None: it does not say
    arguments  the state, the teacher and the batch; None where the compiler ended
    refused    why it does not compile; empty: it does
    """

    total: float | None
    arguments: float | None
    refused: str = ""


def compile_step(planned: Planned, devices: Sequence[Any]) -> Compiled:
    """Compiles the step of a plan's layout for devices, or says why that fails."""
    sizes = planned.layout.mesh
    mesh = Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    lowered, arguments = _lowered(planned, mesh)
    held = float(sum(_held(x) for x in jax.tree.leaves(arguments)))
    try:
        found = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        return Compiled(_needed(str(error), held), held, first_line(error))
    made = found.output_size_in_bytes - found.alias_size_in_bytes
    total = found.argument_size_in_bytes + found.temp_size_in_bytes + made
    return Compiled(float(total), float(found.argument_size_in_bytes))


def _held(x) -> int:
    return array_bytes(x.sharding.shard_shape(x.shape), x.dtype)


def _needed(said: str, held: float) -> float | None:
    """The bytes that a refusal names; those of temporaries come on top of what is held."""
    found = _NEEDS.search(said)
    if found is None:
        return None
    temporaries, number, unit = found.groups()
    return float(number) * _UNIT[unit] + (held if temporaries else 0.0)


def _lowered(planned: Planned, mesh: Mesh):
    """The step traced for a mesh, and its arguments."""
    c, recipe = planned.config, planned.recipe
    dtypes = {"param_dtype": c.student.dtype, "compute_dtype": c.model.compute_dtype}
    student = bind(planned.student, **dtypes, remat=c.model.remat, mesh=mesh)
    state, shardings = abstract_state(student, starter(c, recipe), mesh, c.student.shard)
    rows = (c.data.batch_size, c.data.seq_len)
    placed = lambda shape, dtype, of: jax.ShapeDtypeStruct(shape, dtype, sharding=of)
    whole = NamedSharding(mesh, PartitionSpec())
    over_rows = batch_sharding(mesh)
    number, weight = (placed(rows, dtype, over_rows) for dtype in (jnp.int32, jnp.float32))
    batch = Batch(number, number, weight, number, number, number)
    teach, params = None, ()
    if needs_teacher(recipe.terms) and planned.layout.teacher == CACHED:
        teach, head, batch = _cached(planned, batch, placed, whole, over_rows)
        params = (head,)
    elif needs_teacher(recipe.terms):
        teach, params = _live(planned, mesh, placed)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = train_step_of(c, recipe, student, teach, mesh, shardings)
    arguments = (state, params, batch, placed(key.shape, key.dtype, whole))
    return step.lower(*arguments), arguments[:3]


def _live(planned: Planned, mesh: Mesh, placed):
    c, config = planned.config, planned.teacher
    model = teacher_model(c, config, c.teacher.dtype, c.model.remat, mesh)
    params = model.abstract()
    rules = FAMILIES[config.family].sharding
    shardings = parameter_shardings(params, rules, mesh, c.teacher.shard)
    params = jax.tree.map(lambda x, s: placed(x.shape, x.dtype, s), params, shardings)
    teach = live_teacher(model)
    if c.teacher.targets != "hidden":
        temperatures = teachers.temperatures_of(planned.recipe.terms)
        teach = partial_teacher(teach, teachers.part_of(c, temperatures, mesh))
    return teach, (params,)


def _cached(planned: Planned, batch: Batch, placed, whole, over_rows):
    """A teacher whose hidden states come with the batch, and its head on every chip."""
    c, config = planned.config, planned.teacher
    head = placed((config.width, config.vocab), jnp.dtype(c.model.compute_dtype), whole)
    shape = (c.data.batch_size, c.data.seq_len)
    stored = {"hidden": placed((*shape, config.width), DTYPES[c.cache.dtype], over_rows)}
    if c.cache.dtype == "int8":
        stored["scale"] = placed(shape, jnp.float32, over_rows)
    temperatures = teachers.temperatures_of(planned.recipe.terms)
    fixed = {"temperatures": temperatures, "policy": "renormalise", "vocab": config.vocab}
    form = (config.final_softcap, config.logit_scale)
    return (
        cached_teacher("hidden", head=form, **fixed),
        (head, None),
        batch._replace(targets=stored),
    )
