"""Losses over a vocabulary projection that never hold [B, T, V] logits. Shapes: types.py.

Block by block, the final hidden states of student and teacher are multiplied by their heads. They
give probabilities, a loss (losses/token_loss.py) and immediately the gradients of the student's
hidden states and head. So the forward pass of the custom rule computes everything and keeps the
gradients; the backward pass multiplies them by the scalar cotangent. Blocks split the time axis, so
that each row stays on its device.

On a mesh every device runs the scan on its own tokens and its own part of the vocabulary. Inside
the loop only per-token sums cross devices; the gradient of the head is reduced once, at the end.
Labels come shifted from the host, so that no device asks for its neighbour's tokens.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import optimization_barrier
from jax.sharding import Mesh, PartitionSpec

from distill_jax.losses.targets import FixedTargets, distribution, prepare, split_targets
from distill_jax.losses.terms import Term, needs_teacher
from distill_jax.losses.token_loss import token_loss
from distill_jax.losses.tokens import block_length, cut, join, weighted_mean
from distill_jax.losses.vocabulary import capped, exclude_from, head_product, wide
from distill_jax.types import Array, Mean, Targets, Unembed

# Mesh axes of the rows of a batch, of the tokens of a row, and of the vocabulary.
ROWS, SEQUENCE, VOCABULARY = ("data", "fsdp", "expert"), "sequence", "tensor"


class _Static(NamedTuple):
    """Static arguments, apart from those in the terms."""

    block_tokens: int
    head: tuple[float | None, float]  # softcap and scale of the student's head
    shared: int  # vocabulary entries of both student and teacher
    teacher: FixedTargets | None
    mesh: Mesh | None


class _Inputs(NamedTuple):
    """The arrays of a loss. teacher_tokens: arrays [B, T, ...] that are split into blocks."""

    hidden_BTD: Array
    head: tuple[Array, Array | None]
    teacher_tokens: Any
    teacher_heads: Any
    labels_BT: Array
    weight_BT: Array
    terms: tuple[Term, ...]


def linear_divergence(
    hidden_BTD: Array,
    unembed: Unembed,
    targets: Targets | None,
    labels_BT: Array,
    weight_BT: Array,
    *,
    terms: tuple[Term, ...],
    block_tokens: int,
    mesh: Mesh | None = None,
) -> tuple[Array, dict[str, Mean]]:
    """Weighted sum over tokens of the terms' losses, and every term's mean at temperature 1.

    Divergences are multiplied by temperature². Entries that only one of the two heads has are
    excluded from both distributions. `targets` may be None where every term is cross_entropy. The
    mean of cross_entropy is called nll. Differentiable in `hidden_BTD` and in the weight and bias
    of `unembed`, and in nothing else. The sum is not divided: its normaliser is the token count of
    the global batch, which only the caller knows.

    block_tokens: tokens whose logits a device holds at a time. mesh: with axes data, fsdp and
    expert over the rows, sequence over the tokens of a row, which it must divide, and tensor over
    the vocabulary. Raises UserError for a divergence,
    temperature or mixture that the targets do not support.

    >>> hidden_BTD, unembed = jnp.ones((1, 3, 8)), Unembed(jnp.zeros((8, 16)))
    >>> labels_BT, weight_BT = jnp.zeros((1, 3), int), jnp.ones((1, 3))
    >>> loss, means = linear_divergence(hidden_BTD, unembed, None, labels_BT, weight_BT,
    ...     terms=(Term("cross_entropy", 1.0),), block_tokens=2)
    >>> bool(jnp.isclose(loss, 3 * jnp.log(16)))
    True
    """
    mesh = None if mesh is None or mesh.size == 1 else mesh
    head, vocab = (unembed.weight_DV, unembed.bias_V), unembed.weight_DV.shape[1]
    teacher, tokens, heads, shared = None, (), (), vocab
    if targets is not None:
        teacher, tokens, heads = split_targets(targets, vocab)
        shared = teacher.shared
    if not needs_teacher(terms):
        teacher, tokens, heads = None, (), ()
    static = _Static(block_tokens, unembed[2:], shared, teacher, mesh)
    terms = jax.tree.map(lambda x: jnp.asarray(x, wide(hidden_BTD.dtype)), terms)
    frozen = jax.lax.stop_gradient((tokens, heads, labels_BT, weight_BT, terms))
    return _loss(static, _Inputs(hidden_BTD, head, *frozen))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(static: _Static, inputs: _Inputs):
    """The values only, for evaluation."""
    return _over_mesh(static, inputs, with_gradient=False, trains_head=False)[0]


def _loss_forward(static, inputs):
    """The values, and the gradients while the logits of each block are in memory.

    No gradient of a frozen head is computed.
    """
    is_primal = lambda x: hasattr(x, "perturbed")
    trains_head = any(x.perturbed for x in jax.tree.leaves(inputs.head, is_leaf=is_primal))
    inputs = jax.tree.map(lambda x: x.value, inputs, is_leaf=is_primal)
    return _over_mesh(static, inputs, with_gradient=True, trains_head=trains_head)


def _loss_backward(static, residuals, cotangent):
    scale = cotangent[0]
    times = lambda x: (x * scale.astype(x.dtype)).astype(x.dtype)
    hidden, head = jax.tree.map(times, residuals)
    return (_Inputs(hidden, head, None, None, None, None, None),)


_loss.defvjp(_loss_forward, _loss_backward, symbolic_zeros=True)


def _over_mesh(static, inputs, *, with_gradient, trains_head):
    """The scan on every device's tokens and part of the vocabulary, or on the only device."""
    run = partial(_scan, static, with_gradient=with_gradient, trains_head=trains_head)
    if static.mesh is None:
        return run(inputs)
    vocab = inputs.head[0].shape[1]
    inputs = _columns(static.mesh.shape[VOCABULARY], vocab, inputs)
    tokens = PartitionSpec(ROWS, SEQUENCE)
    head = PartitionSpec(None, VOCABULARY), PartitionSpec(VOCABULARY)
    whole = PartitionSpec()
    of_width = _axes_of_width(static.mesh, inputs.hidden_BTD.shape[2])
    head_gradient = PartitionSpec(of_width or None, VOCABULARY), head[1]
    gradient = tokens, head_gradient if trains_head else whole
    # Of a quantised head, both arrays have the vocabulary last: one specification serves them.
    teacher_heads = tuple(head for _ in inputs.teacher_heads)
    in_specs = _Inputs(tokens, head, tokens, teacher_heads, tokens, tokens, whole)
    sums, gradient = jax.shard_map(
        run,
        mesh=static.mesh,
        in_specs=(in_specs,),
        out_specs=(whole, gradient if with_gradient else whole),
        check_vma=False,
    )(inputs)
    if trains_head and with_gradient:
        hidden_gradient, head_gradient = gradient
        gradient = hidden_gradient, jax.tree.map(lambda g: g[..., :vocab], head_gradient)
    return sums, gradient


def _columns(ways: int, vocab: int, inputs: _Inputs) -> _Inputs:
    """All heads with as many columns as the student's, padded to a multiple of the mesh axis.

    Padded columns have no effect: all entries from `shared` on are excluded.
    """
    size = -(-vocab // ways) * ways

    def fit(x):
        x = x[..., :size]
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])

    heads = inputs.head, inputs.teacher_heads
    head, teacher_heads = heads if ways == 1 else jax.tree.map(fit, heads)
    return inputs._replace(head=head, teacher_heads=teacher_heads)


def _scan(static, inputs, *, with_gradient, trains_head):
    """Sums over this device's blocks, added over the mesh: (values, gradients or None)."""
    block = block_length(static.block_tokens, *inputs.labels_BT.shape)
    per_token = (inputs.hidden_BTD, inputs.teacher_tokens, inputs.labels_BT, inputs.weight_BT)
    blocks = cut(per_token, block)
    one = partial(_block, static, inputs, with_gradient=with_gradient, trains_head=trains_head)

    def body(total, block):
        sums, hidden_gradient = one(block)
        return jax.tree.map(jnp.add, total, sums), hidden_gradient

    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], blocks))[0]
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (values, head_gradient), hidden_gradient = jax.lax.scan(body, zero, blocks)
    if static.mesh is not None:
        values = jax.lax.psum(values, (*ROWS, SEQUENCE))
    if not with_gradient:
        return values, None
    hidden_gradient = join(hidden_gradient, inputs.hidden_BTD.shape[1])
    if static.mesh is not None:
        hidden_gradient = jax.lax.psum(hidden_gradient, VOCABULARY)
        of_width = _axes_of_width(static.mesh, inputs.hidden_BTD.shape[2])
        head_gradient = _reduced(head_gradient, of_width)
    trained = inputs.head if trains_head else (None, None)
    head_gradient = jax.tree.map(lambda g, x: g.astype(x.dtype), head_gradient, trained)
    return values, (hidden_gradient.astype(inputs.hidden_BTD.dtype), head_gradient)


def _axes_of_width(mesh, width):
    """The mesh axes that split the D of a head, as those of its parameters (sharding.py)."""
    for axes in (("fsdp", SEQUENCE), ("fsdp",)):
        if width % math.prod(mesh.shape[axis] for axis in axes) == 0:
            return axes
    return ()


def _reduced(head_gradient, of_width):
    """The head's gradient summed over all tokens; over `of_width`, each device keeps its part."""
    weight_DV, bias_V = head_gradient
    if bias_V is not None:
        bias_V = jax.lax.psum(bias_V, (*ROWS, SEQUENCE))
    if weight_DV is None:
        return None, None
    others = tuple(axis for axis in (*ROWS, SEQUENCE) if axis not in of_width)
    weight_DV = jax.lax.psum(weight_DV, others)
    if not of_width:
        return weight_DV, bias_V
    return jax.lax.psum_scatter(weight_DV, of_width, scatter_dimension=0, tiled=True), bias_V


def _block(static, inputs, block, *, with_gradient, trains_head):
    """((values, gradient of the head), gradient of the hidden states) of one block of tokens."""
    hidden, teacher_tokens, labels, weight = _only_counted(block)
    is_cut = static.mesh is not None and static.mesh.shape[VOCABULARY] > 1
    axis = VOCABULARY if is_cut else None
    unembed = Unembed(*inputs.head, *static.head)
    raw = head_product(hidden, unembed)
    logits = exclude_from(capped(raw, unembed.softcap), static.shared, axis)
    teacher_at = None
    if static.teacher is not None:
        of_block = inputs.teacher_heads, teacher_tokens, logits.shape[-1], hidden.dtype
        prepared = prepare(static.teacher, *of_block, axis)
        teacher_at = partial(distribution, static.teacher, prepared, axis=axis)
    loss, metrics, gradient = token_loss(
        logits, teacher_at, labels, weight, inputs.terms, axis=axis, with_gradient=with_gradient
    )
    metrics = {name: weighted_mean(value, weight) for name, value in metrics.items()}
    values = weighted_mean(loss, weight).total, metrics
    if not with_gradient:
        return (values, None), None
    hidden_gradient, head_gradient = _through_head(gradient, raw, hidden, unembed, trains_head)
    return (values, head_gradient), hidden_gradient


def _only_counted(block):
    """Replaces values of tokens of weight zero by zeros, because 0 * NaN would be NaN."""
    weight_bt = block[-1]

    def keep(x):
        counted = (weight_bt > 0).reshape(weight_bt.shape + (1,) * (x.ndim - 2))
        return jnp.where(counted, x, jnp.zeros((), x.dtype))

    return jax.tree.map(keep, block)


def _through_head(gradient, raw, hidden, unembed, trains_head):
    """From the gradient of the logits to those of the hidden states, weight and bias."""
    if unembed.softcap is not None:
        gradient = gradient * (1 - jnp.tanh(raw / unembed.softcap) ** 2)
    if unembed.scale != 1:
        gradient = gradient * unembed.scale
    product = partial(jnp.matmul, preferred_element_type=gradient.dtype)
    narrow_xV = gradient.astype(hidden.dtype).reshape(-1, gradient.shape[-1])
    hidden_gradient = product(narrow_xV, unembed.weight_DV.T).reshape(hidden.shape)
    if not trains_head:
        return hidden_gradient, (None, None)
    # Transposed before the product: on CPUs a product that transposes its input is half as fast.
    hidden_Dx = optimization_barrier(hidden.reshape(-1, hidden.shape[-1]).T)
    weight_gradient = product(hidden_Dx, narrow_xV)
    bias_gradient = None if unembed.bias_V is None else jnp.sum(gradient, (0, 1))
    return hidden_gradient, (weight_gradient, bias_gradient)
