"""The facts that a plan is made of, from a config and the sizes of two models; no weights."""

import os
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from distill_jax.config import choose, load_base
from distill_jax.losses.terms import needs_teacher
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import REMAT, bind
from distill_jax.models.binding import Model as BoundModel
from distill_jax.models.families import FAMILIES
from distill_jax.models.sizes import read_sizes
from distill_jax.planning.chips import Topology, read_topology
from distill_jax.planning.layout import CACHED, Facts, Layout, Model, arrays
from distill_jax.planning.traced import head_operations, kept_by_a_block, operations, part_of
from distill_jax.quantised import array_bytes
from distill_jax.setup import student, teachers
from distill_jax.setup.bits import bits_of, wide_dtype
from distill_jax.setup.loss import Recipe, check_experts, make_recipe
from distill_jax.setup.models import Source, check_length, size_of
from distill_jax.setup.steps import fit_to_steps
from distill_jax.setup.training import starter
from distill_jax.sharding import AXES, check_batch, check_row, mesh_sizes
from distill_jax.types import TrainState, UserError

CACHE_PLACE = "DIR"  # stands for the directory of a cache that is not written yet
SMALLER = ("bfloat16", "int8", "int4")  # dtypes of a teacher that are tried


class Planned(NamedTuple):
    """What a config asks to be planned.

    config  with the steps that plan.tokens make
    memory  bytes of a chip
    """

    config: ConfigDict
    topology: Topology
    memory: float
    student: ModelConfig
    teacher: ModelConfig | None
    layout: Layout
    recipe: Recipe

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a batch, padding included."""
        return self.config.data.batch_size * self.config.data.seq_len


def read_plan(c: ConfigDict) -> Planned:
    """What a config asks for, read from the config.json of its models alone.

    Raises UserError for what no plan can be made of, or what a run of the config would refuse.
    """
    topology = read_topology(c.plan.topology)
    c = _with_steps(c)
    recipe = make_recipe(c)
    _check(c)
    student.check(c, recipe.terms)
    teachers.check(c, recipe.terms)
    choose("model.remat", c.model.remat, REMAT)
    of_teacher = read_sizes(c.teacher.path) if c.teacher.path else None
    of_student = _student_sizes(c, of_teacher)
    check_experts(c, recipe.terms, of_student)
    if not needs_teacher(recipe.terms):
        of_teacher = None
    for config, name in ((of_student, "the student"), (of_teacher, c.teacher.path)):
        if config is not None:
            check_length(c, config, name)
    layout = _layout(c, topology)
    _check_experts_divide(layout, of_student, of_teacher)
    return Planned(c, topology, memory_limit(topology), of_student, of_teacher, layout, recipe)


def memory_limit(topology: Topology) -> float:
    """Bytes of a chip; simulated devices share the memory of this machine."""
    if topology.chip.memory is not None:
        return topology.chip.memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / topology.chips


def _with_steps(c: ConfigDict) -> ConfigDict:
    if c.epochs:
        raise UserError(
            f"config.epochs is {c.epochs:g}, and the job plan reads no text whose rows it could"
            " count: give --config.steps=N or --config.plan.tokens=N"
        )
    if not c.plan.tokens:
        return c
    planned = c.copy_and_resolve_references()
    planned.steps = -(-c.plan.tokens // (c.data.batch_size * c.data.seq_len))
    return fit_to_steps(planned, load_base())[0]


def _check(c: ConfigDict) -> None:
    """Raises UserError for teachers that a plan knows nothing of."""
    if c.teacher.more or c.teacher.path == teachers.AVERAGE:
        raise UserError(
            "the job plan knows a run with one teacher: leave config.teacher.more empty, and give"
            " a model as config.teacher.path"
        )
    if c.teacher.cache and (c.teacher.targets != "hidden" or not c.teacher.path):
        raise UserError(
            "of a cached teacher the job plan knows hidden states alone: give config.teacher.path"
            " too, and leave config.teacher.targets hidden"
        )


def _student_sizes(c: ConfigDict, teacher: ModelConfig | None) -> ModelConfig:
    if not c.student.path and teacher is None:
        raise UserError(
            "config.student.path and config.teacher.path are both empty:"
            " give --config.student.path=PATH"
        )
    config = read_sizes(c.student.path) if c.student.path else teacher
    source = Source(config, None)
    student.check_pruned(c, source)
    return student.student_config(c, source)


def _layout(c: ConfigDict, topology: Topology) -> Layout:
    given = {axis: c.mesh[axis] for axis in AXES}
    sizes = mesh_sizes(given, topology.chips)
    layout = Layout(
        mesh=sizes,
        microbatches=c.data.microbatches,
        remat=c.model.remat,
        block_tokens=c.model.block_tokens,
        teacher=CACHED if c.teacher.cache else c.teacher.dtype,
    )
    mesh = AbstractMesh(sizes, AXES)
    check_batch("data.batch_size", c.data.batch_size, c.data.microbatches, mesh)
    check_row("data.seq_len", c.data.seq_len, mesh)
    return layout


def _check_experts_divide(layout, *configs):
    for config in configs:
        if config is not None and config.experts and config.experts % layout.along("expert"):
            raise UserError(
                f"config.mesh.expert is {layout.along('expert')}, which does not divide the"
                f" {config.experts} experts of a model: use a divisor"
            )


def config_of(c: ConfigDict, layout: Layout) -> ConfigDict:
    """The config of a run in another layout."""
    changed = c.copy_and_resolve_references()
    for axis, size in zip(AXES, layout.mesh, strict=True):
        changed.mesh[axis] = size
    changed.data.microbatches = layout.microbatches
    changed.model.remat = layout.remat
    changed.model.block_tokens = layout.block_tokens
    if layout.teacher == CACHED:
        changed.teacher.cache = c.teacher.cache or CACHE_PLACE
    else:
        changed.teacher.dtype, changed.teacher.cache = layout.teacher, ""
    return changed


def make_facts(planned: Planned) -> Facts:
    """What is counted once for all layouts; traces are made when they are asked for."""
    c, of_student, of_teacher = planned.config, planned.student, planned.teacher
    length, compute = c.data.seq_len, c.model.compute_dtype
    model = bind(of_student, param_dtype=c.student.dtype, compute_dtype=compute, remat="none")
    state: TrainState = jax.eval_shape(starter(c, planned.recipe), model.abstract())
    placed = FAMILIES[of_student.family].sharding, c.student.shard
    return Facts(
        rows=c.data.batch_size,
        length=length,
        item=jnp.dtype(compute).itemsize,
        compute_dtype=compute,
        student=_model(of_student, state.params, placed),
        optimizer=arrays(state._replace(params={}), *placed),
        teachers=_teachers(c, of_teacher),
        kept=cache(
            lambda tensor, remat: kept_by_a_block(
                part_of(of_student, tensor), length, compute, remat
            )
        ),
        teacher_kept=cache(
            lambda tensor: kept_by_a_block(part_of(of_teacher, tensor), length, compute, "none")
        ),
        operations=cache(
            lambda remat: operations(of_teacher if remat is None else of_student, length, remat)
        ),
        head=head_operations(
            of_student, of_teacher, length, c.model.block_tokens, planned.recipe.terms
        ),
    )


def sizes_of(planned: Planned) -> list[dict[str, Any]]:
    """Path and number of parameters of teacher and student."""
    c, found = planned.config, []
    for role, config in (("teacher", planned.teacher), ("student", planned.student)):
        if config is not None:
            model = bind(config, param_dtype="float32", compute_dtype="float32", remat="none")
            size = size_of(model, model.abstract())
            path = c[role].path or c.teacher.path
            of = {"parameters": size.total, "active_parameters": size.active}
            found.append({"role": role, "path": path, **of})
    return found


def _teachers(c, config) -> dict[str, Model]:
    """The teacher in its own dtype and in every smaller one."""
    if config is None:
        return {}
    own = c.teacher.dtype
    names = [own, *(name for name in SMALLER if array_bytes((2,), name) < array_bytes((2,), own))]
    placed = FAMILIES[config.family].sharding, c.teacher.shard
    shapes = lambda dtype: teacher_model(c, config, dtype, "none").abstract()
    return {name: _model(config, shapes(name), placed) for name in names}


def teacher_model(
    c: ConfigDict, config: ModelConfig, dtype: str, remat: str, mesh: Mesh | None = None
) -> BoundModel:
    """The teacher's decoder with its parameters in a dtype."""
    dtypes = {"param_dtype": wide_dtype(c, dtype), "compute_dtype": c.model.compute_dtype}
    return bind(config, **dtypes, remat=remat, mesh=mesh, bits=bits_of(c, dtype))


def _model(config, params, placed) -> Model:
    blocks = {"blocks": params["blocks"]}
    return Model(config, arrays(params, *placed), arrays(blocks, *placed))
