"""Hugging Face directories: config.json, generation_config.json, safetensors (also sharded)."""

import json
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.families import FAMILIES, family_of
from distill_jax.models.family import Weight
from distill_jax.models.weights import (
    Checkpoint,
    assemble,
    check_names,
    flatten,
    layout,
    stored_name,
)
from distill_jax.types import Params, UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read(directory: Path, *, dtype) -> Checkpoint:
    """A checkpoint from a directory. `dtype` None keeps the stored one.

    Raises UserError: no config.json, no safetensors, unreadable files, an unknown family or
    feature, missing, extra or misshapen weights.
    """
    raw = read_json(directory / "config.json")
    config = family_of(raw.get("model_type")).from_hf(raw)
    with ExitStack() as stack:
        files = {path: stack.enter_context(_open(path)) for path in weight_files(directory)}
        holder = {name: file for file in files.values() for name in file.keys()}  # noqa: SIM118
        present = [name for name in holder if not _redundant(name, config)]
        check_names(config, present, _hf_name, source=directory)
        fetch = lambda path, name: holder[name].get_tensor(name)
        params = assemble(config, fetch, _hf_name, dtype=dtype)
    return Checkpoint(raw["model_type"], config, params, _token_ids(directory, raw), directory)


def write(
    directory: Path,
    config: ModelConfig,
    params: Params,
    *,
    token_ids: dict,
    dtype,
    max_shard_bytes: int,
) -> None:
    """A directory that transformers loads with no flag. `dtype` None keeps that of the parameters.

    Each file is written beside its place and renamed into it; weights of an earlier, differently
    sharded export are removed last. Raises UserError when the directory cannot be written.
    """
    flat = flatten(params)
    ids = {name: token_ids[name] for name in TOKEN_IDS if token_ids.get(name) is not None}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        written = _write_weights(directory, config, flat, dtype, max_shard_bytes)
        raw = {
            **FAMILIES[config.family].to_hf(config),
            **ids,
            "torch_dtype": np.dtype(dtype or flat["embedding"].dtype).name,
        }
        write_json(directory / "config.json", raw)
        write_json(directory / "generation_config.json", ids)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {directory} ({error}): choose another place") from error
    for stale in [
        directory / SINGLE,
        directory / INDEX,
        *directory.glob("model-*-of-*.safetensors"),
    ]:
        if stale.name not in written:
            stale.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    """A JSON object; UserError when the file is missing or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} has no {path.name}: give a Hugging Face directory"
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not readable JSON ({error}): restore the file") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: restore the file")
    return value


def write_json(path: Path, value: dict) -> None:
    """Write through a temporary sibling, so that the file is whole or untouched."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, path)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory; UserError when there is none or one is missing."""
    if (directory / SINGLE).exists():
        return [directory / SINGLE]
    if (directory / INDEX).exists():
        names = sorted(set(read_json(directory / INDEX).get("weight_map", {}).values()))
        for name in names:
            if not (directory / name).exists():
                raise UserError(f"{directory} has no {name}, which {INDEX} names: copy it there")
        return [directory / name for name in names]
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise UserError(
            f"{directory} holds pickled weights only ({pickles[0]}), which are never loaded: "
            "convert them to safetensors"
        )
    raise UserError(f"{directory} has no {SINGLE}: give a directory with safetensors weights")


def _open(path):
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}): copy it again"
        ) from None


def _hf_name(weight: Weight) -> str:
    return weight.hf


def _redundant(name, config):
    """Stored beside the weights by some writers, although the config determines it."""
    return name.endswith("rotary_emb.inv_freq") or (config.tied and name == "lm_head.weight")


def _token_ids(directory, raw):
    path = directory / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    said = lambda source: {name: source[name] for name in TOKEN_IDS if source.get(name) is not None}
    return said(raw) | said(generation)


def _write_weights(directory, config, flat, dtype, max_shard_bytes):
    """Write all shards, one in memory at a time; gives the names of the files that belong."""
    parts = [
        (stored_name(weight.hf, path, block), path, block if path.startswith("blocks/") else None)
        for path, (weight, shape) in layout(config).items()
        for block in range(shape[0] if path.startswith("blocks/") else 1)
    ]
    sizes = {
        name: _bytes(flat[path], dtype) // (1 if block is None else config.blocks)
        for name, path, block in parts
    }
    shards, filled = [[]], 0
    for part in parts:
        if shards[-1] and filled + sizes[part[0]] > max_shard_bytes:
            shards, filled = [*shards, []], 0
        shards[-1].append(part)
        filled += sizes[part[0]]
    single = len(shards) == 1
    shard_name = lambda i: f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
    names = [SINGLE] if single else [shard_name(i) for i in range(len(shards))]
    weights = FAMILIES[config.family].weights
    for file_name, shard in zip(names, shards, strict=True):
        draft = directory / (file_name + ".part")
        arrays = {
            name: _stored(flat[path], block, weights[path], dtype) for name, path, block in shard
        }
        save_file(arrays, draft, metadata={"format": "pt"})
        os.replace(draft, directory / file_name)
    if single:
        return names
    files = {name: file for file, shard in zip(names, shards, strict=True) for name, *_ in shard}
    write_json(
        directory / INDEX,
        {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files},
    )
    return [*names, INDEX]


def _bytes(leaf, dtype):
    return leaf.size * np.dtype(dtype or leaf.dtype).itemsize


def _stored(leaf, block, weight, dtype):
    """One block's array as files hold it (the host copy of a device array is made once)."""
    array = np.asarray(leaf)[... if block is None else block].astype(
        dtype or leaf.dtype, copy=False
    )
    return np.ascontiguousarray(array.T if weight.transpose else array)
