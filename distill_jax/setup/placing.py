"""Parameters onto the mesh: of those in files, each process reads what its own devices hold."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from distill_jax.models.binding import Model
from distill_jax.models.families import FAMILIES
from distill_jax.models.quantise import quantised_parameter
from distill_jax.models.stored import Box
from distill_jax.models.weights import Parameter
from distill_jax.quantised import Bits, Quantised, is_quantised
from distill_jax.sharding import parameter_shardings
from distill_jax.types import Advance, Array, Params, path_name, silent

Told = Callable[[], None]


def place_params(
    model: Model, params: Params, mesh: Mesh, shard: Sequence[str], advance: Advance = silent
) -> Params:
    """Parameters in files, or arrays, onto the mesh by the rules of the model's family.

    One parameter after another: the host has of the largest one what this process's devices hold,
    and little more; of one that the model has quantised, of a block at a time, and so have the
    devices. shard: the mesh axes that parameters are split over. advance: told of every stored
    array that is read. Raises UserError as weights.Parameter does.
    """
    rules = FAMILIES[model.config.family].sharding
    of = lambda tree: parameter_shardings(tree, rules, mesh, shard)
    total = sum(len(x.pieces) for x in jax.tree.leaves(params) if isinstance(x, Parameter))
    done = 0

    def told():
        nonlocal done
        done += 1
        advance("weights", done, total)

    def place(path, leaf, wide, narrow, abstract):
        if is_quantised(narrow) and not is_quantised(leaf):
            return _quantised(path_name(path), leaf, wide, (narrow, abstract), model.bits, told)
        return placed(leaf, wide, told)

    abstract = model.abstract()
    trees = params, of(params), of(abstract), abstract
    return jax.tree_util.tree_map_with_path(place, *trees, is_leaf=is_quantised)


def placed(params: Any, shardings: Any, told: Told = lambda: None) -> Any:
    """Parameters in files, or arrays, one after another. told(): called for each stored array."""
    place = lambda leaf, sharding: jax.block_until_ready(_placed(leaf, sharding, told))
    return jax.tree.map(place, params, shardings)


def block_of(leaf: Array | Parameter, i: int) -> Array | Parameter:
    """That of one block, out of a parameter that blocks have, as a stack of one."""
    return leaf.block(i) if isinstance(leaf, Parameter) else leaf[i : i + 1]


def _quantised(
    path: str, leaf: Array | Parameter, wide: NamedSharding, result, bits: Bits, told: Told
) -> Quantised:
    """A wide parameter in few bits. result: shardings and shapes of that."""
    narrow, abstract = result
    make = partial(quantised_parameter, path, bits=bits)
    if not path.startswith("blocks/"):
        whole = jax.jit(make, out_shardings=narrow)(_placed(leaf, wide, told))
        return jax.block_until_ready(whole)

    @partial(jax.jit, donate_argnums=0, out_shardings=narrow)
    def put(stack, one, i):
        write = lambda stack, x: jax.lax.dynamic_update_slice_in_dim(stack, x, i, 0)
        return jax.tree.map(write, stack, make(one))

    zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)
    stack = jax.jit(zeros, out_shardings=narrow)()
    for i in range(leaf.shape[0]):
        stack = jax.block_until_ready(put(stack, _placed(block_of(leaf, i), wide, told), i))
    return stack


def _placed(leaf: Array | Parameter, sharding: NamedSharding, told: Told) -> jax.Array:
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
