"""Parameters on the host: loaded checkpoints, and stacking stored arrays over blocks."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.family import Weight
from distill_jax.models.storage import flatten, layout, part_of, places, split
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


def check_names(config: ModelConfig, present, name_of: Callable[[Weight], str], *, source) -> None:
    """Raises UserError for missing or unknown weights, naming the first three."""
    wanted = set(places(config, name_of))
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

    fetch(path, stored name) -> array as Hugging Face stores it; of several parameters in one array,
        the path is that of the first.
    name_of(weight) -> its name in these files, with {block}. file_of(stored name) -> its file.
    dtype: of the result; None keeps each parameter's own. advance: told of every stored array.
    Raises UserError for a shape that differs from the config's, a dtype that is not STORED or
    numbers that are not finite, naming the weight.
    """
    flat, shapes, held = {}, layout(config), places(config, name_of)
    for done, (name, place) in enumerate(held.items(), 1):
        array = fetch(place.paths[0], name)
        if array.dtype.name not in STORED:
            raise UserError(
                f"weight {name} is stored as {array.dtype.name}, whose scale is not known: use"
                f" a checkpoint in one of {', '.join(STORED)}"
            )
        if array.shape != place.shape:
            raise UserError(
                f"weight {name} has shape {list(array.shape)} where the config gives"
                f" {list(place.shape)}: use a checkpoint that fits its config"
            )
        parts = []
        for path, values in zip(place.paths, split(place, array), strict=True):
            if path not in flat:
                flat[path] = np.empty(shapes[path][1], dtype or array.dtype)
            if dtype is None and array.dtype != flat[path].dtype:
                raise UserError(
                    f"weight {name} is stored as {array.dtype}, the same weight of block 0 as "
                    f"{flat[path].dtype}: name one dtype to load in"
                )
            parts.append(part_of(flat[path], place))
            with np.errstate(over="ignore"):  # the check after it says it
                parts[-1][...] = values
        _check_finite(parts, name, file_of(name))
        advance("weights", done, len(held))
    return traverse_util.unflatten_dict(flat, sep="/")


def _check_finite(parts: list[np.ndarray], name: str, file: Path) -> None:
    """Raises UserError for a weight with NaN or infinite numbers, as it is loaded."""
    dtype = parts[0].dtype
    # By the exponent, which is full in NaN and infinity: isfinite takes long in two bytes.
    bits = np.dtype(f"u{dtype.itemsize}")
    full = np.array(np.inf, dtype).view(bits)
    bad = sum(int(np.count_nonzero((part.view(bits) & full) == full)) for part in parts)
    if bad:
        raise UserError(
            f"{file}: the weight {name} has {bad} of {sum(part.size for part in parts)} numbers"
            f" that are not finite in {dtype.name}: use a checkpoint without them, or a wider dtype"
        )


def fingerprint(params: Params) -> str:
    """sha256 over names, shapes, dtypes and bytes of all parameters, in the order of the names."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.shape} {array.dtype.name}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()
