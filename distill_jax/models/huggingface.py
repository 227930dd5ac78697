"""Hugging Face directories: config.json, generation_config.json, safetensors (also sharded)."""

import math
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory

from distill_jax.files import write_json, written_whole
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.families import FAMILIES, read_config
from distill_jax.models.pieces import Source
from distill_jax.models.safetensors_file import (
    NewArray,
    make_all,
    read_safetensors,
    write_safetensors,
)
from distill_jax.models.storage import flatten, gatherer, places
from distill_jax.models.stored import same_bytes
from distill_jax.models.weights import Checkpoint, check_names, stack_weights
from distill_jax.types import TOKEN_IDS, Params, UserError
from distill_jax.untrusted import read_json_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What an export writes, whole or cut off.
_OWN = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?(\.part)?")
_hf_name = attrgetter("hf")  # of a family.Weight


def read(directory: Path, *, dtype) -> Checkpoint:
    """A checkpoint from a directory. `dtype` None keeps the stored one.

    Of the weights only the places are read. Raises UserError for missing or unreadable files, an
    unknown family or feature, and missing, extra or misshapen weights, and a stored head that
    differs from the embedding it is tied to.
    """
    raw = read_json(directory / "config.json")
    config = read_config(raw, directory / "config.json")
    files, stored = weight_files(directory), {}
    for path in files:
        for written, array in read_safetensors(path).items():
            name = FAMILIES[config.family].canonical(written)
            if stored.setdefault(name, array) is not array:
                raise UserError(f"{path} repeats the weight {written} of another file: remove one")
    present = [name for name in stored if not _redundant(name, config)]
    check_names(config, present, _hf_name, source=directory)
    params = stack_weights(config, lambda _, name: Source(stored[name]), _hf_name, dtype=dtype)
    _check_tied(config, stored, directory)
    return Checkpoint(config, params, directory, tuple(files))


def write(
    directory: Path,
    config: ModelConfig,
    params: Params,
    *,
    generation: Mapping[str, Any],
    dtype,
    max_shard_bytes: int,
    writes: bool = True,
) -> None:
    """Writes a directory that transformers loads without extra flags. `dtype` None: unchanged.

    Every process that holds a part of the parameters calls it, and one of them `writes`; the others
    help to gather one stored array after another.
    generation: entries of generation_config.json; its token ids also stand in config.json, and its
    max_length does not exceed the model's positions.
    The files of the weights take their names once all of them are written. Meanwhile, until those
    of an earlier export are gone, there is no config.json: whoever is killed there leaves nothing
    that can be loaded. Raises UserError if the directory cannot be written.
    """
    flat = flatten(params)
    if not writes:
        make_all(_new_arrays(config, flat, dtype))
        return
    ids = {name: generation[name] for name in TOKEN_IDS if name in generation}
    if "max_length" in generation:
        most = min(generation["max_length"], config.max_positions)
        generation = {**generation, "max_length": most}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        written = _write_weights(directory, _new_arrays(config, flat, dtype), max_shard_bytes)
        write_json(directory / "generation_config.json", {**ids, **generation})
        others = (path.name for path in directory.glob("model*.safetensors*"))
        for stale in {name for name in others if _OWN.fullmatch(name)} - set(written):
            (directory / stale).unlink(missing_ok=True)
        raw = {
            **FAMILIES[config.family].to_hf(config),
            **dict.fromkeys(TOKEN_IDS),  # absent ones would be a family's defaults in transformers
            **ids,
            "torch_dtype": np.dtype(dtype or flat["embedding"].dtype).name,
        }
        write_json(directory / "config.json", raw)
    except OSError as error:
        raise UserError(f"cannot write {directory} ({error}): choose another place") from error


def read_json(path: Path) -> dict:
    """A JSON object. Raises UserError if the file is missing or holds something else."""
    if not os.path.lexists(path):
        raise UserError(f"{path.parent} has no {path.name}: give a Hugging Face directory")
    return read_json_object(path)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory. Raises UserError if there is none or one is missing."""
    if (directory / SINGLE).exists():
        return [directory / SINGLE]
    if (directory / INDEX).exists():
        return _shards(directory)
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise UserError(
            f"{directory} holds only pickled weights ({pickles[0]}), which are never loaded: "
            "convert them to safetensors"
        )
    raise UserError(f"{directory} has no {SINGLE}: give a directory with safetensors weights")


def _shards(directory):
    """The files that an index names, each directly in its directory.

    A name that leads elsewhere would make others' files part of the model. A link in the directory
    is followed: the caches of Hugging Face are made of links, and a name in a file makes none.
    """
    place = directory / INDEX
    weight_map = read_json(place).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{place} has no 'weight_map' from weights to files: restore the file")
    for name in sorted(set(names)):
        if not re.fullmatch(r"[\w.+ -]{1,200}\.safetensors", name):
            raise UserError(
                f"{place} names {name[:80]!r}, which is not the name of a .safetensors file in its"
                " directory: use a checkpoint whose index names files beside it"
            )
        if not (directory / name).exists():
            raise UserError(f"{directory} has no {name}, which {INDEX} names: copy it there")
    return [directory / name for name in sorted(set(names))]


def _redundant(name, config):
    """Whether a stored array follows from the config or another weight; some writers store it."""
    family = FAMILIES[config.family]
    tied_head = config.tied and name == family.weights["head"].hf
    return tied_head or re.fullmatch(family.redundant, name) is not None


def _check_tied(config, stored, directory):
    """Raises UserError where a stored head that the config ties is another array.

    transformers keeps such a head, so dropping it would make another model.
    """
    weights = FAMILIES[config.family].weights
    head, embedding = weights["head"].hf, weights["embedding"].hf
    if not config.tied or head not in stored:
        return
    if not same_bytes(stored[head], stored[embedding]):
        raise UserError(
            f"{directory}: {head} differs from the embedding, and config.json ties them: set"
            f" tie_word_embeddings to false there, or remove {head}"
        )


def _new_arrays(config, flat, dtype):
    gather = gatherer(flat)

    def new(place):
        of = np.dtype(dtype or flat[place.paths[0]].dtype)
        return NewArray(place.shape, of, lambda: gather(place, of))

    return {name: new(place) for name, place in places(config, _hf_name).items()}


def _write_weights(directory, arrays, max_shard_bytes):
    """Writes all shards, with one array in memory at a time; gives the names of the files.

    None of them has its name before all are written, and the directory then has no config.json.
    """
    split = split_state_dict_into_shards_factory(
        arrays,
        get_storage_size=lambda array: math.prod(array.shape) * array.dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    names = split.filename_to_tensors
    with ExitStack() as written:
        parts = {name: written.enter_context(written_whole(directory / name)) for name in names}
        write_safetensors({parts[of]: names[of] for of in names}, arrays)
        (directory / "config.json").unlink(missing_ok=True)
    if not split.is_sharded:
        return [SINGLE]
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    write_json(directory / INDEX, index)
    return [*names, INDEX]
