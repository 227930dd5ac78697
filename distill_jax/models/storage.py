"""Where parameters lie in files.

A stored array holds one block's part of one parameter, of several parameters (fused), or one
expert's part. The names and the order stand in a family's `weights`; see family.Weight.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import bind
from distill_jax.models.families import FAMILIES
from distill_jax.models.family import Weight
from distill_jax.types import Array, Params


class Place(NamedTuple):
    """One stored array.

    paths      the parameters that it holds a part of, in the order in which they lie in it
    index      which part: (block,), (block, expert), or () for a whole parameter
    shape      of the stored array
    sizes      outputs of each parameter in it
    groups     see family.Weight
    transpose  the array is [.., out, in], parameters are [.., in, out]
    """

    paths: tuple[str, ...]
    index: tuple[int, ...]
    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    groups: int
    transpose: bool


def flatten(params: Params) -> dict[str, Any]:
    """Nested parameters as {"blocks/attention/query": array}.

    >>> flatten({"embedding": 1, "blocks": {"attention": {"query": 2}}})
    {'embedding': 1, 'blocks/attention/query': 2}
    """
    return traverse_util.flatten_dict(params, sep="/")


def layout(config: ModelConfig) -> dict[str, tuple[Weight, tuple[int, ...]]]:
    """For every parameter of a config: its names in files and its shape (stacked, [in, out])."""
    model = bind(config, param_dtype="float32", compute_dtype="float32", remat="none")
    shapes = flatten(model.abstract())
    weights = FAMILIES[config.family].weights
    return {path: (weights[path], leaf.shape) for path, leaf in sorted(shapes.items())}


def places(config: ModelConfig, name_of: Callable[[Weight], str]) -> dict[str, Place]:
    """Every stored array of a config by its name; name_of(weight) is the name with {block}."""
    order = list(FAMILIES[config.family].weights)
    held, sharing = layout(config), {}
    for path, (weight, _) in held.items():
        sharing.setdefault(name_of(weight), []).append(path)
    found = {}
    for name, paths in sharing.items():
        paths = tuple(sorted(paths, key=order.index))
        weight, shape = held[paths[0]]
        stacked = paths[0].startswith("blocks/") + ("{expert}" in name)
        sizes = tuple(held[path][1][-1] for path in paths)
        whole = (*shape[stacked:-1], sum(sizes))
        stored = (*whole[:-2], whole[-1], whole[-2]) if weight.transpose else whole
        groups = weight.groups(config) if len(paths) > 1 else 1
        for index in np.ndindex(shape[:stacked]):
            label = dict(zip(("block", "expert"), index, strict=False))
            place = Place(paths, index, stored, sizes, groups, weight.transpose)
            found[name.format(**label)] = place
    return found


def outputs_of(place: Place, number: int) -> tuple[int, np.ndarray | None]:
    """The axis of a stored array along which parameters lie beside each other, and where on it.

    The places are those of the outputs of the parameter of that number; None: it is alone there.
    """
    axis = _outputs(place)
    if len(place.paths) == 1:
        return axis, None
    ends = np.cumsum([0, *(size // place.groups for size in place.sizes)])
    turns = np.arange(place.shape[axis]).reshape(place.groups, -1)
    return axis, turns[:, ends[number] : ends[number + 1]].reshape(-1)


def join(place: Place, parts: list[np.ndarray]) -> np.ndarray:
    """The stored array of its parameters' parts, [.., in, out]; contiguous."""
    axis = _outputs(place)
    grouped = [_grouped(_turned(place, part), axis, place.groups) for part in parts]
    whole = np.concatenate(grouped, axis=axis + 1) if len(grouped) > 1 else grouped[0]
    return np.ascontiguousarray(_flat(whole, axis))


def gatherer(flat: dict[str, Array]) -> Callable[[Place, Any], np.ndarray]:
    """gather(place, dtype) -> the stored array of a place, from the flattened parameters; on the
    host.

    Of parameters that lie on several processes, which all call it for the same places, no more than
    one block is gathered at a time, and experts of that block come out of it.
    """
    held = {}  # path -> (block, its part on the host), for the parameters of the last place

    def part(path, index):
        block = index[:1]
        if path not in held or held[path][0] != block:
            held[path] = block, on_host(flat[path][block] if block else flat[path])
        return held[path][1][index[1:]]

    def gather(place, dtype):
        for path in held.keys() - set(place.paths):
            del held[path]
        parts = [part(path, place.index) for path in place.paths]
        return join(place, [part.astype(dtype, copy=False) for part in parts])

    return gather


def on_host(part: Array) -> np.ndarray:
    """All of an array; of one that lies on several processes, all of them call it."""
    if isinstance(part, jax.Array) and not part.is_fully_addressable:
        return multihost_utils.process_allgather(part, tiled=True)
    return np.asarray(part)


def _outputs(place):
    """The axis of the stored array along which parameters lie beside each other."""
    return len(place.shape) - (2 if place.transpose else 1)


def _turned(place, array):
    return array.swapaxes(-1, -2) if place.transpose else array


def _grouped(array, axis, groups):
    return array.reshape(*array.shape[:axis], groups, -1, *array.shape[axis + 1 :])


def _flat(array, axis):
    return array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])
