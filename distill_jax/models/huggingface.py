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
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from distill_jax.files import write_json, written_whole
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.families import FAMILIES, read_config
from distill_jax.models.storage import flatten, gather, places
from distill_jax.models.weights import STORED, Checkpoint, check_names, stack_weights
from distill_jax.types import TOKEN_IDS, Advance, Params, UserError, silent
from distill_jax.untrusted import check_file, read_json_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_hf_name = attrgetter("hf")  # of a family.Weight


def read(directory: Path, *, dtype, advance: Advance = silent) -> Checkpoint:
    """A checkpoint from a directory. `dtype` None keeps the stored one.

    Raises UserError for missing or unreadable files, an unknown family or feature, and missing,
    extra or misshapen weights, and a stored head that differs from the embedding it is tied to.
    """
    raw = read_json(directory / "config.json")
    config = read_config(raw, directory / "config.json")
    with ExitStack() as stack:
        files = {path: stack.enter_context(_open(path)) for path in weight_files(directory)}
        place_of: dict[str, tuple[Path, str]] = {}

        def fetch(_, name):
            path, stored = place_of[name]
            return _array(files[path], stored)

        for path, file in files.items():
            for stored in file.keys():  # noqa: SIM118
                name = FAMILIES[config.family].canonical(stored)
                if place_of.setdefault(name, (path, stored)) != (path, stored):
                    raise UserError(
                        f"{path} repeats the weight {stored} of another file: remove one"
                    )
        present = [name for name in place_of if not _redundant(name, config)]
        check_names(config, present, _hf_name, source=directory)
        _check_tied(config, place_of, fetch, directory)
        of = (config, fetch, _hf_name, lambda name: place_of[name][0])
        params = stack_weights(*of, dtype=dtype, advance=advance)
    return Checkpoint(config, params, directory)


def write(
    directory: Path,
    config: ModelConfig,
    params: Params,
    *,
    generation: Mapping[str, Any],
    dtype,
    max_shard_bytes: int,
) -> None:
    """Writes a directory that transformers loads without extra flags. `dtype` None: unchanged.

    generation: entries of generation_config.json; its token ids also stand in config.json, and its
    max_length does not exceed the model's positions.
    Each file is written completely or not at all; files of an earlier, differently sharded export
    are removed last. Raises UserError if the directory cannot be written.
    """
    flat = flatten(params)
    ids = {name: generation[name] for name in TOKEN_IDS if name in generation}
    if "max_length" in generation:
        most = min(generation["max_length"], config.max_positions)
        generation = {**generation, "max_length": most}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        written = _write_weights(directory, config, flat, dtype, max_shard_bytes)
        raw = {
            **FAMILIES[config.family].to_hf(config),
            **dict.fromkeys(TOKEN_IDS),  # absent ones would be a family's defaults in transformers
            **ids,
            "torch_dtype": np.dtype(dtype or flat["embedding"].dtype).name,
        }
        write_json(directory / "config.json", raw)
        write_json(directory / "generation_config.json", {**ids, **generation})
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {directory} ({error}): choose another place") from error
    for stale in {SINGLE, INDEX, *(p.name for p in directory.glob("model-*-of-*.safetensors"))}:
        if stale not in written:
            (directory / stale).unlink(missing_ok=True)


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


def _open(path):
    check_file(path)
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a complete safetensors file ({error}): copy it again"
        ) from None


def _array(file, name):
    try:
        return file.get_tensor(name)
    except (AttributeError, SafetensorError):  # numpy lacks the dtype
        raise UserError(
            f"weight {name} is stored as {file.get_slice(name).get_dtype()}, which is not read: use"
            f" a checkpoint in one of {', '.join(STORED)}"
        ) from None


def _redundant(name, config):
    """Whether a stored array follows from the config or another weight; some writers store it."""
    family = FAMILIES[config.family]
    tied_head = config.tied and name == family.weights["head"].hf
    return tied_head or re.fullmatch(family.redundant, name) is not None


def _check_tied(config, place_of, fetch, directory):
    """Raises UserError where a stored head that the config ties is another array.

    transformers keeps such a head, so dropping it would make another model.
    """
    weights = FAMILIES[config.family].weights
    head, embedding = weights["head"].hf, weights["embedding"].hf
    if not config.tied or head not in place_of:
        return
    one, other = fetch(None, head), fetch(None, embedding)
    same = one.shape == other.shape and one.dtype == other.dtype
    if not same or not np.array_equal(one.view(np.uint8), other.view(np.uint8)):
        raise UserError(
            f"{directory}: {head} differs from the embedding, and config.json ties them: set"
            f" tie_word_embeddings to false there, or remove {head}"
        )


def _write_weights(directory, config, flat, dtype, max_shard_bytes):
    """Writes all shards, one in memory at a time; returns the names of the files written."""
    held = places(config, _hf_name)

    def dtype_of(place):
        return np.dtype(dtype or flat[place.paths[0]].dtype)

    split = split_state_dict_into_shards_factory(
        held,
        get_storage_size=lambda place: math.prod(place.shape) * dtype_of(place).itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file_name, names in split.filename_to_tensors.items():
        arrays = {name: gather(flat, held[name], dtype_of(held[name])) for name in names}
        with written_whole(directory / file_name) as part:
            save_file(arrays, part, metadata={"format": "pt"})
    if not split.is_sharded:
        return [SINGLE]
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    write_json(directory / INDEX, index)
    return [*split.filename_to_tensors, INDEX]
