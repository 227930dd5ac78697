"""GGUF files, dequantized on the host by the gguf package."""

from operator import attrgetter
from pathlib import Path

import numpy as np
from gguf import dequantize

from distill_jax.gguf_file import read_gguf
from distill_jax.models import config_json
from distill_jax.models.config_values import check_values
from distill_jax.models.families import FAMILIES
from distill_jax.models.family import Family
from distill_jax.models.rope import RopeScaling, inverse_frequencies
from distill_jax.models.weights import Checkpoint, check_names, stack_weights
from distill_jax.types import Advance, UserError, silent

# Metadata keys, without the architecture's prefix, and their names in a config.json.
METADATA_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
ROPE_DIVISORS = "rope_freqs.weight"  # divisors of the rotary frequencies, [H/2]
_gguf_name = attrgetter("gguf")  # of a family.Weight


def read(path: Path, *, dtype, advance: Advance = silent) -> Checkpoint:
    """A checkpoint from a .gguf file. `dtype` None means float32, the result of dequantizing.

    Raises UserError for a truncated GGUF file, an unknown architecture or quantization, incomplete
    metadata, missing, extra or misshapen weights.
    """
    metadata, tensors = read_gguf(path)
    architecture = metadata.get("general.architecture")
    family = _family(architecture, path)
    raw = _config_json(metadata, tensors, family, path)
    _check(raw, path)
    config = family.from_hf(raw)
    present = [tensor for tensor in tensors if tensor != ROPE_DIVISORS]
    check_names(config, present, _gguf_name, source=path)

    def fetch(parameter, tensor_name):
        return family.gguf.hf_array(parameter, _values(tensors[tensor_name], path), config)

    params = stack_weights(config, fetch, _gguf_name, lambda _: path, dtype=dtype, advance=advance)
    return Checkpoint(config, params, path)


def _family(architecture, path) -> Family:
    known = {f.gguf.architecture: f for f in FAMILIES.values() if f.gguf}
    if not isinstance(architecture, str) or architecture not in known:
        names = ", ".join(sorted(known))
        raise UserError(
            f"{path} has GGUF architecture '{str(architecture)[:60]}': use one of {names}"
        )
    return known[architecture]


def _check(raw, path):
    try:
        check_values(raw)
    except UserError as error:
        raise UserError(f"{path}: its metadata as a {error}") from None


def _config_json(metadata, tensors, family, path):
    """The config.json that this metadata stands for."""
    prefix = family.gguf.architecture + "."
    own = {key.removeprefix(prefix): v for key, v in metadata.items() if key.startswith(prefix)}
    missing = [prefix + key for key in METADATA_KEYS if key not in own]
    missing += [] if "token_embd.weight" in tensors else ["token_embd.weight"]
    if missing:
        raise UserError(f"{path} has no {missing[0]}: use a complete GGUF file")
    raw = {theirs: own[key] for key, theirs in METADATA_KEYS.items()}
    heads = raw["num_attention_heads"]
    if not isinstance(heads, int) or not isinstance(own.get("attention.head_count_kv", heads), int):
        raise UserError(f"{path} has different numbers of heads in its blocks: use a uniform model")
    _check(raw, path)
    raw |= {
        "vocab_size": int(tensors["token_embd.weight"].shape[-1]),
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "head_dim": own.get("attention.key_length")
        or own.get("rope.dimension_count")
        or raw["hidden_size"] // heads,
        "num_local_experts": own.get("expert_count", 0),
        "rope_theta": own.get("rope.freq_base"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        # Stored as float32: back to the decimal number that was meant.
        "rms_norm_eps": float(str(np.float32(raw["rms_norm_eps"]))),
    }
    kind = own.get("rope.scaling.type", "none")
    if kind != "none":
        raw["rope_scaling"] = {"rope_type": kind, "factor": own.get("rope.scaling.factor")}
    if ROPE_DIVISORS in tensors:
        raw["rope_scaling"] = _llama3_scaling(_values(tensors[ROPE_DIVISORS], path), raw, path)
    return raw | family.gguf.entries(own, raw)


def _llama3_scaling(divisors, raw, path):
    """GGUF stores Llama 3's scaling as divisors; its models differ only in the factor."""
    scaling = RopeScaling("llama3", float(divisors.max()), 1.0, 4.0, 8192)
    theta = raw["rope_theta"] or 10_000.0
    plain = inverse_frequencies(raw["head_dim"], theta, None)
    scaled = inverse_frequencies(raw["head_dim"], theta, scaling)
    if divisors.shape != plain.shape or not np.allclose(plain / divisors, scaled, rtol=1e-4):
        raise UserError(
            f"{path} has {ROPE_DIVISORS} unlike Llama 3's: use a safetensors checkpoint"
        )
    return config_json.write_rope_scaling(scaling)


def _values(tensor, path):
    try:
        return dequantize(tensor.data, tensor.kind)
    except NotImplementedError as error:
        raise UserError(
            f"{path} stores {tensor.name} as {tensor.kind.name}, which the gguf package "
            "cannot dequantize: use another quantization"
        ) from error
