"""What a run minimises and how it steps: the loss, optimizer and jitted step of a config."""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax.config import at_least
from distill_jax.losses.divergences import DIVERGENCES, check_parameters
from distill_jax.losses.terms import ADAPTIVE, CROSS_ENTROPY, Plan, Term, make_plan
from distill_jax.models.binding import Model
from distill_jax.objective import Teach, objective
from distill_jax.optim import OptimOptions, make_optimizer, make_schedule
from distill_jax.step import TrainStep, make_train_step
from distill_jax.types import TrainState, UserError

LARGEST = float(jnp.finfo(jnp.float32).max)
UNKNOWN = 10**9  # stands for a number of steps that is not known yet


class Recipe(NamedTuple):
    """The loss and the optimizer of a run, made once from its config.

    terms are those of the config; plan gives those of a step. learning_rate is by the step.
    """

    terms: tuple[Term, ...]
    plan: Plan
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule


def make_recipe(c: ConfigDict) -> Recipe:
    """The recipe of a config. Raises UserError for what no loss or optimizer can be made of.

    Where config.epochs are given, their steps are not known before the text is read: the recipe is
    then good for checks and shapes alone. setup/steps.py makes steps of them.
    """
    terms = terms_of(c)
    steps = at_least("steps", c.steps, 1) if not c.epochs else UNKNOWN
    schedules = {term.name: c.terms[term.name].schedule for term in terms}
    options = {name: {k: c.terms[name][k] for k in a.options} for name, a in ADAPTIVE.items()}
    o = _optim_options(c)
    peak = o.muon_learning_rate if o.name == "muon" else o.learning_rate
    optimizer = make_optimizer(o, steps)
    plan = make_plan(terms, steps, schedules, options)
    return Recipe(terms, plan, optimizer, make_schedule(o, peak, steps))


def terms_of(c: ConfigDict) -> tuple[Term, ...]:
    """The terms with a weight, now or later. Raises UserError for meaningless numbers, or none."""
    terms = []
    for name, options in c.terms.items():
        at_least(f"terms.{name}.weight", options.weight, 0)
        if options.weight > LARGEST:
            raise UserError(
                f"config.terms.{name}.weight is {options.weight:g}, more than float32 holds: use a"
                " smaller weight, such as 1"
            )
        if options.weight == 0 and options.schedule == "constant":
            continue
        if name == CROSS_ENTROPY:
            terms.append(Term(name, options.weight))
            continue
        if not options.temperature > 0:
            raise UserError(
                f"config.terms.{name}.temperature is {options.temperature}: use more than 0"
            )
        parameters = {key: options[key] for key in DIVERGENCES[name].parameters}
        check_parameters(name, parameters)
        terms.append(Term(name, options.weight, options.temperature, tuple(parameters.items())))
    if not terms:
        raise UserError("every config.terms.*.weight is 0: give one a weight, such as forward_kl 1")
    return tuple(terms)


def _optim_options(c: ConfigDict) -> OptimOptions:
    """The `optim` part of a config, checked where optax would not say what is wrong."""
    for key in ("learning_rate", "muon_learning_rate", "final_fraction", "weight_decay"):
        at_least(f"optim.{key}", c.optim[key], 0)
    values = {name: c.optim[name] for name in OptimOptions._fields}
    return OptimOptions(**values | {"frozen": tuple(c.optim.frozen)})


def train_step_of(
    c: ConfigDict,
    recipe: Recipe,
    student: Model,
    teach: Teach | None,
    mesh: Mesh,
    shardings: TrainState | None,
) -> TrainStep:
    """The jitted step of a run, not yet compiled."""
    block_tokens = c.model.block_tokens
    loss = partial(objective, student=student, teach=teach, block_tokens=block_tokens, mesh=mesh)
    return make_train_step(
        loss,
        recipe.optimizer,
        recipe.plan,
        microbatches=c.data.microbatches,
        frozen=tuple(c.optim.frozen),
        average_decay=c.teacher.average_decay,
        state_shardings=shardings,
    )
