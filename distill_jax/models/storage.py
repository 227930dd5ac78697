"""Where parameters lie in files.

A stored array holds one block's part of one parameter, of several parameters (fused), or one
expert's part. The names and the order stand in a family's `weights`; see family.Weight.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

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


def split(place: Place, stored: np.ndarray) -> list[np.ndarray]:
    """The parts of the place's parameters, [.., in, out], from an array of its shape."""
    bounds = np.cumsum([size // place.groups for size in place.sizes])[:-1]
    axis = _outputs(place)
    parts = np.split(_grouped(stored, axis, place.groups), bounds, axis=axis + 1)
    return [_turned(place, _flat(part, axis)) for part in parts]


def join(place: Place, parts: list[np.ndarray]) -> np.ndarray:
    """The inverse of split, contiguous."""
    axis = _outputs(place)
    grouped = [_grouped(_turned(place, part), axis, place.groups) for part in parts]
    whole = np.concatenate(grouped, axis=axis + 1) if len(grouped) > 1 else grouped[0]
    return np.ascontiguousarray(_flat(whole, axis))


def gather(flat: dict[str, Array], place: Place, dtype) -> np.ndarray:
    """The stored array of a place, in a dtype, from the flattened parameters."""
    parts = [part_of(np.asarray(flat[path]), place) for path in place.paths]
    return join(place, [part.astype(dtype, copy=False) for part in parts])


def part_of(leaf: Array, place: Place) -> Array:
    """The place's part of one of its parameters; of a host array, a view."""
    return leaf[place.index] if place.index else leaf


def _outputs(place):
    """The axis of the stored array along which parameters lie beside each other."""
    return len(place.shape) - (2 if place.transpose else 1)


def _turned(place, array):
    return array.swapaxes(-1, -2) if place.transpose else array


def _grouped(array, axis, groups):
    return array.reshape(*array.shape[:axis], groups, -1, *array.shape[axis + 1 :])


def _flat(array, axis):
    return array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])
