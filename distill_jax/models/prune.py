"""A smaller student out of a larger model: fewer blocks, and fewer feed-forward neurons in each.

Calibration text runs through the blocks as two residual streams side by side: that of the whole
model, and that of the model pruned so far. In each kept block the neurons to keep are chosen
and the matrices behind heads and neurons are refitted, so that the pruned stream approximates
the whole one: after the attention half, the whole stream in the middle of that block; after the
feed-forward half, the whole stream before the next kept block. So a kept block also does the work
of the dropped blocks after it. Width and depth: Minitron, 2407.14679.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import Model
from distill_jax.models.block_passes import block_functions
from distill_jax.models.context import block_kinds
from distill_jax.models.prune_blocks import BLOCK_CRITERIA, SummedNll
from distill_jax.models.refit import NEURON_CRITERIA, Sums, ridge_of
from distill_jax.models.transformer import second_input
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
    """As many batches as hold about `tokens` positions; of the first alone, as many rows as do."""
    rows, length = batches[0].tokens_BT.shape
    if (wanted := max(1, round(tokens / length))) >= rows:
        return batches[: max(1, round(tokens / (rows * length)))]
    ways = rows // _rows_per_device(batches[0])
    wanted = -(-wanted // ways) * ways
    return [jax.tree.map(lambda x: x[:wanted], batches[0])]


def _rows_per_device(batch: Batch) -> int:
    tokens_BT = batch.tokens_BT
    if not isinstance(tokens_BT, jax.Array):
        return len(tokens_BT)
    return tokens_BT.sharding.shard_shape(tokens_BT.shape)[0]


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
    config, kinds, run = model.config, block_kinds(model.config), block_functions(model)
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
        activations = [run.activations(block, s.inputs[1]) for s in streams]
        sums = _total(
            run.feed_forward_sums(block, a, s.small_BTD, s.whole_BTD, s.mask_BT)
            for a, s in zip(activations, streams, strict=True)
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
        back = lambda a, s: run.feed_forward_back(block, a, keep_F, s.small_BTD)
        after = [back(a, s) for a, s in zip(activations, streams, strict=True)]
    else:
        after = [run.feed_forward(block, s.inputs[1], s.small_BTD) for s in streams]
    moved = zip(streams, after, strict=True)
    return block, [s._replace(small_BTD=x_BTD, inputs=None) for s, x_BTD in moved]


def _total(parts) -> Sums:
    """Adds the sums of all batches in float64."""
    parts = iter(parts)
    total = [np.array(x, np.float64) for x in next(parts)]
    for part in parts:
        for into, x in zip(total, part, strict=True):
            into += np.asarray(x)
    return Sums(*total)
