"""Partial targets from a full distribution: its likeliest entries, or draws. Shapes: types.py.

Here also: G groups of vocabulary entries, I entries of a group. Positions are processed block by
block, so that no [B, T, V] array exists.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from distill_jax import words
from distill_jax.losses.sparse import POLICIES
from distill_jax.losses.tokens import cut, join, mesh_blocks
from distill_jax.losses.vocabulary import EMPTY, entry_places, head_logits
from distill_jax.types import Array, Projected, Sampled, TopK, UserError

GROUP = 256  # vocabulary entries whose sums are searched first (a draw needs no full sort)


def top_k(
    targets: Projected,
    k: int,
    *,
    temperatures: tuple[float, ...],
    policy: str,
    block_tokens: int,
    mesh: Mesh | None = None,
) -> TopK:
    """The k largest logits per token, and the mass of all others at each temperature.

    block_tokens: tokens whose logits a device of the mesh holds at a time.
    """
    vocab = targets.unembed.weight_DV.shape[1]
    k = min(k, vocab)

    def of(logits):
        values, ids = jax.lax.top_k(logits, k)
        return ids, values, _rest(logits, ids, temperatures)

    return TopK(*_by_blocks(of, targets, None, block_tokens, mesh), temperatures, policy, vocab)


def sampled(
    targets: Projected, uniform_BTM: Array, *, block_tokens: int, mesh: Mesh | None = None
) -> Sampled:
    """counts / M of M draws from p: unbiased. Random-sampling KD, 2503.16870."""

    def of(logits, uniform):
        ids, counts = distinct(draw(logits, uniform))
        return ids, counts / uniform.shape[-1]

    arrays = _by_blocks(of, targets, uniform_BTM, block_tokens, mesh)
    return Sampled(*arrays, targets.unembed.weight_DV.shape[1])


def sampled_renormalised(
    targets: Projected,
    uniform_BTM: Array,
    *,
    temperatures: tuple[float, ...],
    block_tokens: int,
    mesh: Mesh | None = None,
) -> TopK:
    """The drawn entries of p, renormalised; the rest 0. Gemma 3, 2503.19786, section 2.3."""

    def of(logits, uniform):
        ids, _ = distinct(draw(logits, uniform))
        index = jnp.maximum(ids, 0)
        return ids, jnp.take_along_axis(logits, index, -1), _rest(logits, ids, temperatures)

    arrays = _by_blocks(of, targets, uniform_BTM, block_tokens, mesh)
    return TopK(*arrays, temperatures, "renormalise", targets.unembed.weight_DV.shape[1])


def uniforms(key: Array, tokens_BT: Array, segment_BT: Array, draws: int) -> Array:
    """Uniform numbers [B, T, draws] for each row's draws.

    A row's key is folded with a hash of its content, so that its draws do not depend on the other
    rows, on micro-batches, or on devices.
    """
    length = tokens_BT.shape[1]
    odd_T = 2 * jnp.arange(length, dtype=jnp.uint32) + 1
    mixed_BT = (tokens_BT.astype(jnp.uint32) + 1) * (segment_BT.astype(jnp.uint32) + 1)
    mixed_BT = (mixed_BT * jnp.uint32(2654435761)) ^ (mixed_BT >> 7)
    content_B = jnp.sum(mixed_BT * (odd_T * jnp.uint32(0x9E3779B1)), -1, dtype=jnp.uint32)
    keys_B = jax.vmap(lambda content: jax.random.fold_in(key, content))(content_B)
    return jax.vmap(lambda row_key: jax.random.uniform(row_key, (length, draws)))(keys_B)


def draw(logits_xV: Array, uniform_xM: Array) -> Array:
    """Ids [x, M] drawn from softmax(logits) by inverting its cumulative sum.

    First the group of entries is found, then the entry in it: categorical draws of the whole
    vocabulary would cost as much as the head itself, M times.
    """
    size = logits_xV.shape[-1]
    groups = -(-size // GROUP)
    weight = jnp.exp(logits_xV - jnp.max(logits_xV, -1, keepdims=True))
    pad = [(0, 0)] * (weight.ndim - 1) + [(0, groups * GROUP - size)]
    weight_xGI = jnp.pad(weight, pad).reshape(*weight.shape[:-1], groups, GROUP)
    ends_xG = jnp.cumsum(jnp.sum(weight_xGI, -1), -1)
    place_xM = uniform_xM.astype(weight.dtype) * ends_xG[..., -1:]
    group_xM = _first_above(ends_xG[..., None, :], place_xM)
    before_xG = jnp.pad(ends_xG, [(0, 0)] * (ends_xG.ndim - 1) + [(1, 0)])[..., :-1]
    within_xM = place_xM - jnp.take_along_axis(before_xG, group_xM, -1)
    inner_xMI = jnp.take_along_axis(weight_xGI, group_xM[..., None], -2)
    sums_xMI = jnp.cumsum(inner_xMI, -1)
    # Rounding may put a place beyond its group's sum: then it is the last entry with any weight.
    within_xM = jnp.minimum(within_xM, sums_xMI[..., -1] * (1 - 1e-6))
    return (group_xM * GROUP + _first_above(sums_xMI, within_xM)).astype(jnp.int32)


def _first_above(ends_xMG, place_xM):
    """The first index whose cumulative sum exceeds a place."""
    count = jnp.sum(ends_xMG <= place_xM[..., None], -1)
    return jnp.minimum(count, ends_xMG.shape[-1] - 1)


def distinct(ids_xM: Array) -> tuple[Array, Array]:
    """Each distinct id with its count; EMPTY and 0 in the slots of repeats.

    >>> [x.tolist() for x in distinct(jnp.array([7, 3, 7]))]
    [[3, 7, -1], [1, 2, 0]]
    """
    ordered = jnp.sort(ids_xM, -1)
    first = jnp.concatenate(
        [jnp.ones_like(ordered[..., :1], bool), ordered[..., 1:] != ordered[..., :-1]], -1
    )
    count = jnp.sum(ordered[..., :, None] == ordered[..., None, :], -1)
    return jnp.where(first, ordered, EMPTY), jnp.where(first, count, 0)


def _rest(logits, ids, temperatures):
    """Logsumexp of the logits of all other entries at each temperature [x, M]."""
    place = entry_places(ids, logits.shape[-1], None)
    others = logits.at[place].set(-jnp.inf, mode="drop")
    return jnp.stack([jax.nn.logsumexp(others / t, -1) for t in temperatures], -1)


def _by_blocks(of: Callable, targets: Projected, extra, block_tokens: int, mesh: Mesh | None):
    """of(logits of a block, its part of extra), joined along the time axis."""
    rows, length = targets.hidden_BTD.shape[:2]
    size, parts = mesh_blocks(block_tokens, rows, length, mesh)

    def block(inputs):
        hidden, more = inputs
        logits = head_logits(hidden, targets.unembed)
        return of(logits) if more is None else of(logits, more)

    out = jax.lax.map(block, cut((targets.hidden_BTD, extra), size, parts))
    return jax.tree.map(lambda x: join(x, length, parts), out)


def check_policy(key: str, policy: str) -> str:
    """Returns `policy` if it is in POLICIES. Raises UserError otherwise; there is no default."""
    if policy not in POLICIES:
        raise UserError(
            f"config.{key} is {words.cut(repr(policy))}: choose how to treat the mass outside the"
            f" top k: {', '.join(POLICIES)}"
        )
    return policy
