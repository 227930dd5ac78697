"""A feed-forward half of several experts, of which a router chooses some for every token.

No token is dropped: each is copied for every expert that it goes to, the copies are sorted by
expert, and each is multiplied by the matrices of its own (grouped.py). x indexes tokens, c copies,
k the experts of one token.

On a mesh every device holds its part of the experts (axis `expert`) and of their neurons (axis
`tensor`). The axis `expert` splits the rows of a batch too, and `sequence` the tokens of each row,
so that nothing else is computed twice: before the experts, the devices along `expert` gather their
rows, and after them each takes back the sums of its own. That is one all-gather and one
reduce-scatter per block and pass, each of [B, T, D].
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from distill_jax.models.architecture import ACTIVATIONS, ModelConfig
from distill_jax.models.grouped import grouped_product
from distill_jax.models.norms import normed, stream_norm
from distill_jax.models.projections import back_to_stream, held, matrix, vector
from distill_jax.quantised import Quantised, is_quantised
from distill_jax.types import Array, Routing

# Mesh axes of the rows of a batch, the tokens of a row, the experts, and their neurons.
ROWS, SEQUENCE, EXPERT, NEURON = ("data", "fsdp", "expert"), "sequence", "expert", "tensor"


class _Matrices(NamedTuple):
    """Of all experts; biases may be None."""

    gate_EDF: Array
    gate_bias_EF: Array | None
    up_EDF: Array
    up_bias_EF: Array | None
    down_EFD: Array
    down_bias_ED: Array | None


class Experts(nnx.Module):
    """A router, and gated feed-forward halves side by side."""

    def __init__(self, config: ModelConfig, dtype, key, mesh: Mesh | None = None):
        self.config, self.mesh = config, mesh
        count, width, neurons = config.experts, config.width, config.neurons
        biased = config.feed_forward_bias
        keys = jax.random.split(key, 4)
        stack = lambda key, *sizes: nnx.Param(
            jax.vmap(lambda one: matrix(one, *sizes, config, dtype)[...])(
                jax.random.split(key, count)
            )
        )
        stacked_bias = lambda size: nnx.Param(jnp.zeros((count, size), dtype)) if biased else None
        self.norm = stream_norm(config.pre_norms, config, dtype)
        self.norm_bias = vector(config.norm_bias, width, dtype)
        self.router = matrix(keys[0], width, count, config, dtype)
        self.router_bias = vector(biased, count, dtype)
        self.expert_gate = stack(keys[1], width, neurons)
        self.expert_gate_bias = stacked_bias(neurons)
        self.expert_up = stack(keys[2], width, neurons)
        self.expert_up_bias = stacked_bias(neurons)
        self.expert_down = stack(keys[3], neurons, width)
        self.expert_down_bias = stacked_bias(width)
        self.post_norm = stream_norm(config.post_norms, config, dtype)

    def __call__(self, x_BTD: Array) -> Array:
        """What the half adds to the residual stream, [B, T, D]."""
        return self.routed(x_BTD, jnp.ones(x_BTD.shape[:2], bool))[0]

    def routed(self, x_BTD: Array, counted_BT: Array) -> tuple[Array, Routing]:
        """The same, and where the router sent the tokens that are counted."""
        h_BTD = normed(self, x_BTD)

        def read(weight):
            values = None if weight is None else held(weight)
            return values if values is None or is_quantised(values) else values.astype(h_BTD.dtype)

        router = read(self.router), read(self.router_bias)
        matrices = _Matrices(
            read(self.expert_gate), read(self.expert_gate_bias), read(self.expert_up),
            read(self.expert_up_bias), read(self.expert_down), read(self.expert_down_bias),
        )  # fmt: skip
        y_BTD, routing = _over_mesh(self.config, self.mesh, h_BTD, counted_BT, router, matrices)
        return back_to_stream(self, y_BTD), routing


def _over_mesh(config, mesh, h_BTD, counted_BT, router, matrices):
    """The experts' sums and the routing, over all devices of a mesh or on the only one."""
    if mesh is None or mesh.size == 1:
        return _mixed(config, None, h_BTD, counted_BT, router, matrices)
    ways = mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape[EXPERT]
    # Few rows, as in writing a text: every device has all of them; and likewise few tokens.
    rows = () if h_BTD.shape[0] % ways else ROWS
    sequence = () if h_BTD.shape[1] % mesh.shape[SEQUENCE] else (SEQUENCE,)
    tokens = PartitionSpec(rows, sequence)
    neuron = None if config.neurons % mesh.shape[NEURON] else NEURON
    columns, bias = PartitionSpec(EXPERT, None, neuron), PartitionSpec(EXPERT, neuron)
    whole = PartitionSpec()
    down = PartitionSpec(EXPERT, neuron, None)
    if neuron and is_quantised(matrices.down_EFD):
        fine, of_scale = _scales_per_part(matrices.down_EFD, mesh.shape[NEURON])
        matrices, down = matrices._replace(down_EFD=fine), Quantised(down, of_scale)
    specs = _Matrices(columns, bias, columns, bias, down, PartitionSpec(EXPERT))
    is_spec = lambda x: x is None or isinstance(x, PartitionSpec | Quantised)
    present = jax.tree.map(
        lambda spec, array: None if array is None else spec, specs, matrices, is_leaf=is_spec
    )
    axes = _Axes((*rows, *sequence), bool(rows), neuron is not None)
    return jax.shard_map(
        partial(_mixed, config, axes),
        mesh=mesh,
        in_specs=(tokens, tokens, jax.tree.map(lambda _: whole, router), present),
        out_specs=(tokens, whole),
        check_vma=False,
    )(h_BTD, counted_BT, router, matrices)


def _scales_per_part(down_EFD: Quantised, ways: int) -> tuple[Quantised, PartitionSpec]:
    """The matrices with scales that can be split as their inputs, and how these are."""
    scale_EGD = down_EFD.scale
    groups = scale_EGD.shape[1]
    if groups == 1:
        return down_EFD, PartitionSpec(EXPERT)
    # Groups that would straddle two devices are cut into smaller ones of the same scale.
    finer = jnp.repeat(scale_EGD, math.lcm(groups, ways) // groups, axis=1)
    return down_EFD._replace(scale=finer), PartitionSpec(EXPERT, NEURON)


class _Axes(NamedTuple):
    """Inside a shard_map: what splits tokens; whether rows and an expert's neurons are split."""

    tokens: tuple[str, ...]
    rows: bool
    neurons: bool


def _mixed(config, axes, h_BTD, counted_BT, router, matrices):
    """The weighted sum of every token's experts [B, T, D], and the routing of the counted tokens.

    axes: None on a single device.
    """
    logits_BTE = h_BTD @ router[0] + (0 if router[1] is None else router[1])
    chosen_BTk, weight_BTk, probability_BTE = route(logits_BTE, config)
    routing = _count(chosen_BTk, probability_BTE, counted_BT)
    sent = h_BTD, chosen_BTk, weight_BTk.astype(h_BTD.dtype)
    if axes is None:
        return _of_experts(config, *sent, matrices, first=0), routing
    if axes.tokens:
        routing = jax.lax.psum(routing, axes.tokens)
    if axes.rows:
        sent = jax.lax.all_gather(sent, EXPERT, axis=0, tiled=True)
    first = jax.lax.axis_index(EXPERT) * matrices.gate_EDF.shape[0]
    if axes.neurons and matrices.down_bias_ED is not None:
        # Of the devices that share an expert, one adds its bias.
        alone = jax.lax.axis_index(NEURON) == 0
        matrices = matrices._replace(down_bias_ED=jnp.where(alone, matrices.down_bias_ED, 0))
    y_BTD = _of_experts(config, *sent, matrices, first=first)
    if axes.neurons:
        y_BTD = jax.lax.psum(y_BTD, NEURON)
    if axes.rows:
        return jax.lax.psum_scatter(y_BTD, EXPERT, scatter_dimension=0, tiled=True), routing
    return jax.lax.psum(y_BTD, EXPERT), routing


def route(logits_xE: Array, config: ModelConfig) -> tuple[Array, Array, Array]:
    """(chosen experts int32 [x, k], their weights [x, k], probabilities [x, E]) in float32.

    The weights are the probabilities of the chosen experts, divided by their sum where
    config.router_normalised says so: the same as a softmax over the chosen alone.
    """
    probability_xE = jax.nn.softmax(logits_xE.astype(jnp.float32), axis=-1)
    weight_xk, chosen_xk = jax.lax.top_k(probability_xE, config.experts_per_token)
    if config.router_normalised:
        weight_xk = weight_xk / jnp.sum(weight_xk, -1, keepdims=True)
    return chosen_xk, weight_xk, probability_xE


def _count(chosen_BTk, probability_BTE, counted_BT) -> Routing:
    """Sums over the counted tokens."""
    counted_BT = counted_BT.astype(jnp.float32)
    experts = jnp.arange(probability_BTE.shape[-1])
    # One of the k at a time: no [B, T, k, E].
    chosen_E = sum(
        jnp.sum((chosen_BTk[..., i, None] == experts) * counted_BT[..., None], (0, 1))
        for i in range(chosen_BTk.shape[-1])
    )
    probability_E = jnp.sum(probability_BTE * counted_BT[..., None], (0, 1))
    return Routing(chosen_E, probability_E, jnp.sum(counted_BT))


def _of_experts(config, h_BTD, chosen_BTk, weight_BTk, matrices, *, first):
    """What the experts `first`, `first` + 1, .. of this device add up to for every token."""
    k, count = chosen_BTk.shape[-1], matrices.gate_EDF.shape[0]
    local_c = chosen_BTk.reshape(-1) - first
    # Copies for experts elsewhere are sorted behind all others.
    local_c = jnp.where((local_c >= 0) & (local_c < count), local_c, count)
    order_c = jnp.argsort(local_c)
    back_c = jnp.argsort(order_c)
    sorted_c = local_c[order_c]
    size_E = jnp.diff(jnp.searchsorted(sorted_c, jnp.arange(count + 1)))
    here_c1, expert_c = (sorted_c < count)[:, None], jnp.minimum(sorted_c, count - 1)

    def product(rows, weight, bias):
        rows = jnp.where(here_c1, grouped_product(rows, weight, size_E), 0)
        return rows if bias is None else rows + jnp.where(here_c1, bias[expert_c], 0)

    copies = jnp.repeat(h_BTD.reshape(-1, h_BTD.shape[-1]), k, axis=0)
    rows_cD = _permuted(copies, order_c, back_c)
    gate_cF = product(rows_cD, matrices.gate_EDF, matrices.gate_bias_EF)
    up_cF = product(rows_cD, matrices.up_EDF, matrices.up_bias_EF)
    y_cD = product(_gated(gate_cF, up_cF, config), matrices.down_EFD, matrices.down_bias_ED)
    y_cD = _permuted(y_cD, back_c, order_c)
    return jnp.sum((y_cD * weight_BTk.reshape(-1, 1)).reshape(*h_BTD.shape[:2], k, -1), axis=2)


def _gated(gate, up, config):
    if config.swiglu_limit is None:
        return ACTIVATIONS[config.activation](gate) * up
    gate = jnp.minimum(gate, config.swiglu_limit)
    up = jnp.clip(up, -config.swiglu_limit, config.swiglu_limit)
    return gate * jax.nn.sigmoid(config.swiglu_alpha * gate) * (up + 1)


@jax.custom_vjp
def _permuted(rows_cD, order_c, back_c):
    """The rows in an order; its inverse makes the gradient a permutation too, not a scatter."""
    return rows_cD[order_c]


_permuted.defvjp(
    lambda rows, order, back: (rows[order], back),
    lambda back, gradient: (gradient[back], None, None),
)
