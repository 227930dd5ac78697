"""Parameters on the host: loaded checkpoints, and stacking stored arrays over blocks."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import bind
from distill_jax.models.families import FAMILIES
from distill_jax.models.family import Weight
from distill_jax.types import Advance, Params, UserError, silent

STORED = ("float32", "bfloat16", "float16", "float64")  # what weights are in files


class Checkpoint(NamedTuple):
    """A model read from disk.

    params  nested dicts of host numpy arrays
    path    the local file or directory, which also has the tokenizer
    """

    config: ModelConfig
    params: Params
    path: Path


def flatten(params: Params) -> dict[str, Any]:
    """Nested parameters as {"blocks/attention/query": array}.

    >>> flatten({"embedding": 1, "blocks": {"attention": {"query": 2}}})
    {'embedding': 1, 'blocks/attention/query': 2}
    """
    return traverse_util.flatten_dict(params, sep="/")


def layout(config: ModelConfig) -> dict[str, tuple[Weight, tuple[int, ...]]]:
    """For every parameter of a config: where it is stored and its shape (stacked, [in, out])."""
    model = bind(config, param_dtype="float32", compute_dtype="float32", remat="none")
    shapes = flatten(model.abstract())
    weights = FAMILIES[config.family].weights
    return {path: (weights[path], leaf.shape) for path, leaf in sorted(shapes.items())}


def check_names(config: ModelConfig, present, name_of: Callable[[Weight], str], *, source) -> None:
    """Raises UserError for missing or unknown weights, naming the first three."""
    wanted = {
        name_of(weight).format(block=block)
        for weight, _ in layout(config).values()
        for block in range(config.blocks)
    }
    for what, names, remedy in (
        ("lacks", wanted - set(present), "use a complete checkpoint of this config.json"),
        ("has unknown", set(present) - wanted, "use a checkpoint that fits this config.json"),
    ):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise UserError(f"{source} {what} weights ({len(names)}): {first}: {remedy}")


def stack_weights(
    config: ModelConfig,
    fetch: Callable[[str, str], np.ndarray],
    name_of: Callable[[Weight], str],
    file_of: Callable[[str], Path],
    *,
    dtype,
    advance: Advance = silent,
) -> Params:
    """Stacks stored arrays into parameters, with one stored array in memory besides the result.

    fetch(path, stored name) -> array as Hugging Face stores it.
    name_of(weight) -> its name in these files, with {block}. file_of(stored name) -> its file.
    dtype: of the result; None keeps each parameter's own. advance: told of every stored array.
    Raises UserError for a shape that differs from the config's, a dtype that is not STORED or
    numbers that are not finite, naming the weight.
    """
    flat, places = {}, layout(config)
    done, total = 0, sum(config.blocks if p.startswith("blocks/") else 1 for p in places)
    for path, (weight, shape) in places.items():
        stacked = path.startswith("blocks/")
        for block in range(config.blocks if stacked else 1):
            name = name_of(weight).format(block=block)
            array = fetch(path, name)
            if array.dtype.name not in STORED:
                raise UserError(
                    f"weight {name} is stored as {array.dtype.name}, whose scale is not known: use"
                    f" a checkpoint in one of {', '.join(STORED)}"
                )
            array = array.T if weight.transpose else array
            expected = shape[1:] if stacked else shape
            if array.shape != expected:
                found, wanted = (
                    s[::-1] if weight.transpose else s for s in (array.shape, expected)
                )
                raise UserError(
                    f"weight {name} has shape {list(found)} where the config gives {list(wanted)}: "
                    "use a checkpoint that fits its config"
                )
            if block == 0:
                flat[path] = np.empty(shape, dtype or array.dtype)
            if dtype is None and array.dtype != flat[path].dtype:
                raise UserError(
                    f"weight {name} is stored as {array.dtype}, the same weight of block 0 as "
                    f"{flat[path].dtype}: name one dtype to load in"
                )
            part = flat[path][block] if stacked else flat[path]
            with np.errstate(over="ignore"):  # the check after it says it
                part[...] = array
            _check_finite(part, name, file_of(name))
            done += 1
            advance("weights", done, total)
    return traverse_util.unflatten_dict(flat, sep="/")


def _check_finite(part: np.ndarray, name: str, file: Path) -> None:
    """Raises UserError for a weight with NaN or infinite numbers, as it is loaded."""
    # By the exponent, which is full in NaN and infinity: isfinite takes long in two bytes.
    bits = np.dtype(f"u{part.itemsize}")
    full = np.array(np.inf, part.dtype).view(bits)
    if bad := int(np.count_nonzero((part.view(bits) & full) == full)):
        raise UserError(
            f"{file}: the weight {name} has {bad} of {part.size} numbers that are not finite in"
            f" {part.dtype.name}: use a checkpoint without them, or a wider dtype"
        )


def fingerprint(params: Params) -> str:
    """sha256 over names, shapes, dtypes and bytes of all parameters, in the order of the names."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.shape} {array.dtype.name}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()
