"""The config of an arm x seed, what it reads, and what a step of it costs."""

from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from distill_jax.config import check_keys, flatten, leaves
from distill_jax.losses.terms import CROSS_ENTROPY, LOAD_BALANCE, needs_teacher
from distill_jax.schema import check_values
from distill_jax.setup import data, teachers
from distill_jax.setup.inputs import Inputs, Setting
from distill_jax.setup.loss import terms_of
from distill_jax.setup.measures import SCORER
from distill_jax.setup.models import bind_config, student_source, without_knowledge
from distill_jax.setup.student import student_config
from distill_jax.setup.teachers import Teachers
from distill_jax.setup.training import abstract_state, compiled_steps, starter
from distill_jax.study.arms import Arm
from distill_jax.study.flops import program_flops
from distill_jax.types import UserError

# Keys that decide what a run reads: an arm that changes none of them shares what the study read.
OF_TEACHER = ("path", "more", "dtype", "group", "shard")
READ = ("data.", *(f"teacher.{key}" for key in OF_TEACHER), "mesh.")
STORED = ("path", "dtype", "group")  # of a teacher: what its cache depends on


class Shared(NamedTuple):
    """What arms share: the directory of a teacher cache (or none), and the student of each seed."""

    cache: str
    starts: dict[int, str]


def check_study(c: ConfigDict) -> None:
    """Raises UserError for settings that make no study; reads nothing."""
    s = c.study
    if s.measure == SCORER and not s.prompts:
        raise UserError(
            "config.study.measure is scorer and config.study.prompts is 0: give prompts, whose"
            " continuations the scorer judges"
        )
    if c.export.format != "hf":
        raise UserError(
            f"config.export.format is {c.export.format}, and a study measures directories: write"
            " the student of one of its runs afterwards, by --config.job=export"
        )
    if not c.teacher.path and not c.teacher.cache:
        raise UserError("config.teacher.path is empty: a study needs --config.teacher.path=PATH")


def check_serving(c: ConfigDict, inputs: Inputs) -> None:
    """Raises UserError where the texts that serving is timed with do not fit a model."""
    needed, first = c.study.prompt_tokens + c.study.new_tokens, inputs.teachers.first
    models = {"the student": inputs.source.config} | (
        {"the teacher": first.model.config} if first else {}
    )
    for name, config in models.items():
        if needed > config.max_positions:
            raise UserError(
                f"config.study.prompt_tokens and config.study.new_tokens are {needed} together and"
                f" {name} has {config.max_positions} positions: use fewer of either"
            )


def arm_config(
    c: ConfigDict, arm: Arm, seed: int, shared: Shared | None = None, steps: int = 0
) -> ConfigDict:
    """The config of a training run; `steps` unless 0.

    Raises UserError for overrides of another type than the key's, or beyond its limits.
    """
    mine = c.copy_and_resolve_references()
    with mine.unlocked():
        # No keys of a training run: they may change afterwards.
        del mine.study, mine.diagnose, mine.verdict
    mine.job, mine.seed = "train", seed
    mine.generate.prompts, mine.generate.messages = (), ""
    if arm.labels_alone:
        for name, term in mine.terms.items():
            if name != LOAD_BALANCE:  # no part of the teaching: the same in every arm
                term.weight, term.schedule = float(name == CROSS_ENTROPY), "constant"
    try:
        mine.update_from_flattened_dict(dict(arm.overrides))
        check_keys(mine, c, whole=False)
        check_values(leaves(mine))
    except (UserError, TypeError, OverflowError) as error:  # a value's type is the first to fail
        raise UserError(f"arm {arm.name}: {error}") from None
    if steps:
        mine.steps, mine.epochs = steps, 0.0
    if shared is not None:
        if shared.cache and cacheable(c, mine):
            mine.teacher.cache = shared.cache
        if seed in shared.starts and not any(key.startswith("student.") for key in arm.overrides):
            mine.student.path, mine.student.init = shared.starts[seed], "checkpoint"
    return mine


def cacheable(c: ConfigDict, mine: ConfigDict) -> bool:
    """Whether an arm learns from whole distributions of the study's one teacher."""
    if not needs_teacher(terms_of(mine)):
        return False
    alone = mine.teacher.path not in ("", teachers.AVERAGE)
    same = all(mine.teacher[key] == c.teacher[key] for key in STORED)
    same_text = flatten(mine.data) == flatten(c.data)
    whole = mine.teacher.targets == "hidden" and mine.teacher.init == "checkpoint"
    return (
        alone and same and same_text and whole and not mine.teacher.more and not mine.teacher.cache
    )


def reads_its_own(c: ConfigDict, mine: ConfigDict) -> bool:
    """Whether an arm changes what is read, so that it cannot share what the study has read."""
    own, study = flatten(mine), flatten(c)
    return any(own[key] != study[key] for key in own if key.startswith(READ))


def arm_inputs(
    c: ConfigDict, mine: ConfigDict, inputs: Inputs, references: Teachers | None = None
) -> Inputs:
    """The study's inputs with an arm's own student, and its own teacher where it differs.

    references: the study's teachers with the cache that it has made, which is not opened again.
    """
    found, terms = inputs.teachers, terms_of(mine)
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
    elif references and references.cache and mine.teacher.cache == str(references.cache.directory):
        found = references
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
    c, inputs, mesh = setting.config, setting.inputs, setting.inputs.mesh
    model = bind_config(c, student_config(c, inputs.source), c.student.dtype)
    state, shardings = abstract_state(model, starter(c, setting.recipe), mesh, c.student.shard)
    step = compiled_steps(setting, model, shardings).train_step
    _, teacher_params = teachers.teach_of(c, inputs.teachers, setting.recipe.terms, model, mesh)
    _, batch = next(data.training_batches(c, setting.training.rows, mesh, 0))
    return program_flops(step, state, teacher_params, batch, jax.random.key(0))
