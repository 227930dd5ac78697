"""Parameters onto the mesh: of those in files, each process reads what its own devices hold."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from distill_jax.models.binding import Model
from distill_jax.models.families import FAMILIES
from distill_jax.models.stored import Box
from distill_jax.models.weights import Parameter
from distill_jax.sharding import parameter_shardings
from distill_jax.types import Advance, Array, Params, silent


def place_params(model: Model, params: Params, mesh: Mesh, advance: Advance = silent) -> Params:
    """Parameters in files, or arrays, onto the mesh by the rules of the model's family.

    One parameter after another: the host has of the largest one what this process's devices hold,
    and little more. advance: told of every stored array that is read. Raises UserError as
    weights.Parameter does.
    """
    rules = FAMILIES[model.config.family].sharding
    shardings = parameter_shardings(model.abstract(), rules, mesh)
    total = sum(len(x.pieces) for x in jax.tree.leaves(params) if isinstance(x, Parameter))
    done = 0

    def told():
        nonlocal done
        done += 1
        advance("weights", done, total)

    place = lambda leaf, sharding: jax.block_until_ready(_placed(leaf, sharding, told))
    return jax.tree.map(place, params, shardings)


def _placed(
    leaf: Array | Parameter, sharding: NamedSharding, told: Callable[[], None]
) -> jax.Array:
    if not isinstance(leaf, Parameter):
        read = lambda index: np.asarray(leaf[index])
        return jax.make_array_from_callback(leaf.shape, sharding, read)
    indices = sharding.addressable_devices_indices_map(leaf.shape).values()
    boxes = list(dict.fromkeys(_box(index, leaf.shape) for index in indices))  # copies once
    parts = dict(zip(boxes, leaf.read(boxes, told), strict=True))
    read = lambda index: parts[_box(index, leaf.shape)]
    return jax.make_array_from_callback(leaf.shape, sharding, read)


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
