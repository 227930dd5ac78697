"""The loss and the optimizer of a config."""

from ml_collections import ConfigDict

from distill_jax.config import at_least
from distill_jax.losses.divergences import DIVERGENCES, check
from distill_jax.losses.schedules import ADAPTIVE, Plan, make_plan
from distill_jax.losses.terms import CROSS_ENTROPY, Term
from distill_jax.optim import OptimOptions
from distill_jax.types import UserError


def terms_of(c: ConfigDict) -> tuple[Term, ...]:
    """The terms with a weight, now or later. Raises UserError for meaningless numbers, or none."""
    terms = []
    for name, options in c.terms.items():
        at_least(f"terms.{name}.weight", options.weight, 0)
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
        check(name, parameters)
        terms.append(Term(name, options.weight, options.temperature, tuple(parameters.items())))
    if not terms:
        raise UserError("every config.terms.*.weight is 0: give one a weight, such as forward_kl 1")
    return tuple(terms)


def plan_of(c: ConfigDict, terms: tuple[Term, ...]) -> Plan:
    """How the terms change over the run. Raises UserError for a text that is no schedule."""
    schedules = {term.name: c.terms[term.name].schedule for term in terms}
    options = {
        name: {key: c.terms[name][key] for key in adaptive.options}
        for name, adaptive in ADAPTIVE.items()
    }
    return make_plan(terms, c.steps, schedules, options)


def optim_options(c: ConfigDict) -> OptimOptions:
    """The `optim` part of a config, checked where optax would not say what is wrong."""
    for key in ("learning_rate", "muon_learning_rate", "final_fraction", "weight_decay"):
        at_least(f"optim.{key}", c.optim[key], 0)
    values = {name: c.optim[name] for name in OptimOptions._fields}
    return OptimOptions(**values | {"frozen": tuple(c.optim.frozen)})


def fit_to_steps(c: ConfigDict, base: ConfigDict) -> tuple[ConfigDict, tuple[str, ...]]:
    """The config whose defaults fit a short run, and a line on each that was made smaller.

    Warm-up becomes a tenth of the steps, the fall of wsd a fifth of what follows the warm-up. What
    the user has changed stays, and is an error where it does not fit.
    """
    fitted, lines = c.copy_and_resolve_references(), []
    used = ["warmup_steps"] + ["decay_steps"] * (c.optim.schedule == "wsd")
    for key in used:
        if key == "warmup_steps":
            most, instead = c.steps - 1, c.steps // 10
        else:
            most = c.steps - fitted.optim.warmup_steps
            instead = max(1, most // 5)
        default = base.optim[key]
        if c.steps > 0 and c.optim[key] == default > most:
            fitted.optim[key] = instead
            lines.append(
                f"config.optim.{key} is {instead}: its default {default} does not fit"
                f" {c.steps} steps"
            )
    return fitted, tuple(lines)
