"""Hidden states become logits and probabilities, over a whole or a sharded vocabulary.

`axis` is the mesh axis that the vocabulary is sharded over inside a shard_map, or None where an
array holds all of it. Shapes: types.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import optimization_barrier

from distill_jax.losses.divergences import FLOOR
from distill_jax.quantised import product
from distill_jax.types import Array, Unembed

EMPTY = -1  # the id of an unused slot


class Distribution(NamedTuple):
    """Probabilities of vocabulary entries, and what their logarithms are computed from."""

    scaled_xV: Array  # logits / temperature
    log_total_x1: Array  # their logsumexp
    prob_xV: Array


def log_of(d: Distribution) -> Array:
    """Log-probabilities [.., V], floored at FLOOR; not stored, because recomputing is faster."""
    return jnp.maximum(d.scaled_xV - d.log_total_x1, FLOOR)


def log_at(d: Distribution, ids_xE: Array, axis: str | None) -> Array:
    """Log-probabilities [.., E] of a few entries; FLOOR for EMPTY."""
    local = local_ids(ids_xE, d.scaled_xV.shape[-1], axis)
    scaled_xE = jnp.take_along_axis(d.scaled_xV, local, -1, mode="fill", fill_value=FLOOR)
    if axis is not None:
        scaled_xE = jax.lax.pmax(scaled_xE, axis)
    return jnp.maximum(scaled_xE - d.log_total_x1, FLOOR)


def head_logits(hidden_xD: Array, unembed: Unembed) -> Array:
    """Logits [.., V] of a few positions, in at least float32."""
    return capped(head_product(hidden_xD, unembed), unembed.softcap)


def head_product(hidden_xD: Array, unembed: Unembed) -> Array:
    """The scaled product of hidden states and head, before the soft cap."""
    raw_xV = product(hidden_xD, unembed.weight_DV, wide(hidden_xD.dtype))
    if unembed.bias_V is not None:
        raw_xV += unembed.bias_V
    return raw_xV if unembed.scale == 1 else raw_xV * unembed.scale


def capped(raw_xV: Array, softcap: float | None) -> Array:
    """c * tanh(z / c), or z where there is no cap."""
    return raw_xV if softcap is None else softcap * jnp.tanh(raw_xV / softcap)


def softmax(logits_xV: Array, temperature: float, axis: str | None) -> Distribution:
    """The distribution of logits / temperature; -inf excludes an entry.

    The barrier prevents XLA from recomputing the exponentials at each use.
    """
    z = logits_xV if temperature == 1 else logits_xV / temperature
    top = jnp.max(z, -1, keepdims=True)
    # Finite even where every entry is excluded.
    top = jnp.maximum(top if axis is None else jax.lax.pmax(top, axis), FLOOR)
    exp = optimization_barrier(jnp.exp(z - top))
    total = summed(exp, axis)
    return Distribution(z, top + jnp.log(total), exp * (1 / total))


def summed(x_xV: Array, axis: str | None) -> Array:
    """The sum over the vocabulary [.., 1]."""
    total = jnp.sum(x_xV, -1, keepdims=True)
    return total if axis is None else jax.lax.psum(total, axis)


def local_ids(ids_xE: Array, size: int, axis: str | None) -> Array:
    """Ids within this device's part of the vocabulary; `size`, past the end, for all others."""
    local = ids_xE - offset(size, axis)
    return jnp.where((ids_xE >= 0) & (local >= 0) & (local < size), local, size)


def entry_places(ids_xE: Array, size: int, axis: str | None) -> tuple:
    """Index of the entries `ids` of a [.., V] array; past the end for ids held elsewhere."""
    lead = jnp.indices(ids_xE.shape, sparse=True)[:-1]
    return (*lead, local_ids(ids_xE, size, axis))


def offset(size: int, axis: str | None) -> Array | int:
    """The id of the first entry that this device holds, where each holds `size`."""
    return 0 if axis is None else jax.lax.axis_index(axis) * size


def exclude_from(logits_xV: Array, shared: int, axis: str | None) -> Array:
    """-inf for the entries from `shared` on, which only one of the two vocabularies has."""
    size = logits_xV.shape[-1]
    parts = 1 if axis is None else jax.lax.axis_size(axis)
    if size * parts == shared:
        return logits_xV
    return jnp.where(jnp.arange(size) + offset(size, axis) < shared, logits_xV, -jnp.inf)


def wide(dtype) -> jnp.dtype:
    """At least float32: the dtype of logits and sums."""
    return jnp.promote_types(dtype, jnp.float32)
