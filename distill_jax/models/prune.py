"""A smaller student out of a larger model: fewer blocks, and fewer feed-forward neurons in each.

Calibration text runs through the blocks as two residual streams side by side: that of the whole
model, and that of the model pruned so far. In each kept block the neurons to keep are chosen
and the matrices behind heads and neurons are refitted, so that the pruned stream approximates
the whole one: after the attention half, the whole stream in the middle of that block; after the
feed-forward half, the whole stream before the next kept block. So a kept block also does the work
of the dropped blocks after it. Width and depth: Minitron, 2407.14679.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import Model
from distill_jax.models.context import block_kinds
from distill_jax.models.prune_blocks import BLOCK_CRITERIA, SummedNll
from distill_jax.models.refit import NEURON_CRITERIA, Sums, ridge_of
from distill_jax.models.transformer import Block, second_input
from distill_jax.types import Advance, Array, Batch, Params, UserError, silent

# Parameters whose last axis are the neurons; `down` has them as rows.
_OF_NEURONS = ("gate", "gate_bias", "up", "up_bias")


class PruneOptions(NamedTuple):
    """The `student.prune` part of a config; configs/base.py documents each."""

    blocks: int
    neurons: int
    block_criterion: str
    neuron_criterion: str
    refit: bool
    ridge: float
    attention_ridge: float
    ranking_tokens: int


def prune(
    model: Model,
    params: Params,
    batches: Sequence[Batch],
    options: PruneOptions,
    summed_nll: SummedNll,
    *,
    advance: Advance = silent,
) -> tuple[ModelConfig, Params, list[int]]:
    """The pruned config and host parameters, and the indices of the kept blocks.

    advance: told how far the ranking is, and of every block that is refitted.
    Raises UserError if more is to be kept than the model has.
    """
    config = model.config
    smaller = pruned_config(config, options)
    blocks, neurons = smaller.blocks, smaller.neurons
    kept = list(range(config.blocks))
    if blocks < config.blocks:
        choose = BLOCK_CRITERIA[options.block_criterion]
        some = _first(batches, options.ranking_tokens)
        kept = choose(model, params, some, blocks, summed_nll, advance)
    layers = _walk(model, params, batches, kept, neurons, options, advance)
    pruned = {
        **{name: np.asarray(leaf) for name, leaf in params.items() if name != "blocks"},
        "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *layers),
    }
    return dataclasses.replace(smaller, **_flags(config, kept)), pruned, kept


def pruned_config(config: ModelConfig, options: PruneOptions) -> ModelConfig:
    """The config after pruning, with the flags of the first blocks until blocks are chosen.

    Raises UserError if more is to be kept than the model has, or for fewer neurons of experts.
    """
    blocks = _wanted("blocks", options.blocks, config.blocks)
    if config.experts and 0 < options.neurons < config.neurons:
        raise UserError(
            f"config.student.prune.neurons is {options.neurons}, and the model has"
            f" {config.experts} experts, whose neurons are not pruned: leave it 0, and use"
            " config.student.prune.blocks"
        )
    neurons = _wanted("neurons", options.neurons, config.neurons)
    flags = _flags(config, range(blocks))
    return dataclasses.replace(config, blocks=blocks, neurons=neurons, **flags)


def _flags(config: ModelConfig, kept: Sequence[int]) -> dict[str, tuple[bool, ...] | None]:
    """The fields with one flag per block, of the kept blocks."""
    fields = {"local_blocks": config.local_blocks, "rope_blocks": config.rope_blocks}
    return {name: flags and tuple(flags[i] for i in kept) for name, flags in fields.items()}


def _wanted(name: str, wanted: int, present: int) -> int:
    if not 0 <= wanted <= present:
        raise UserError(
            f"config.student.prune.{name} is {wanted} and the model has {present}:"
            f" use a number from 1 to {present}, or 0 for all"
        )
    return wanted or present


def _first(batches: Sequence[Batch], tokens: int) -> Sequence[Batch]:
    """As many batches as hold about `tokens` positions, and at least one."""
    return batches[: max(1, round(tokens / batches[0].tokens_BT.size))]


class _Stream(NamedTuple):
    """One calibration batch on its way through the blocks.

    inputs  of the feed-forward half, whole and pruned, where an attention half is done
    """

    context: object
    mask_BT: Array
    whole_BTD: Array
    small_BTD: Array
    inputs: tuple[Array, Array] | None = None


def _walk(model, params, batches, kept, neurons, options, advance) -> list[Params]:
    """Both streams through all blocks; the host parameters of each kept block."""
    config, kinds, run = model.config, block_kinds(model.config), _block_functions(model)
    layer = lambda i: jax.tree.map(lambda leaf: leaf[i], params["blocks"])
    advance("the first block, whose parts are compiled", 0, 0)
    streams = []
    for batch in batches:
        x_BTD = run.embed(params, batch.tokens_BT, batch.position_BT)
        context = run.context(batch.segment_BT, batch.position_BT)
        mask_BT = jnp.asarray(batch.segment_BT > 0, jnp.float32)
        streams.append(_Stream(context, mask_BT, x_BTD, x_BTD))

    def move(i, half):
        """Moves the whole stream through block i or one half of it."""
        block = layer(i)
        step = lambda s: half(block, s.whole_BTD, s.context, kinds[i])
        return [s._replace(whole_BTD=step(s)) for s in streams]

    for i in range(kept[0]):
        streams = move(i, run.block)
    layers = []
    for i, following in zip(kept, [*kept[1:], config.blocks], strict=True):
        before, streams = streams, move(i, run.attend)
        block, streams = _attention_half(run, layer(i), streams, kinds[i], options)
        streams = [_with_inputs(config, b, s) for b, s in zip(before, streams, strict=True)]
        whole = layer(i)
        streams = [
            s._replace(whole_BTD=run.feed_forward(whole, s.inputs[0], s.whole_BTD)) for s in streams
        ]
        for dropped in range(i + 1, following):
            streams = move(dropped, run.block)
        block, streams = _feed_forward_half(run, block, streams, neurons, options)
        layers.append(jax.tree.map(np.asarray, block))
        advance("blocks", following, config.blocks)
    return layers


def _with_inputs(config, before: _Stream, after: _Stream) -> _Stream:
    """The streams after an attention half, with what the feed-forward half takes in."""
    whole_BTD = second_input(config, before.whole_BTD, after.whole_BTD)
    return after._replace(
        inputs=(whole_BTD, second_input(config, before.small_BTD, after.small_BTD))
    )


def _attention_half(run, block, streams, kind, options):
    """The block with its heads' output matrix refitted, and the pruned stream after the half."""
    outputs = [run.head_outputs(block, s.small_BTD, s.context, kind) for s in streams]
    if options.refit:
        half = block["attention"]
        sums = _total(
            run.attention_sums(block, a, s.small_BTD, s.whole_BTD, s.mask_BT)
            for a, s in zip(outputs, streams, strict=True)
        )
        original = np.asarray(half["output"], np.float64)
        best = ridge_of(sums, original, options.attention_ridge).solve(np.arange(len(original)))
        block = block | {"attention": half | {"output": jnp.asarray(best, half["output"].dtype)}}
    back = lambda a, s: s._replace(small_BTD=run.attention_back(block, a, s.small_BTD))
    return block, [back(a, s) for a, s in zip(outputs, streams, strict=True)]


def _feed_forward_half(run, block, streams, neurons, options):
    """The block with fewer neurons, and the pruned stream after the half."""
    half = block["feed_forward"]
    # Experts stay as they are: which tokens they see is the router's matter.
    if "down" in half and (options.refit or neurons < half["down"].shape[0]):
        sums = _total(
            run.feed_forward_sums(block, s.inputs[1], s.small_BTD, s.whole_BTD, s.mask_BT)
            for s in streams
        )
        original = np.asarray(half["down"], np.float64)
        ridge = ridge_of(sums, original, options.ridge)
        keep_F = np.arange(len(original))
        if neurons < len(original):
            keep_F = NEURON_CRITERIA[options.neuron_criterion](sums, ridge, original, neurons)
        down_FD = ridge.solve(keep_F) if options.refit else original[keep_F]
        smaller = {name: half[name][..., keep_F] for name in _OF_NEURONS if name in half}
        smaller["down"] = jnp.asarray(down_FD, half["down"].dtype)
        block = block | {"feed_forward": half | smaller}
    step = lambda s: run.feed_forward(block, s.inputs[1], s.small_BTD)
    return block, [s._replace(small_BTD=step(s), inputs=None) for s in streams]


def _total(parts) -> Sums:
    """Adds the sums of all batches in float64."""
    parts = iter(parts)
    total = [np.array(x, np.float64) for x in next(parts)]
    for part in parts:
        for into, x in zip(total, part, strict=True):
            into += np.asarray(x)
    return Sums(*total)


class _BlockFunctions(NamedTuple):
    """The jitted pieces of a pass, each for one block."""

    embed: Callable
    context: Callable
    block: Callable
    attend: Callable
    feed_forward: Callable
    head_outputs: Callable
    attention_back: Callable
    attention_sums: Callable
    feed_forward_sums: Callable


def _block_functions(model: Model) -> _BlockFunctions:
    call = lambda function: jax.jit(lambda params, *xs: function(model.block(params), *xs))

    def sums(a_BTF, x_BTD, y_BTD, mask_BT, matrix_FD, bias_D):
        a_BTF = jnp.where(mask_BT[..., None] > 0, a_BTF.astype(jnp.float32), 0.0)
        goal_BTD = (y_BTD - x_BTD).astype(jnp.float32) / model.config.residual_scale
        if bias_D is not None:
            goal_BTD -= bias_D
        if model.config.post_norms:
            # With a norm after W the half is not linear in W: the target is the output of W.
            goal_BTD = a_BTF @ matrix_FD.astype(jnp.float32)
        gram = jnp.einsum("btf,btg->fg", a_BTF, a_BTF)
        target = jnp.einsum("btf,btd->fd", a_BTF, goal_BTD)
        return gram, target, jnp.sum(jnp.abs(a_BTF), (0, 1)), jnp.sum(mask_BT)

    def attention_sums(params, a_BTF, x_BTD, y_BTD, mask_BT):
        half = params["attention"]
        return sums(a_BTF, x_BTD, y_BTD, mask_BT, half["output"], half.get("output_bias"))

    def feed_forward_sums(params, input_BTD, x_BTD, y_BTD, mask_BT):
        a_BTF = model.block(params).feed_forward.activations(input_BTD)
        half = params["feed_forward"]
        return sums(a_BTF, x_BTD, y_BTD, mask_BT, half["down"], half.get("down_bias"))

    return _BlockFunctions(
        embed=jax.jit(model.embed),
        context=jax.jit(model.context),
        block=call(Block.__call__),
        attend=call(Block.attend),
        feed_forward=call(lambda one, input_BTD, x_BTD: x_BTD + one.feed_forward(input_BTD)),
        head_outputs=call(Block.head_outputs),
        attention_back=call(lambda one, a, x: x + one.attention.project_back(a)),
        attention_sums=jax.jit(attention_sums),
        feed_forward_sums=jax.jit(feed_forward_sums),
    )
