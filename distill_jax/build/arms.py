"""The config of an arm x seed, what it reads, and what a step of it costs."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from distill_jax.build import data, teachers
from distill_jax.build.inputs import Inputs, Setting, read_inputs
from distill_jax.build.models import bind_config, student_source, without_knowledge
from distill_jax.build.student import student_config
from distill_jax.build.teachers import Teachers
from distill_jax.build.terms import terms_of
from distill_jax.build.training import abstract_state, programs_of, starter
from distill_jax.config import check_keys, flatten
from distill_jax.losses.terms import CROSS_ENTROPY, Term, needs_teacher
from distill_jax.study.arms import Arm
from distill_jax.study.flops import program_flops
from distill_jax.types import UserError

# Keys that decide what a run reads; an arm that changes none of them shares what the study read.
READ = ("data.", "teacher.path", "teacher.more", "teacher.dtype", "mesh.")


class Shared(NamedTuple):
    """What the arms of a study have in common: a cache of the teacher, a start of each seed."""

    cache: str
    starts: dict[int, str]


def arm_config(
    c: ConfigDict, arm: Arm, seed: int, shared: Shared | None = None, steps: int = 0
) -> ConfigDict:
    """The config of a training run; `steps` unless 0.

    Raises UserError for overrides of another type than the key's.
    """
    mine = c.copy_and_resolve_references()
    with mine.unlocked():
        del mine.study, mine.diagnose  # no keys of a training run: they may change afterwards
    mine.job, mine.seed, mine.generate.prompts = "train", seed, ()
    if arm.labels_alone:
        for name, term in mine.terms.items():
            term.weight, term.schedule = float(name == CROSS_ENTROPY), "constant"
    mine.update_from_flattened_dict(dict(arm.overrides))
    if steps:
        mine.steps = steps
    if shared is not None:
        if shared.cache and cacheable(c, mine):
            mine.teacher.cache = shared.cache
        if seed in shared.starts and not any(key.startswith("student.") for key in arm.overrides):
            mine.student.path, mine.student.init = shared.starts[seed], "checkpoint"
    check_keys(mine, c)
    return mine


def cacheable(c: ConfigDict, mine: ConfigDict) -> bool:
    """Whether an arm learns from whole distributions of the study's one teacher."""
    if not needs_teacher(terms_of(mine)):
        return False
    alone = mine.teacher.path == c.teacher.path not in ("", teachers.AVERAGE)
    same_text = flatten(mine.data) == flatten(c.data)
    whole = mine.teacher.targets == "hidden" and mine.teacher.init == "checkpoint"
    return alone and same_text and whole and not mine.teacher.more and not mine.teacher.cache


def arm_inputs(
    c: ConfigDict,
    mine: ConfigDict,
    terms: tuple[Term, ...],
    inputs: Inputs,
    judges: Teachers | None = None,
) -> Iterator[str]:
    """What an arm reads: the study's, with its own student, and its own teacher where it differs.

    judges: the study's teacher with the cache that the study has made, which is not opened again.
    Yields lines a person reads and returns Inputs.
    """
    own, study = flatten(mine), flatten(c)
    if any(own[key] != study[key] for key in own if key.startswith(READ)):
        return (yield from read_inputs(mine, terms, inputs.mesh))
    found = inputs.teachers
    if not needs_teacher(terms):
        found = found._replace(cache=None, head=None)
    elif mine.teacher.init != c.teacher.init:
        if found.first is None:
            raise UserError(
                f"config.teacher.path is {c.teacher.path!r}, which has no architecture of its own"
                " for random weights: leave random_teacher out of config.study.arms"
            )
        first = without_knowledge(mine, found.first, inputs.mesh)
        found = Teachers((first, *found.loaded[1:]), None, None, found.average)
    elif judges and judges.cache and mine.teacher.cache == str(judges.cache.directory):
        found = judges
    elif mine.teacher.cache != c.teacher.cache:
        found = teachers.read_cache(mine, found, terms, inputs.mesh)
    source = inputs.source
    if (mine.student.path, mine.student.init) != (c.student.path, c.student.init):
        source = student_source(mine, inputs.teachers.first)
    return inputs._replace(teachers=found, source=source)


def step_flops(setting: Setting) -> int:
    """Operations of one update, the teacher's forward pass among them even where a cache has it.

    Counted from the traced step, before any weight of the student is made. Where only a cache is
    at hand and no teacher, what the cache once cost is not known and not counted.
    """
    c, mesh = setting.config, setting.mesh
    model = bind_config(c, student_config(c, setting.source), c.student.dtype)
    state, shardings = abstract_state(model, starter(c, setting.recipe), mesh)
    step = programs_of(setting, model, shardings).train_step
    _, teacher_params = teachers.teach_of(c, setting.teachers, setting.recipe.terms, model, mesh)
    _, batch = next(data.training_batches(c, setting.training.rows, mesh, 0))
    return program_flops(step, state, teacher_params, batch, jax.random.key(0))
