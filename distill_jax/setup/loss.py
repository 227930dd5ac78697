"""What a run minimises and how it steps: the loss, optimizer and jitted step of a config."""

from functools import partial
from typing import NamedTuple

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax.losses.divergences import DIVERGENCES, check_parameters
from distill_jax.losses.terms import (
    ADAPTIVE,
    CROSS_ENTROPY,
    LOAD_BALANCE,
    Plan,
    Term,
    make_plan,
    of_tokens,
)
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import Model
from distill_jax.objective import Teach, objective
from distill_jax.optim import OptimOptions, make_optimizer, make_schedule
from distill_jax.step import TrainStep, make_train_step
from distill_jax.types import TrainState, UserError

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
    if not c.epochs and c.steps < 1:
        raise UserError("config.steps is 0, and so is config.epochs: give one of them")
    steps = UNKNOWN if c.epochs else c.steps
    schedules = {term.name: c.terms[term.name].schedule for term in terms}
    options = {name: {k: c.terms[name][k] for k in a.options} for name, a in ADAPTIVE.items()}
    o = _optim_options(c)
    peak = o.muon_learning_rate if o.name == "muon" else o.learning_rate
    optimizer = make_optimizer(o, steps)
    plan = make_plan(terms, steps, schedules, options)
    return Recipe(terms, plan, optimizer, make_schedule(o, peak, steps))


def terms_of(c: ConfigDict) -> tuple[Term, ...]:
    """The terms with a weight, now or later. Raises UserError for wrong parameters, or no term."""
    terms = []
    for name, options in c.terms.items():
        if options.weight == 0 and options.schedule == "constant":
            continue
        if name in (CROSS_ENTROPY, LOAD_BALANCE):
            terms.append(Term(name, options.weight))
            continue
        parameters = {key: options[key] for key in DIVERGENCES[name].parameters}
        check_parameters(name, parameters)
        terms.append(Term(name, options.weight, options.temperature, tuple(parameters.items())))
    if not of_tokens(tuple(terms)):
        raise UserError(
            f"every config.terms.*.weight{' but load_balance' * bool(terms)} is 0: give one a"
            " weight, such as forward_kl 1"
        )
    return tuple(terms)


def check_experts(c: ConfigDict, terms: tuple[Term, ...], config: ModelConfig) -> None:
    """Raises UserError where the load of a student without experts is to be balanced."""
    if not config.experts and any(term.name == LOAD_BALANCE for term in terms):
        raise UserError(
            f"config.terms.load_balance.weight is {c.terms.load_balance.weight:g}, and the student"
            " has no experts: leave it 0, or give a student that has some"
        )


def _optim_options(c: ConfigDict) -> OptimOptions:
    """The `optim` part of a config."""
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
    """The jitted step of a run, not yet compiled. Raises UserError as check_experts does."""
    check_experts(c, recipe.terms, student.config)
    block_tokens = c.model.block_tokens
    loss = partial(objective, student=student, teach=teach, block_tokens=block_tokens, mesh=mesh)
    return make_train_step(
        loss,
        recipe.optimizer,
        recipe.plan,
        microbatches=c.data.microbatches,
        frozen=tuple(c.optim.frozen),
        average_decay=c.teacher.average_decay,
        spike_factor=c.optim.spike_factor,
        state_shardings=shardings,
    )
