"""A training run that goes on with other steps than it was planned for."""

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.setup.loss import Recipe, make_recipe
from distill_jax.setup.steps import fit_to_steps
from distill_jax.types import UserError


def fitted(c: ConfigDict, base: ConfigDict, directory: Path) -> tuple[ConfigDict, tuple[str, ...]]:
    """The config with defaults that fit its steps, and a line on each.

    A run that goes on with other steps keeps what was fitted to those that it began with.
    """
    run = workdir.kept(directory)
    if run is None or c.job != "train" or c.epochs or run["steps"] == c.steps:
        return fit_to_steps(c, base)
    begun = c.copy_and_resolve_references()
    begun.steps = run["steps"]
    begun, _ = fit_to_steps(begun, base)
    begun.steps = c.steps
    return begun, ()


def check_steps(c: ConfigDict, directory: Path) -> None:
    """Raises UserError where a run cannot go on to config.steps, if these are known yet."""
    run, trained = workdir.kept(directory), workdir.last_checkpoint(directory)
    if run is None or c.epochs or run["steps"] == c.steps:
        return
    if not trained:
        raise UserError(
            f"config.steps is {c.steps} and {directory}, a run of {run['steps']} steps, has no"
            " checkpoint left to go on from: use another directory"
        )
    if c.steps <= trained:
        raise UserError(
            f"config.steps is {c.steps} and {directory} has trained {trained} steps already: use"
            f" more than {trained}, or another directory"
        )


def told(c: ConfigDict, directory: Path, recipe: Recipe, trained: int) -> Iterator[str]:
    """What other steps than those that a run began with do to its schedules, in lines.

    trained: the steps that it goes on from.
    """
    run = workdir.kept(directory)
    if run is None or run["steps"] == c.steps:
        return
    yield f"config.steps is {c.steps} now, and was {run['steps']}: going on from step {trained}"
    begun = c.copy_and_resolve_references()
    begun.steps = run["steps"]
    before = make_recipe(begun)
    old = float(before.learning_rate(trained - 1))
    new = float(recipe.learning_rate(trained))
    if abs(new - old) <= 1e-6 * abs(old):
        yield f"the learning rate stays {new:.3g} ({c.optim.schedule})"
    else:
        again = f", falling over the last {c.optim.decay_steps} steps" * (c.optim.schedule == "wsd")
        yield (
            f"the schedule {c.optim.schedule} spans {c.steps} steps now{again}: the learning rate"
            f" is {new:.3g} at step {trained + 1}, and was {old:.3g} at step {trained}"
        )
    weights = [
        {term.name: float(term.weight) for term in r.plan.at(step, r.plan.init())}
        for r, step in ((before, trained - 1), (recipe, trained))
    ]
    for name, new in weights[1].items():
        shape = c.terms[name].schedule
        if shape.startswith(("linear", "cosine")):
            yield (
                f"terms.{name}.schedule {shape} spans {c.steps} steps now: the weight is"
                f" {new:.3g} at step {trained + 1}, and was {weights[0][name]:.3g}"
            )
