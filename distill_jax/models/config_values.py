"""What the values of a config.json may be, looked at before anything is computed from them."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from distill_jax.types import UserError

# Least and most of whole numbers: several times those of any model there is, so that a damaged or
# hostile file is refused before its sizes are counted out or allocated.
INTEGERS = {
    "vocab_size": (1, 2**24),
    "hidden_size": (1, 2**20),
    "num_hidden_layers": (1, 2**12),
    "num_attention_heads": (1, 2**14),
    "num_key_value_heads": (1, 2**14),
    "head_dim": (2, 2**14),
    "intermediate_size": (1, 2**22),
    "max_position_embeddings": (1, 2**31 - 1),
    "sliding_window": (1, 2**31 - 1),
    "sliding_window_pattern": (1, 2**12),
    "max_window_layers": (0, 2**12),
    "original_max_position_embeddings": (2, 2**31 - 1),
    "no_rope_layer_interval": (1, 2**12),
    "num_experts": (0, 2**14),
    "num_local_experts": (0, 2**14),
    "num_experts_per_tok": (1, 2**14),
    "moe_intermediate_size": (1, 2**22),
    "decoder_sparse_step": (1, 2**12),
}
# Of other numbers: more than the first, at most the second.
NUMBERS = {
    "rms_norm_eps": (0, 1),
    "initializer_range": (0, 100),
    "rope_theta": (0, 1e15),
    "rope_local_base_freq": (0, 1e15),
    "query_pre_attn_scalar": (0, 1e9),
    "attn_logit_softcapping": (0, 1e9),
    "final_logit_softcapping": (0, 1e9),
    "partial_rotary_factor": (0, 1),
    "embedding_multiplier": (0, 1e9),
    "attention_multiplier": (0, 1e9),
    "residual_multiplier": (0, 1e9),
    "logits_scaling": (0, 1e9),
    "swiglu_limit": (0, 1e9),
    "swiglu_alpha": (0, 1e9),
}
FLAGS = (
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "use_sliding_window",
    "norm_topk_prob",
)
TEXTS = ("hidden_act", "hidden_activation")
OF_ROPE = {
    "rope_theta": (0, 1e15),
    "partial_rotary_factor": (0, 1),
    "factor": (0, 1e6),
    "low_freq_factor": (0, 1e6),
    "high_freq_factor": (0, 1e6),
    "beta_fast": (0, 1e6),
    "beta_slow": (0, 1e6),
    "original_max_position_embeddings": (0, 2**31 - 1),
    "attention_factor": (0, 1e6),
}
# Which transformers refuses to read as null, in all families that have them.
NOT_NULL = {
    *FLAGS,
    *TEXTS,
    "initializer_range",
    "max_window_layers",
    "no_rope_layer_interval",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "decoder_sparse_step",
    "embedding_multiplier",
    "attention_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "swiglu_limit",
    "swiglu_alpha",
}
_KINDS = ("full_attention", "sliding_attention")


def required(raw: dict, name: str):
    """raw[name]. Raises UserError if it is absent or null."""
    if raw.get(name) is None:
        raise UserError(f"config.json has no '{name}': add it or use a complete checkpoint")
    return raw[name]


def without_null(raw: dict) -> dict:
    """The entries that are not null, where null means the same as an absent entry."""
    return {name: value for name, value in raw.items() if value is not None}


def check_values(raw: dict, own_entries: Mapping[str, str] = MappingProxyType({})) -> None:
    """Raises UserError for the first value that is of a wrong type or out of bounds.

    own_entries: of the family, see family.Family. Absent and null are the same but in NOT_NULL,
    and for the families to judge.
    """
    given = {
        name: value
        for name, value in raw.items()
        if value is not None or own_entries.get(name, name) in NOT_NULL
    }
    for name, value in given.items():
        _check_value(name, value, own_entries.get(name, name))
    blocks = given.get("num_hidden_layers")
    types = given.get("layer_types", [])
    if not isinstance(types, list) or not all(isinstance(kind, str) for kind in types):
        raise _wrong("layer_types", types, "a list of texts")
    if "layer_types" in given and blocks is not None and len(types) != blocks:
        raise UserError(
            f"config.json has {len(types)} layer_types for {blocks} num_hidden_layers: restore the"
            " file"
        )
    for name, most in (("no_rope_layers", 1), ("mlp_only_layers", 2**12)):
        numbers = given.get(name, [])
        whole = isinstance(numbers, list) and all(
            type(n) is int and 0 <= n <= most for n in numbers
        )
        if not whole:
            raise _wrong(name, numbers, f"a list of whole numbers from 0 to {most}")
    for name in ("rope_parameters", "rope_scaling"):
        if name in given:
            _check_rope(name, given[name])


def _check_rope(name: str, value: Any) -> None:
    """The parameters of all blocks, or those of each kind of them."""
    if not isinstance(value, dict):
        raise _wrong(name, value, "an object")
    of_kinds = {kind: value[kind] for kind in _KINDS if value.get(kind) is not None}
    for kind, inner in of_kinds.items():
        if not isinstance(inner, dict):
            raise _wrong(f"{name}.{kind}", inner, "an object")
    for part in (value, *of_kinds.values()):
        given = {key: inner for key, inner in part.items() if inner is not None}
        for key in given.keys() & OF_ROPE.keys():
            _check_number(key, given[key], OF_ROPE[key])
        for key in {"short_factor", "long_factor"} & given.keys():
            if not isinstance(given[key], list):
                raise _wrong(key, given[key], "a list of numbers")
            for factor in given[key]:
                _check_number(key, factor, OF_ROPE["factor"])
        if not isinstance(given.get("truncate", True), bool):
            raise _wrong("truncate", given["truncate"], "true or false")
        for key in ("rope_type", "type"):
            if not isinstance(given.get(key, ""), str):
                raise _wrong(key, given[key], "a text")
        low, high = (given.get(f"{side}_freq_factor") for side in ("low", "high"))
        if low is not None and high is not None and not low < high:
            raise _wrong("high_freq_factor", high, f"more than low_freq_factor {low}")


def _check_value(name: str, value: Any, like: str) -> None:
    """Whether it is a value of the entry `like`."""
    if like in INTEGERS:
        least, most = INTEGERS[like]
        if not (type(value) is int and least <= value <= most):
            raise _wrong(name, value, f"a whole number from {least} to {most}")
    elif like in NUMBERS:
        _check_number(name, value, NUMBERS[like])
    elif like in FLAGS and not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    elif like in TEXTS and not isinstance(value, str):
        raise _wrong(name, value, "a text")


def _check_number(name: str, value: Any, bounds: tuple[float, float]) -> None:
    least, most = bounds
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not (fits and least < value <= most):  # never true of NaN
        raise _wrong(name, value, f"a number above {least}, up to {most:g}")


def shown(value: Any) -> str:
    """A value as it stands in a config.json, cut short."""
    try:
        return json.dumps(value)[:60]
    except (TypeError, ValueError):  # from a GGUF file
        return str(value)[:60]


def _wrong(name: str, value: Any, wanted: str) -> UserError:
    return UserError(f"config.json has {name}={shown(value)}, not {wanted}: restore the file")
