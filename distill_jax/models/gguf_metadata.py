"""The metadata of GGUF files and the config.json that they stand for, in both directions.

What differs between families stands in their Gguf (models/family.py).
"""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill_jax.models.architecture import ACTIVATIONS, ModelConfig
from distill_jax.models.config_rope import write_rope_scaling
from distill_jax.models.config_values import check_values, without_null
from distill_jax.models.families import FAMILIES
from distill_jax.models.family import Family
from distill_jax.models.rope import RopeScaling, inverse_frequencies
from distill_jax.types import UserError

ROPE_DIVISORS = "rope_freqs.weight"  # divisors of the rotary frequencies, [R/2]
# Low and high frequency factor and original positions of all released models with that scaling.
_LLAMA3 = (1.0, 4.0, 8192)
# What files of every family may say besides.
_MORE_KEYS = {
    "attention.head_count_kv": "num_key_value_heads",
    "rope.freq_base": "rope_theta",
}
# Keys that llama.cpp reads as float32, even where a number is whole.
_REAL = re.compile(r".*(epsilon|freq_base(_swa)?|softcapping|scale|factor|beta_(fast|slow))")
_NOT_TOLD = ("family", "init_std")  # fields that a file does not have to say
_BLOCK_BIASES = {
    "attention_bias": ("blk.0.attn_q.bias", "blk.0.attn_qkv.bias"),
    "mlp_bias": ("blk.0.ffn_up.bias",),
}


class Tensors(NamedTuple):
    """What is told by a file's tensors.

    names     of all
    vocab     rows of the embedding; None where there is none
    divisors  the values of ROPE_DIVISORS, if there are any
    """

    names: Collection[str]
    vocab: int | None
    divisors: np.ndarray | None


def read_config(metadata: Mapping[str, Any], tensors: Tensors, path: Path) -> ModelConfig:
    """The config that a file stands for.

    Raises UserError for an unknown architecture, metadata that is missing or out of bounds, or a
    feature that the decoder lacks.
    """
    family = _family(metadata, path)
    raw = _config_json(_own(metadata, family.gguf.architecture), tensors, family, path)
    _check(raw, family, path)
    return family.from_hf(raw)


def write_metadata(config: ModelConfig) -> tuple[dict[str, Any], np.ndarray | None]:
    """The metadata of a config, and the values of ROPE_DIVISORS where it has some.

    Raises UserError for what the family's GGUF files, or llama.cpp, cannot say.
    """
    family = FAMILIES[config.family]
    gguf = family.gguf
    if gguf is None:
        raise _inexpressible(f"there are no GGUF files of the family {config.family}")
    if lack := gguf.lacks(config):
        raise _inexpressible(f"llama.cpp has no {gguf.architecture} with {lack}")
    raw, scaling = family.to_hf(config), config.rope_scaling
    given = {key: raw.get(name) for key, name in _keys(gguf).items()}
    given |= {f"attention.{of}_length": config.head_width for of in ("key", "value")}
    given |= {"vocab_size": config.vocab, "rope.dimension_count": config.turned_width or None}
    if scaling is not None and scaling.kind == "linear":
        given |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    given |= gguf.metadata(config)
    found = {
        f"{gguf.architecture}.{key}": float(value) if _REAL.fullmatch(key) else value
        for key, value in given.items()
        if value is not None
    }
    return found, _divisors(config)


def check_same(config: ModelConfig, metadata: Mapping[str, Any], tensors: Tensors) -> None:
    """Raises UserError where metadata would be read as another config, naming the first field."""
    family = FAMILIES[config.family]
    own = _own(_as_stored(metadata), family.gguf.architecture)
    try:
        raw = _config_json(own, tensors, family, Path("it"))
        read = dataclasses.asdict(family.from_hf(raw))
    except UserError as error:
        what = str(error).rpartition(": use")[0] or str(error)
        raise _inexpressible(f"a GGUF file could not be read again ({what})") from None
    for field, value in dataclasses.asdict(config).items():
        if field == "activation" and ACTIVATIONS[value] is ACTIVATIONS[read[field]]:
            continue  # two names of one function
        if field not in _NOT_TOLD and not _equal(value, read[field]):
            raise _inexpressible(
                f"a GGUF file of {family.gguf.architecture} cannot say {field}="
                f"{str(value)[:60]}, which would be read as {str(read[field])[:60]}"
            )


def _inexpressible(what: str) -> UserError:
    return UserError(f"{what}: use --config.export.format=hf")


def _family(metadata, path) -> Family:
    architecture = metadata.get("general.architecture")
    of = [f for f in FAMILIES.values() if f.gguf]
    known = [f for f in of if f.gguf.architecture == architecture]
    own = _own(metadata, architecture)
    found = next((f for f in known if f.gguf.is_own(own)), None)
    if not isinstance(architecture, str) or found is None:
        names = ", ".join(sorted({f.gguf.architecture for f in of}))
        raise UserError(
            f"{path} has GGUF architecture '{str(architecture)[:60]}': use one of {names}"
        )
    return found


def _own(metadata, architecture):
    """The entries of an architecture, without its prefix; float32 as the decimal that was meant."""
    prefix = f"{architecture}."
    decimal = lambda value: float(str(np.float32(value))) if isinstance(value, float) else value
    found = {k: v for k, v in metadata.items() if k.startswith(prefix)}
    return {key.removeprefix(prefix): decimal(value) for key, value in found.items()}


def _as_stored(metadata):
    real = lambda value: float(np.float32(value)) if isinstance(value, float) else value
    return {key: real(value) for key, value in metadata.items()}


def _keys(gguf):
    return {**gguf.keys, **_MORE_KEYS, **gguf.more_keys}


def _check(raw, family, path):
    try:
        check_values(without_null(raw), family.own_entries)
    except UserError as error:
        raise UserError(f"{path}: its metadata as a {error}") from None


def _config_json(own, tensors, family, path):
    """The config.json that this metadata stands for."""
    gguf = family.gguf
    missing = [f"{gguf.architecture}.{key}" for key in gguf.keys if key not in own]
    missing += [] if tensors.vocab else ["token_embd.weight"]
    if missing:
        raise UserError(f"{path} has no {missing[0]}: use a complete GGUF file")
    raw = {name: own[key] for key, name in gguf.keys.items()}
    heads, width = own["attention.head_count"], own["embedding_length"]
    if not isinstance(heads, int) or not isinstance(own.get("attention.head_count_kv", heads), int):
        raise UserError(f"{path} has different numbers of heads in its blocks: use a uniform model")
    # Before anything is computed of them; a family may have other names for them.
    _check({**raw, "num_attention_heads": heads, "hidden_size": width}, family, path)
    raw |= {name: own.get(key) for key, name in {**_MORE_KEYS, **gguf.more_keys}.items()}
    raw |= {name: any(n in tensors.names for n in of) for name, of in _BLOCK_BIASES.items()}
    raw |= {
        "vocab_size": tensors.vocab,
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "head_dim": own.get("attention.key_length")
        or own.get("rope.dimension_count")
        or width // heads,
        "num_local_experts": own.get("expert_count", 0),
        "tie_word_embeddings": "output.weight" not in tensors.names,
    }
    kind = own.get("rope.scaling.type", "none")
    if kind != "none":
        raw["rope_scaling"] = {"rope_type": kind, "factor": own.get("rope.scaling.factor")}
    if tensors.divisors is not None:
        raw["rope_scaling"] = _llama3_scaling(tensors.divisors, raw, path)
    return raw | gguf.entries(own, raw)


def _llama3_scaling(divisors, raw, path):
    """GGUF stores Llama 3's scaling as divisors; its models differ only in the factor."""
    scaling = RopeScaling("llama3", float(divisors.max()), *_LLAMA3)
    theta = raw["rope_theta"] or 10_000.0
    plain = inverse_frequencies(raw["head_dim"], theta, None)
    scaled = inverse_frequencies(raw["head_dim"], theta, scaling)
    if divisors.shape != plain.shape or not np.allclose(plain / divisors, scaled, rtol=1e-4):
        raise UserError(
            f"{path} has {ROPE_DIVISORS} unlike Llama 3's: use a safetensors checkpoint"
        )
    return write_rope_scaling(scaling)


def _divisors(config):
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "llama3":
        return None
    names = ("low_frequency_factor", "high_frequency_factor", "original_positions")
    own = tuple(getattr(scaling, name) for name in names)
    if own != _LLAMA3:
        said = ", ".join(f"{name}={value:g}" for name, value in zip(names, own, strict=True))
        raise _inexpressible(
            f"GGUF files of Llama 3's rope scaling stand for {_LLAMA3[0]:g}, {_LLAMA3[1]:g} and"
            f" {_LLAMA3[2]} alone, and this model has {said}"
        )
    of = (config.turned_width, config.rope_theta)
    return inverse_frequencies(*of, None) / inverse_frequencies(*of, scaling)


def _equal(value, read):
    if isinstance(value, dict) and isinstance(read, dict):  # the scaling of positions
        return all(_equal(one, read[name]) for name, one in value.items())
    if isinstance(value, float) and isinstance(read, int | float):
        return math.isclose(value, read, rel_tol=1e-6)
    return value == read
