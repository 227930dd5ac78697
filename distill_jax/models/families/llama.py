"""Llama 2 and 3, SmolLM2."""

import numpy as np

from distill_jax.models.config_json import read_common, write_common
from distill_jax.models.family import TIED_AND_UNTIED, Family, Gguf
from distill_jax.types import UserError


def _from_hf(raw):
    bias = bool(raw.get("attention_bias"))
    return read_common(raw, family="llama", qkv_bias=bias, output_bias=bias)


def _to_hf(config):
    return write_common(
        config,
        architecture="LlamaForCausalLM",
        hidden_act=config.activation,
        attention_bias=config.qkv_bias,
        mlp_bias=config.feed_forward_bias,
    )


def _gguf_entries(metadata, raw):
    """Nothing besides the common keys. Mistral's GGUF files are read here too; see mistral.py."""
    window = metadata.get("attention.sliding_window")
    if window and window < raw["max_position_embeddings"]:
        raise UserError(
            f"this GGUF file has llama.attention.sliding_window={window}, which Llama lacks: "
            "use a safetensors checkpoint"
        )
    return {}


def interleaved(path, config):
    """Files of Llama interleave the rows of a head's queries and keys: 0, H/2, 1, H/2 + 1, ..."""
    heads = {"query": config.heads, "key": config.kv_heads}.get(
        path.removeprefix("blocks/attention/").removesuffix("_bias")
    )
    if heads is None:
        return None
    rows = np.arange(heads * config.head_width)
    return rows.reshape(heads, 2, config.head_width // 2).swapaxes(1, 2).reshape(-1)


_BIAS = {"attention_bias": True}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# GGUF files leave out what is the same in all real models.
_REAL_LLAMA3_ROPE = {
    "rope_parameters": {
        **_LLAMA3_ROPE,
        "rope_theta": 500_000.0,
        "original_max_position_embeddings": 8192,
    },
    "max_position_embeddings": 16_384,
}

LLAMA = Family(
    models="Llama 2 and 3, SmolLM2, TinyLlama",
    from_hf=_from_hf,
    to_hf=_to_hf,
    gguf=Gguf(
        "llama",
        entries=_gguf_entries,
        order=interleaved,
        is_own=lambda metadata: not metadata.get("expert_count"),  # else Mixtral
        variants={**TIED_AND_UNTIED, "bias": _BIAS, "rope3": _REAL_LLAMA3_ROPE},
    ),
    variants={
        **TIED_AND_UNTIED,
        "bias": {**_BIAS, "mlp_bias": True},
        "rope3": {"rope_parameters": _LLAMA3_ROPE},
    },
)
