"""The pieces of a pass that goes block by block, each jitted, and the sums that a refit needs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.models.binding import Model
from distill_jax.models.transformer import Block
from distill_jax.types import Array

PANELS = 4  # of the upper half of a symmetric product


class BlockFunctions(NamedTuple):
    """The jitted pieces of a pass, each for one block."""

    embed: Callable
    context: Callable
    block: Callable
    attend: Callable
    feed_forward: Callable
    head_outputs: Callable
    attention_back: Callable
    activations: Callable
    feed_forward_back: Callable
    attention_sums: Callable
    feed_forward_sums: Callable


def block_functions(model: Model) -> BlockFunctions:
    """Those of a model; compiled when they are first called."""
    call = lambda function: jax.jit(lambda params, *xs: function(model.block(params), *xs))

    def sums(a_BTF, x_BTD, y_BTD, mask_BT, matrix_FD, bias_D):
        a_BTF = jnp.where(mask_BT[..., None] > 0, a_BTF.astype(jnp.float32), 0.0)
        goal_BTD = (y_BTD - x_BTD).astype(jnp.float32) / model.config.residual_scale
        if bias_D is not None:
            goal_BTD -= bias_D
        if model.config.post_norms:
            # With a norm after W the half is not linear in W: the target is the output of W.
            goal_BTD = a_BTF @ matrix_FD.astype(jnp.float32)
        gram_FF = gram(a_BTF)
        target = jnp.einsum("btf,btd->fd", a_BTF, goal_BTD)
        return gram_FF, target, jnp.sum(jnp.abs(a_BTF), (0, 1)), jnp.sum(mask_BT)

    def attention_sums(params, a_BTF, x_BTD, y_BTD, mask_BT):
        half = params["attention"]
        return sums(a_BTF, x_BTD, y_BTD, mask_BT, half["output"], half.get("output_bias"))

    def feed_forward_sums(params, a_BTF, x_BTD, y_BTD, mask_BT):
        half = params["feed_forward"]
        return sums(a_BTF, x_BTD, y_BTD, mask_BT, half["down"], half.get("down_bias"))

    return BlockFunctions(
        embed=jax.jit(model.embed),
        context=jax.jit(model.context),
        block=call(Block.__call__),
        attend=call(Block.attend),
        feed_forward=call(lambda one, input_BTD, x_BTD: x_BTD + one.feed_forward(input_BTD)),
        head_outputs=call(Block.head_outputs),
        attention_back=call(lambda one, a, x: x + one.attention.project_back(a)),
        activations=call(lambda one, input_BTD: one.feed_forward.activations(input_BTD)),
        feed_forward_back=call(
            lambda one, a, keep_F, x: x + one.feed_forward.project_back(a[..., keep_F])
        ),
        attention_sums=jax.jit(attention_sums),
        feed_forward_sums=jax.jit(feed_forward_sums),
    )


def gram(a_BTF: Array) -> Array:
    """A'A [F, F], of which the part below the diagonal is a copy of that above it.

    Panels of PANELS rows each, right of the diagonal: 5/8 of the operations of one product.
    """
    size = a_BTF.shape[-1]
    step = -(-size // PANELS)
    panel = lambda i: jnp.einsum("btf,btg->fg", a_BTF[..., i : i + step], a_BTF[..., i:])
    panels = [jnp.pad(panel(i), ((0, 0), (i, 0))) for i in range(0, size, step)]
    upper_FF = jnp.triu(jnp.concatenate(panels))
    return upper_FF + jnp.triu(upper_FF, 1).T
