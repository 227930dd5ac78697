"""Reads and writes the entries of config.json that most decoder families share.

Those of rotary positions stand in config_rope.py.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.config_rope import read_rope, write_longrope, write_rope_scaling
from distill_jax.models.config_values import required, shown
from distill_jax.types import UserError

# Keys of features that the decoder lacks, with the value that turns the feature off.
UNSUPPORTED = {
    "use_bidirectional_attention": False,
    "partial_rotary_factor": 1.0,
    "add_cross_attention": False,
    "scale_attn_by_inverse_layer_idx": False,
    "quantization_config": None,
    "num_experts": 0,
    "num_local_experts": 0,
}


def refuse_unsupported(raw: dict, features: Mapping[str, Any] = MappingProxyType(UNSUPPORTED)):
    """Raises UserError for the first feature of a config.json that the decoder lacks.

    features: key -> the value that turns the feature off.
    """
    for name, harmless in features.items():
        value = raw.get(name)
        if value is not None and value != harmless:
            raise UserError(
                f"config.json asks for {name}={shown(value)}, which is not supported: "
                f"use a checkpoint with {name}={shown(harmless)}"
            )


def read_local_blocks(raw: dict, *, pattern) -> tuple[bool, ...] | None:
    """One flag per block, from `layer_types` or else pattern(index); None if all are global."""
    kinds = {"sliding_attention": True, "full_attention": False}
    types = raw.get("layer_types")
    if unknown := sorted(set(types or ()) - set(kinds)):
        raise UserError(f"layer type '{unknown[0]}' is not supported: use one of {sorted(kinds)}")
    if types is None:
        flags = tuple(bool(pattern(i)) for i in range(required(raw, "num_hidden_layers")))
    else:
        flags = tuple(kinds[kind] for kind in types)
    return flags if any(flags) else None


def write_layer_types(config: ModelConfig) -> list[str]:
    """The `layer_types` entry of a config.json."""
    flags = config.local_blocks or (False,) * config.blocks
    return ["sliding_attention" if local else "full_attention" for local in flags]


def read_experts(raw: dict, *, count: int, per_token: int, least: int = 1) -> tuple[dict, dict]:
    """(the other entries of a config.json, the fields of its experts); `count` and `per_token` are
    the defaults of absent keys. Raises UserError for fewer than `least` experts.

    Older files say num_experts where newer ones say num_local_experts.
    """
    names = ("num_local_experts", "num_experts")
    given = [raw[name] for name in names if raw.get(name) is not None]
    rest = {name: value for name, value in raw.items() if name not in names}
    if given and given[0] < least:
        raise UserError(
            f"config.json has {given[0]} experts, and every block of this family has some: restore"
            " num_local_experts"
        )
    per_token = raw.get("num_experts_per_tok") or per_token
    return rest, {"experts": given[0] if given else count, "experts_per_token": per_token}


def read_common(raw: dict, **own) -> ModelConfig:
    """The config from the keys that most families share; the family's `own` fields override it."""
    refuse_unsupported(raw)
    theta, scaling = read_rope(raw, layer_type="full_attention", theta=10_000.0)
    heads, width = required(raw, "num_attention_heads"), required(raw, "hidden_size")
    shared = {
        "vocab": required(raw, "vocab_size"),
        "width": width,
        "blocks": required(raw, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": raw.get("num_key_value_heads") or heads,
        "head_width": raw.get("head_dim") or width // heads,
        "neurons": required(raw, "intermediate_size"),
        "max_positions": required(raw, "max_position_embeddings"),
        "norm_eps": float(required(raw, "rms_norm_eps")),
        "init_std": float(raw.get("initializer_range") or 0.02),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "activation": raw.get("hidden_act") or "silu",
        "tied": bool(raw.get("tie_word_embeddings", False)),
        "feed_forward_bias": bool(raw.get("mlp_bias")),
    }
    return ModelConfig(**{**shared, **own})


def write_common(config: ModelConfig, *, architecture: str, **own) -> dict:
    """A config.json without token ids and dtype, which belong to the checkpoint."""
    shared = {
        "architectures": [architecture],
        "model_type": config.family,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.blocks,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.neurons,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "rope_theta": config.rope_theta,
        "rope_scaling": write_rope_scaling(config.rope_scaling),
        "tie_word_embeddings": config.tied,
        "attention_dropout": 0.0,
    }
    if config.rope_scaling is not None and config.rope_scaling.kind == "longrope":
        shared |= write_longrope(config)
    return {**shared, **own}
