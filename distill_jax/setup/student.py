"""The student at its start: read, random, or pruned out of a larger model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax.config import choose
from distill_jax.losses.fused import linear_divergence
from distill_jax.losses.terms import CROSS_ENTROPY, Term, needs_teacher
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import Model
from distill_jax.models.prune import PruneOptions, prune, pruned_config
from distill_jax.models.prune_blocks import BLOCK_CRITERIA
from distill_jax.models.refit import NEURON_CRITERIA
from distill_jax.setup.models import Loaded, Source, bind_config, check_length, told_of
from distill_jax.setup.placing import place_params
from distill_jax.setup.teachers import AVERAGE
from distill_jax.types import Advance, Batch, Params, UserError, silent

INITS = ("checkpoint", "random", "prune", "copy")
SMALLER = (
    "give a smaller model by --config.student.path=PATH, prune by --config.student.init=prune with"
    " --config.student.prune.blocks=N or .neurons=N, or start a smaller architecture by"
    " --config.student.init=random with --config.student.path=PATH"
)


def check(c: ConfigDict, terms: tuple[Term, ...]) -> None:
    """Raises UserError for what can be seen to be wrong before a model is read."""
    choose("student.init", c.student.init, INITS)
    p = c.student.prune
    choose("student.prune.block_criterion", p.block_criterion, BLOCK_CRITERIA)
    choose("student.prune.neuron_criterion", p.neuron_criterion, NEURON_CRITERIA)
    if not jnp.asarray(c.optim.epsilon, c.student.dtype):
        raise UserError(
            f"config.optim.epsilon is {c.optim.epsilon}, which is 0 in config.student.dtype"
            f" {c.student.dtype}: give --config.optim.epsilon=1e-7, or use bfloat16 or float32"
        )
    _check_differs(c, terms)


def _check_differs(c: ConfigDict, terms: tuple[Term, ...]) -> None:
    """Raises UserError where the student would start as its own teacher, which it cannot near."""
    s, t = c.student, c.teacher
    if s.init == "prune" and not s.prune.blocks and not s.prune.neurons:
        raise UserError(
            "config.student.init is prune, and student.prune.blocks and .neurons are both 0, which"
            f" keeps everything: {SMALLER}"
        )
    same = s.path == "" or (t.path != "" and _place(s.path) == _place(t.path))
    if s.init == "copy" and not (same and t.path not in ("", AVERAGE)):
        raise UserError(
            "config.student.init is copy, which starts from the teacher's own weights: give"
            " --config.teacher.path=PATH and leave config.student.path empty"
        )
    knows = t.init == "checkpoint" and not t.more and t.path not in ("", AVERAGE)
    if s.init == "checkpoint" and same and knows and needs_teacher(terms):
        raise UserError(
            f"the student would be a copy of its teacher, {t.path}: its loss is 0, and training can"
            f" only make it worse; {SMALLER} (--config.student.init=copy if you want the copy)"
        )


def check_pruned(c: ConfigDict, source: Source) -> None:
    """Raises UserError where pruning would keep all of a model, or more than it has."""
    if c.student.init == "prune" and student_config(c, source) == source.config:
        raise UserError(
            f"config.student.prune keeps all {source.config.blocks} blocks and"
            f" {source.config.neurons} neurons of the model: keep fewer"
        )


def _place(path: str) -> str:
    """A model path such that two of the same directory or file are equal."""
    local = Path(path).expanduser()
    return str(local.resolve()) if local.exists() else path


def make_student(
    c: ConfigDict,
    source: Source,
    teacher: Loaded | None,
    mesh: Mesh,
    calibration: Callable[[], list[Batch]],
    advance: Advance = silent,
) -> tuple[Model, Params]:
    """The student's decoder and its first parameters, on the mesh.

    calibration() gives the batches that pruning measures importance on; advance: told how far the
    reading and the pruning are.
    """
    config, read = source
    check_length(c, config, "the student")
    model = bind_config(c, config, c.student.dtype)
    placed = partial(place_params, mesh=mesh, shard=c.student.shard)
    if c.student.init == "random":
        return model, placed(model, model.init(jax.random.key(c.seed)))
    if read is not None:
        told = told_of(c.student.path or c.teacher.path, advance)
        params = placed(model, read.params, advance=told)
    else:
        params = jax.tree.map(lambda x: x.astype(c.student.dtype), teacher.params)
    if c.student.init in ("checkpoint", "copy"):
        return model, params
    measured = (calibration(), prune_options(c), summed_nll(c))
    smaller, pruned, _ = prune(model, params, *measured, advance=advance)
    model = bind_config(c, smaller, c.student.dtype)
    return model, placed(model, pruned)


def student_config(c: ConfigDict, source: Source) -> ModelConfig:
    """The sizes of the student, before any of its weights are made."""
    if c.student.init != "prune":
        return source.config
    return pruned_config(source.config, prune_options(c))


def prune_options(c: ConfigDict) -> PruneOptions:
    """The `student.prune` part of a config."""
    return PruneOptions(**{name: c.student.prune[name] for name in PruneOptions._fields})


def summed_nll(c: ConfigDict) -> Callable:
    """The loss on the labels that pruning ranks blocks by."""

    def value(hidden_BTD, unembed, batch):
        return linear_divergence(
            hidden_BTD,
            unembed,
            None,
            jnp.asarray(batch.labels_BT),
            jnp.asarray(batch.weight_BT),
            terms=(Term(CROSS_ENTROPY, 1.0),),
            block_tokens=c.model.block_tokens,
        )[0]

    return value
