"""The student at its start: read, random, or pruned out of a larger model."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax.config import at_least, choose
from distill_jax.losses.fused import linear_divergence
from distill_jax.losses.terms import CROSS_ENTROPY, Term
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import Model
from distill_jax.models.prune import PruneOptions, prune, pruned_config
from distill_jax.models.prune_blocks import BLOCK_CRITERIA
from distill_jax.models.refit import NEURON_CRITERIA
from distill_jax.setup.models import Loaded, Source, bind_config, check_length, place_params
from distill_jax.types import Batch, Params

INITS = ("checkpoint", "random", "prune")


def check(c: ConfigDict) -> None:
    """Raises UserError for what can be seen to be wrong before a model is read."""
    choose("student.init", c.student.init, INITS)
    p = c.student.prune
    choose("student.prune.block_criterion", p.block_criterion, BLOCK_CRITERIA)
    choose("student.prune.neuron_criterion", p.neuron_criterion, NEURON_CRITERIA)
    least = {"ridge": 0, "attention_ridge": 0, "calibration_tokens": 1, "ranking_tokens": 1}
    for key, value in least.items():
        at_least(f"student.prune.{key}", p[key], value)


def make_student(
    c: ConfigDict,
    source: Source,
    teacher: Loaded | None,
    mesh: Mesh,
    calibration: Callable[[], list[Batch]],
) -> tuple[Model, Params]:
    """The student's decoder and its first parameters, on the mesh.

    calibration() gives the batches that pruning measures importance on.
    """
    config, read = source
    check_length(c, config, "the student")
    model = bind_config(c, config, c.student.dtype)
    if c.student.init == "random":
        return model, place_params(model, model.init(jax.random.key(c.seed)), mesh)
    if read is not None:
        params = place_params(model, read.params, mesh)
    else:
        params = jax.tree.map(lambda x: x.astype(c.student.dtype), teacher.params)
    if c.student.init == "checkpoint":
        return model, params
    smaller, pruned, _ = prune(model, params, calibration(), prune_options(c), summed_nll(c))
    model = bind_config(c, smaller, c.student.dtype)
    return model, place_params(model, pruned, mesh)


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
