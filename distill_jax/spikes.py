"""Updates that are finite and far above what is usual, which PaLM's training had to skip.

An update is a spike if both are so: its gradient norm is above `factor` times the median of the
last W updates, and its loss more than twice, and LEAST nats above, the largest of theirs. Neither
alone is a fault: clipping bounds a single large gradient, as a few rare tokens make it, and the
loss of one batch of hard text may be twice that of others. Cf. 2204.02311, section 5.1.

Losses of the past are weighted as the terms are at the present step, so that a term whose weight
rises is no spike. Refused updates are not among the last W: what is usual never follows them. It
follows a loss that rises slowly.
"""

from collections.abc import Mapping

import jax.numpy as jnp

from distill_jax.losses.terms import CROSS_ENTROPY, Term, of_tokens
from distill_jax.types import Array, Mean, Recent

WINDOW = 64  # updates that tell what is usual, W
ENOUGH = 16  # updates, before which nothing is usual yet
TIMES = 2.0  # the largest loss of the window
LEAST = 0.1  # nats per token; below it, a loss is rounding, or the student as good as its teacher


def no_updates(terms: tuple[Term, ...]) -> Recent:
    """The window before the first update. No two arrays share a buffer."""
    empty = lambda: jnp.zeros(WINDOW, jnp.float32)
    return Recent(jnp.int32(0), empty(), {metric_of(term): empty() for term in of_tokens(terms)})


def metric_of(term: Term) -> str:
    """The metric that is a term's mean per token, at temperature 1."""
    return "nll" if term.name == CROSS_ENTROPY else term.name


def is_spike(
    recent: Recent,
    norm: Array,
    means: Mapping[str, Mean],
    terms: tuple[Term, ...],
    factor: float,
) -> Array:
    """Whether an update with this gradient norm and these means is a spike, as a bool scalar.

    factor: of the median gradient norm; 0: nothing is a spike.
    """
    if not factor:
        return jnp.bool_(False)
    weights = [jnp.asarray(term.weight, jnp.float32) for term in of_tokens(terms)]
    whole = jnp.maximum(sum(weights), 1e-9)
    names = [metric_of(term) for term in of_tokens(terms)]
    weigh = lambda values: sum(w * values[n] for w, n in zip(weights, names, strict=True)) / whole
    loss, losses_W = weigh(_values(means)), weigh(recent.means_W)
    known_W = jnp.arange(WINDOW) < recent.made
    largest = jnp.max(jnp.where(known_W, losses_W, 0.0))
    usual = jnp.nanmedian(jnp.where(known_W, recent.norm_W, jnp.nan))
    high = (loss > TIMES * largest) & (loss > largest + LEAST)
    return (recent.made >= ENOUGH) & high & (norm > factor * usual)


def followed(recent: Recent, norm: Array, means: Mapping[str, Mean]) -> Recent:
    """The window after an update that was made, in the place of its oldest one.

    A step in which no token counts made none.
    """
    counted = means["nll"].count > 0
    put = lambda x_W, value: x_W.at[recent.made % WINDOW].set(
        jnp.where(counted, value, x_W[recent.made % WINDOW])
    )
    values = _values(means)
    return Recent(
        recent.made + counted.astype(jnp.int32),
        put(recent.norm_W, norm),
        {name: put(x_W, values[name]) for name, x_W in recent.means_W.items()},
    )


def _values(means):
    return {name: mean.total / jnp.maximum(mean.count, 1e-9) for name, mean in means.items()}
