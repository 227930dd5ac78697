"""Which blocks of a model to keep.

A criterion(model, params, batches, keep, summed_nll, advance) returns the indices of the `keep`
kept blocks, in order. summed_nll(hidden_BTD, unembed, batch) is the loss on the labels, summed over
tokens. advance is told how far it is.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.binding import Model
from distill_jax.models.context import block_kinds
from distill_jax.types import COMPILING, Array, Batch, Unembed

SummedNll = Callable[[Array, Unembed, Batch], Array]


def by_loss(model, params, batches, keep, summed_nll, advance) -> list[int]:
    """Drops the blocks whose individual removal raises the loss on labels least (2407.14679)."""
    count = model.config.blocks
    start, without = _loss_without(model, summed_nll)
    advance(f"{COMPILING} the ranking of blocks", 0, 0)
    streams = start(params, batches[0])
    without.lower(params, batches[0], *streams, 0).compile()
    costs, done = np.zeros(count), 0
    for batch in batches:
        context, x_BTD = start(params, batch)
        for i in range(count):
            x_BTD, nll = without(params, batch, context, x_BTD, i)
            costs[i] += float(nll)
            done += count - i
            advance("ranking, blocks run", done, len(batches) * count * (count + 1) // 2)
    return _best(costs, keep)


def by_influence(model, params, batches, keep, summed_nll, advance) -> list[int]:
    """Drops the blocks with the least 1 - cosine(input, output) (ShortGPT, 2403.03853)."""

    @jax.jit
    def influence(params, batch):
        before = model.embed(params, batch.tokens_BT, batch.position_BT)[None]
        layers = model.apply(
            params, batch.tokens_BT, batch.segment_BT, batch.position_BT, keep_layers=True
        ).layers_LBTD
        inputs = jnp.concatenate([before, layers[:-1]]).astype(jnp.float32)
        outputs = layers.astype(jnp.float32)
        norms = jnp.linalg.norm(inputs, axis=-1) * jnp.linalg.norm(outputs, axis=-1)
        turned = 1 - jnp.sum(inputs * outputs, -1) / jnp.maximum(norms, 1e-12)
        return jnp.sum(jnp.where(batch.segment_BT > 0, turned, 0.0), (1, 2))

    advance(f"{COMPILING} the ranking of blocks", 0, 0)
    influence.lower(params, batches[0]).compile()
    costs = np.zeros(model.config.blocks)
    for done, batch in enumerate(batches, 1):
        costs += np.asarray(influence(params, batch))
        advance("ranking, batches", done, len(batches))
    return _best(costs, keep)


def _best(costs: np.ndarray, keep: int) -> list[int]:
    return sorted(np.argsort(-costs, kind="stable")[:keep].tolist())


def _loss_without(model: Model, summed_nll: SummedNll) -> tuple[Callable, Callable]:
    """Builds start(params, batch) -> (context, stream that enters block 0), and
    without(params, batch, context, stream that enters block i, i) -> (the stream after it, the
    summed loss with block i left out), jitted.

    The blocks before the removed one run only once.
    """
    kinds = jnp.asarray(block_kinds(model.config))
    count = model.config.blocks

    @jax.jit
    def start(params, batch):
        context = model.context(batch.segment_BT, batch.position_BT)
        return context, model.embed(params, batch.tokens_BT, batch.position_BT)

    @jax.jit
    def without(params, batch, context, x_BTD, i):
        def block(i, x_BTD):
            one = model.block(jax.tree.map(lambda leaf: leaf[i], params["blocks"]))
            return one(x_BTD, context, kinds[i])

        rest_BTD = jax.lax.fori_loop(i + 1, count, block, x_BTD)
        hidden_BTD = model.finish(params, rest_BTD)
        return block(i, x_BTD), summed_nll(hidden_BTD, model.unembed(params), batch)

    return start, without


BLOCK_CRITERIA = {"loss": by_loss, "influence": by_influence}
