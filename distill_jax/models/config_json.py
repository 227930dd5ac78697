"""Reads and writes the entries of config.json that most decoder families share.

Written with the names that every version of transformers reads: `rope_theta` and `rope_scaling`.
The newer `rope_parameters` is read too.
"""

import math

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.rope import RopeScaling
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

_SCALING_KEYS = {
    "factor": "factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "original_max_position_embeddings": "original_positions",
}
_YARN_KEYS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_positions",
    "beta_fast": "fast_turns",
    "beta_slow": "slow_turns",
    "truncate": "truncate",
    "attention_factor": "attention_factor",
}


def required(raw: dict, name: str):
    """raw[name]. Raises UserError if it is absent or null."""
    if raw.get(name) is None:
        raise UserError(f"config.json has no '{name}': add it or use a complete checkpoint")
    return raw[name]


def without_null(raw: dict) -> dict:
    """The entries that are not null, where null means the same as an absent entry."""
    return {name: value for name, value in raw.items() if value is not None}


def refuse_unsupported(raw: dict) -> None:
    """Raises UserError for the first feature of a config.json that the decoder lacks."""
    for name, harmless in UNSUPPORTED.items():
        value = raw.get(name)
        if value is not None and value != harmless:
            raise UserError(
                f"config.json asks for {name}={str(value)[:60]}, which is not supported: "
                f"use a checkpoint with {name}={harmless}"
            )


def read_rope(raw: dict, *, layer_type: str, theta: float) -> tuple[float, RopeScaling | None]:
    """(rotary base, scaling) of a kind of layer; `theta` is the default base."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    parameters = parameters.get(layer_type) or parameters
    theta = float(parameters.get("rope_theta") or raw.get("rope_theta") or theta)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", float(required(parameters, "factor")))
    if kind == "longrope":
        return theta, _read_longrope(raw, parameters)
    if kind != "llama3":
        raise UserError(
            f"rope type '{kind}' is not supported: use a checkpoint with default, linear, llama3 or"
            " longrope"
        )
    positions = required(raw, "max_position_embeddings")
    values = {"original_max_position_embeddings": positions, **parameters}
    return theta, RopeScaling(
        "llama3", **{ours: required(values, name) for name, ours in _SCALING_KEYS.items()}
    )


def _read_longrope(raw, parameters):
    positions = required(raw, "max_position_embeddings")
    name = "original_max_position_embeddings"
    original = raw.get(name) or parameters.get(name) or positions
    if type(original) is not int or original < 2:
        raise UserError(f"config.json has {name}={original}, not a whole number from 2: restore it")
    factor = float(parameters.get("factor") or positions / original)
    return RopeScaling(
        "longrope",
        factor,
        original_positions=original,
        short_factors=tuple(map(float, required(parameters, "short_factor"))),
        long_factors=tuple(map(float, required(parameters, "long_factor"))),
        attention_factor=parameters.get("attention_factor") or _attention_factor(factor, original),
    )


def _attention_factor(factor, original):
    """The default of LongRoPE (2402.13753, section 3.3)."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _write_longrope(config):
    """Three keys where the others have their defaults: older versions of transformers insist."""
    scaling = config.rope_scaling
    factor, original = scaling.factor, scaling.original_positions
    rest = {
        "factor": (factor, config.max_positions / original),
        "attention_factor": (scaling.attention_factor, _attention_factor(factor, original)),
    }
    return {
        "rope_scaling": {
            "type": "longrope",
            "short_factor": list(scaling.short_factors),
            "long_factor": list(scaling.long_factors),
            **{name: value for name, (value, default) in rest.items() if value != default},
        },
        "original_max_position_embeddings": original,
    }


def read_yarn(raw: dict, *, theta: float) -> tuple[float, RopeScaling | None]:
    """As read_rope of all layers, of a family that has YaRN too.

    Absent entries are what transformers takes them to be (2309.00071, section 3.4).
    """
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if (parameters.get("rope_type") or parameters.get("type")) != "yarn":
        return read_rope(raw, layer_type="full_attention", theta=theta)
    for name in ("mscale", "mscale_all_dim"):
        if parameters.get(name):
            raise UserError(
                f"config.json asks for {name}={str(parameters[name])[:60]} of a rope type 'yarn',"
                " which is not supported: use a checkpoint without it"
            )
    theta = float(parameters.get("rope_theta") or raw.get("rope_theta") or theta)
    if theta <= 1:
        raise UserError(f"config.json has rope_theta={theta:g}, not more than 1: restore the file")
    factor = float(required(parameters, "factor"))
    usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    values = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True, "attention_factor": usual}
    values |= without_null({name: parameters.get(name) for name in _YARN_KEYS})
    return theta, RopeScaling(
        "yarn", **{ours: required(values, name) for name, ours in _YARN_KEYS.items()}
    )


def read_rotary_width(raw: dict, head_width: int, *, share: float) -> int:
    """Coordinates of a head that turn; `share` of it where `rope_parameters` do not say."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    return int(head_width * (parameters.get("partial_rotary_factor") or share))


def rotary_share(config: ModelConfig) -> float:
    """The share of a head that turns, such that rounding down gives back the whole number."""
    return share_of(config.turned_width, config.head_width)


def share_of(turned: int, head_width: int) -> float:
    """The same of the coordinates that turn."""
    share = turned / head_width
    return share if int(head_width * share) == turned else math.nextafter(share, 1.0)


def write_rope_scaling(scaling: RopeScaling | None) -> dict | None:
    """The `rope_scaling` entry of a config.json."""
    if scaling is None:
        return None
    keys = _YARN_KEYS if scaling.kind == "yarn" else _SCALING_KEYS
    values = {name: getattr(scaling, ours) for name, ours in keys.items()}
    return {"rope_type": scaling.kind, **{k: v for k, v in values.items() if v is not None}}


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


def read_experts(raw: dict, *, count: int, per_token: int) -> tuple[dict, dict]:
    """(the other entries of a config.json, the fields of its experts); `count` and `per_token` are
    the defaults of absent keys.

    Older files say num_experts where newer ones say num_local_experts.
    """
    names = ("num_local_experts", "num_experts")
    given = [raw[name] for name in names if raw.get(name) is not None]
    rest = {name: value for name, value in raw.items() if name not in names}
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
        shared |= _write_longrope(config)
    return {**shared, **own}
