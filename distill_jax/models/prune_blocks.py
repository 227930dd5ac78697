"""Which blocks of a model to keep.

A criterion(model, params, batches, keep, summed_nll, advance) returns the indices of the `keep`
kept blocks, in order. summed_nll(hidden_BTD, unembed, batch) is the loss on the labels, summed over
tokens. advance is told of every batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.binding import Model
from distill_jax.models.context import local_flags
from distill_jax.types import COMPILING, Array, Batch, Params, Unembed

SummedNll = Callable[[Array, Unembed, Batch], Array]


def by_loss(model, params, batches, keep, summed_nll, advance) -> list[int]:
    """Drops the blocks whose individual removal raises the loss on labels least (2407.14679)."""
    return _best(_summed(_loss_without(model, summed_nll), params, batches, advance), keep)


def by_influence(model, params, batches, keep, summed_nll, advance) -> list[int]:
    """Drops the blocks with the least 1 - cosine(input, output) (ShortGPT, 2403.03853)."""

    @jax.jit
    def influence(params, batch):
        before = model.embed(params, batch.tokens_BT)[None]
        layers = model.apply(
            params, batch.tokens_BT, batch.segment_BT, batch.position_BT, keep_layers=True
        ).layers_LBTD
        inputs = jnp.concatenate([before, layers[:-1]]).astype(jnp.float32)
        outputs = layers.astype(jnp.float32)
        norms = jnp.linalg.norm(inputs, axis=-1) * jnp.linalg.norm(outputs, axis=-1)
        turned = 1 - jnp.sum(inputs * outputs, -1) / jnp.maximum(norms, 1e-12)
        return jnp.sum(jnp.where(batch.segment_BT > 0, turned, 0.0), (1, 2))

    return _best(_summed(influence, params, batches, advance), keep)


def _summed(costs, params, batches, advance) -> np.ndarray:
    """The sum over all batches of what the jitted costs(params, batch) gives."""
    advance(f"{COMPILING} the ranking of blocks", 0, 0)
    costs.lower(params, batches[0]).compile()
    advance("ranking batches", 0, 0)
    total = np.zeros((), np.float64)
    for i, batch in enumerate(batches, 1):
        total = total + np.asarray(costs(params, batch))
        advance("ranking batches", i, len(batches))
    return total


def _best(costs: np.ndarray, keep: int) -> list[int]:
    return sorted(np.argsort(-costs, kind="stable")[:keep].tolist())


def _loss_without(model: Model, summed_nll: SummedNll) -> Callable[[Params, Batch], Array]:
    """Builds f(params, batch) -> [L]: the summed loss with each block left out.

    The blocks before the removed one run only once: the stream that enters block i is the
    start of the pass without it.
    """
    flags = jnp.asarray(local_flags(model.config))
    count = model.config.blocks

    @jax.jit
    def run(params, batch):
        context = model.context(batch.segment_BT, batch.position_BT)

        def block(i, x_BTD):
            one = model.block(jax.tree.map(lambda leaf: leaf[i], params["blocks"]))
            return one.feed_forward(one.attend(x_BTD, context, flags[i]))

        def without(x_BTD, i):
            rest_BTD = jax.lax.fori_loop(i + 1, count, block, x_BTD)
            hidden_BTD = model.finish(params, rest_BTD)
            return block(i, x_BTD), summed_nll(hidden_BTD, model.unembed(params), batch)

        return jax.lax.scan(without, model.embed(params, batch.tokens_BT), jnp.arange(count))[1]

    return run


BLOCK_CRITERIA = {"loss": by_loss, "influence": by_influence}
