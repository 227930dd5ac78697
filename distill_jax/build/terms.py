"""The loss and the optimizer of a config."""

from ml_collections import ConfigDict

from distill_jax.config import at_least
from distill_jax.losses.divergences import DIVERGENCES
from distill_jax.losses.fused import CROSS_ENTROPY, Term
from distill_jax.optim import OptimOptions
from distill_jax.types import UserError


def terms_of(c: ConfigDict) -> tuple[Term, ...]:
    """The terms with a weight. Raises UserError for meaningless numbers and for no term."""
    terms = []
    for name, options in c.terms.items():
        if at_least(f"terms.{name}.weight", options.weight, 0) == 0:
            continue
        if name == CROSS_ENTROPY:
            terms.append(Term(name, options.weight))
            continue
        if not options.temperature > 0:
            raise UserError(
                f"config.terms.{name}.temperature is {options.temperature}: use more than 0"
            )
        divergence = DIVERGENCES[name]
        parameters = {key: options[key] for key in divergence.parameters}
        divergence.phi(0.0, 0.0, 1.0, 1.0, **parameters)  # refuses what means nothing, early
        terms.append(Term(name, options.weight, options.temperature, tuple(parameters.items())))
    if not terms:
        raise UserError("every config.terms.*.weight is 0: give one a weight, such as forward_kl 1")
    return tuple(terms)


def optim_options(c: ConfigDict) -> OptimOptions:
    """The `optim` part of a config, checked where optax would not say what is wrong."""
    for key in ("learning_rate", "muon_learning_rate", "final_fraction", "weight_decay"):
        at_least(f"optim.{key}", c.optim[key], 0)
    values = {name: c.optim[name] for name in OptimOptions._fields}
    return OptimOptions(**values | {"frozen": tuple(c.optim.frozen)})
