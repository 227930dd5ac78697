"""How evenly routers spread tokens over experts: a term of the loss, and a sign of health."""

import jax.numpy as jnp

from distill_jax.types import Array, Routing


def load_balance(routing: Routing) -> Array:
    """E times the sum over experts of (tokens per expert / tokens) * (mean probability).

    Switch Transformer, 2101.03961, equation (4), with the k experts of a token counted each, and
    the means taken over the tokens of all blocks together, as transformers takes them. It is k
    where all experts have as many tokens, and at most E where one has all. Its gradient flows
    through the probabilities alone.

    >>> even = Routing(jnp.full((1, 4), 8.0), jnp.full((1, 4), 4.0), jnp.full(1, 16.0))
    >>> float(load_balance(even))
    2.0
    """
    tokens = jnp.maximum(jnp.sum(routing.tokens_L), 1.0)
    chosen_E = jnp.sum(routing.chosen_LE, 0) / tokens
    probability_E = jnp.sum(routing.probability_LE, 0) / tokens
    return len(chosen_E) * jnp.sum(chosen_E * probability_E)


def busiest_share(routing: Routing) -> Array:
    """The largest share that one expert has of the tokens sent by its block's router.

    1/E where all experts of all blocks have as many; k experts of a token count each.
    """
    sent_L1 = jnp.maximum(jnp.sum(routing.chosen_LE, 1, keepdims=True), 1.0)
    return jnp.max(routing.chosen_LE / sent_L1)
