"""A smaller student out of a larger model: blocks and feed-forward neurons are removed, and the
matrices behind the kept neurons are refitted so that the residual stream stays where it was.

Two streams of calibration activations run through the blocks side by side: that of the whole model
and that of the pruned one. For each kept block the pruned stream x (after attention) and its
neuron activations A are known, and the whole model's stream y behind the block and behind all the
dropped blocks that follow it. Kept neurons and their output matrix W minimise

  sum over tokens |x + A W - y|² + ridge |W - W_original|²,  rows of removed neurons being 0,

so that a kept block takes over what the dropped ones did. Removing neuron j costs
|W_j|² / (H^-1)_jj at the optimum, H = A'A + ridge: optimal brain surgeon (Hassibi and Stork 1993)
on a layer's output, as in 2203.07259. Importance by activation and by loss: Minitron, 2407.14679.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import Model
from distill_jax.models.context import local_flags
from distill_jax.models.prune_blocks import BLOCK_CRITERIA, SummedNll
from distill_jax.types import Batch, Params, UserError

ROUNDS = 16  # of removal with the criterion `reconstruction`; scores are renewed in between


class PruneOptions(NamedTuple):
    """The `student.prune` part of a config; meanings stand in configs/base.py."""

    blocks: int
    neurons: int
    block_criterion: str
    neuron_criterion: str
    refit: bool
    ridge: float


class Statistics(NamedTuple):
    """Sums over the calibration tokens of one block, in float64 on the host."""

    gram_FF: np.ndarray  # A'A
    target_FD: np.ndarray  # A'(y - x)
    absolute_F: np.ndarray  # |A|
    tokens: float


def prune(
    model: Model,
    params: Params,
    batches: Sequence[Batch],
    options: PruneOptions,
    summed_nll: SummedNll,
) -> tuple[ModelConfig, Params, list[int]]:
    """The pruned config and host parameters, and which blocks were kept.

    Raises UserError where more is to be kept than there is, or nothing.
    """
    config = model.config
    blocks = _kept("blocks", options.blocks, config.blocks)
    neurons = _kept("neurons", options.neurons, config.neurons)
    kept = BLOCK_CRITERIA[options.block_criterion](model, params, batches, blocks, summed_nll)
    layers = _refitted_blocks(model, params, batches, kept, neurons, options)
    pruned = {
        **{name: np.asarray(leaf) for name, leaf in params.items() if name != "blocks"},
        "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *layers),
    }
    flags = config.local_blocks and tuple(config.local_blocks[i] for i in kept)
    smaller = dataclasses.replace(config, blocks=blocks, neurons=neurons, local_blocks=flags)
    return smaller, pruned, kept


def _kept(name: str, wanted: int, present: int) -> int:
    if not 0 <= wanted <= present:
        raise UserError(
            f"student.prune.{name} is {wanted} and the model has {present}:"
            f" use a number from 1 to {present}, or 0 for all"
        )
    return wanted or present


def _refitted_blocks(model, params, batches, kept, neurons, options):
    """Walks both streams through the blocks; host parameters of each kept block."""
    config, flags = model.config, local_flags(model.config)
    layer = lambda i: jax.tree.map(lambda leaf: leaf[i], params["blocks"])
    run = _programs(model)
    contexts = [model.context(b.segment_BT, b.position_BT) for b in batches]
    masks = [jnp.asarray(b.segment_BT > 0, jnp.float32) for b in batches]
    whole = [run.embed(params, b.tokens_BT) for b in batches]
    small = list(whole)
    layers, upcoming = [], [*kept[1:], config.blocks]
    for i in range(kept[0]):
        whole = [run.block(layer(i), x, c, flags[i]) for x, c in zip(whole, contexts, strict=True)]
    for index, following in zip(kept, upcoming, strict=True):
        for i in range(index, following):
            whole = [
                run.block(layer(i), x, c, flags[i]) for x, c in zip(whole, contexts, strict=True)
            ]
        block = layer(index)
        small = [
            run.attend(block, x, c, flags[index]) for x, c in zip(small, contexts, strict=True)
        ]
        if neurons < config.neurons or options.refit:
            inputs = zip(small, whole, masks, strict=True)
            statistics = _statistics(run, block, inputs)
            block = _smaller_feed_forward(config, block, statistics, neurons, options)
        small = [run.feed_forward(block, x) for x in small]
        layers.append(jax.tree.map(np.asarray, block))
    return layers


class _Programs(NamedTuple):
    """The jitted pieces of a pass, each for one block."""

    embed: Callable
    block: Callable
    attend: Callable
    feed_forward: Callable
    sums: Callable


def _programs(model: Model) -> _Programs:
    whole_target = not model.config.post_norms

    def block(params, x_BTD, context, local):
        one = model.block(params)
        return one.feed_forward(one.attend(x_BTD, context, local))

    def sums(params, x_BTD, y_BTD, mask_BT):
        a_BTF = model.block(params).neuron_activations(x_BTD).astype(jnp.float32)
        a_BTF = jnp.where(mask_BT[..., None] > 0, a_BTF, 0.0)
        # Behind a second norm the output is not linear in W: keep the half's own output instead.
        own = a_BTF @ params["feed_forward"]["down"].astype(jnp.float32)
        goal = (y_BTD - x_BTD).astype(jnp.float32) if whole_target else own
        gram = jnp.einsum("btf,btg->fg", a_BTF, a_BTF)
        target = jnp.einsum("btf,btd->fd", a_BTF, goal)
        return gram, target, jnp.sum(jnp.abs(a_BTF), (0, 1)), jnp.sum(mask_BT)

    return _Programs(
        embed=jax.jit(model.embed),
        block=jax.jit(block),
        attend=jax.jit(lambda params, x, c, local: model.block(params).attend(x, c, local)),
        feed_forward=jax.jit(lambda params, x: model.block(params).feed_forward(x)),
        sums=jax.jit(sums),
    )


def _statistics(run: _Programs, block: Params, inputs) -> Statistics:
    parts = [run.sums(block, *each) for each in inputs]
    return Statistics(
        *(sum(np.asarray(x, np.float64) for x in part) for part in zip(*parts, strict=True))
    )


def _smaller_feed_forward(config, block, statistics, neurons, options):
    """The block with `neurons` neurons, their output matrix refitted where that is wanted."""
    half = block["feed_forward"]
    original_FD = np.asarray(half["down"], np.float64)
    problem = _Problem.of(statistics, original_FD, options.ridge)
    choose = NEURON_CRITERIA[options.neuron_criterion]
    keep_F = np.sort(choose(statistics, problem, original_FD, neurons))
    down_FD = problem.restricted(keep_F) if options.refit else original_FD[keep_F]
    dtype = half["down"].dtype
    smaller = {
        **half,
        "gate": half["gate"][:, keep_F],
        "up": half["up"][:, keep_F],
        "down": jnp.asarray(down_FD, dtype),
    }
    return {**block, "feed_forward": smaller}


class _Problem(NamedTuple):
    """The ridge regression of a block's output matrix: H W = right side."""

    hessian_FF: np.ndarray
    right_FD: np.ndarray

    @classmethod
    def of(cls, statistics: Statistics, original_FD: np.ndarray, ridge: float) -> "_Problem":
        """`ridge` is a share of the mean squared activation."""
        gram = statistics.gram_FF / statistics.tokens
        strength = ridge * np.trace(gram) / len(gram)
        right = statistics.target_FD / statistics.tokens + strength * original_FD
        return cls(gram + strength * np.eye(len(gram)), right)

    def restricted(self, keep_F: np.ndarray) -> np.ndarray:
        """The best matrix of the kept neurons, [kept, D]."""
        return np.linalg.solve(self.hessian_FF[np.ix_(keep_F, keep_F)], self.right_FD[keep_F])


def by_reconstruction(statistics, problem, original_FD, neurons):
    """Removes, a share a round, the neurons whose removal costs the least squared error."""
    alive = np.arange(len(original_FD))
    inverse = np.linalg.inv(problem.hessian_FF)
    weights = inverse @ problem.right_FD
    step = max(1, -(-(len(alive) - neurons) // ROUNDS))
    while len(alive) > neurons:
        cost = np.sum(weights**2, 1) / np.diag(inverse)
        order = np.argsort(cost)
        count = min(step, len(alive) - neurons)
        out, stay = order[:count], np.sort(order[count:])
        # Forcing the rows `out` to 0 moves the others along the inverse Hessian's columns.
        gain = np.linalg.solve(inverse[np.ix_(out, out)], inverse[np.ix_(out, stay)]).T
        weights = weights[stay] - gain @ weights[out]
        inverse = inverse[np.ix_(stay, stay)] - gain @ inverse[np.ix_(out, stay)]
        alive = alive[stay]
    return alive


def by_contribution(statistics, problem, original_FD, neurons):
    """Root mean square activation times the norm of the neuron's output row."""
    size = np.sqrt(np.diag(statistics.gram_FF)) * np.linalg.norm(original_FD, axis=1)
    return np.argsort(-size, kind="stable")[:neurons]


def by_activation(statistics, problem, original_FD, neurons):
    """Mean absolute activation (Minitron, 2407.14679)."""
    return np.argsort(-statistics.absolute_F, kind="stable")[:neurons]


NEURON_CRITERIA = {
    "reconstruction": by_reconstruction,
    "contribution": by_contribution,
    "activation": by_activation,
}
