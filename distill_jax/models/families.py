"""Model families: one entry each, in FAMILIES at the bottom, keyed by Hugging Face's model_type.

To add a family, write its entry here: reader and writer of config.json, names of its weights,
sharding rules, GGUF conventions. The tests run over FAMILIES.
"""

import numpy as np

from distill_jax.models import config_json
from distill_jax.models.family import (
    DEFAULT_SHARDING,
    DEFAULT_WEIGHTS,
    Family,
    Gguf,
    as_stored,
    block_weight,
)
from distill_jax.types import UserError


def family_of(model_type: str | None) -> Family:
    """The entry of a model_type; UserError with those known."""
    if model_type not in FAMILIES:
        raise UserError(
            f"model_type '{model_type}' is not supported: use one of {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


# Llama 2 and 3, SmolLM2


def _llama_from_hf(raw):
    theta, scaling = config_json.read_rope(raw, layer_type="full_attention", theta=10_000.0)
    bias = bool(raw.get("attention_bias"))
    return config_json.read_common(
        raw,
        family="llama",
        rope_theta=theta,
        rope_scaling=scaling,
        activation=raw.get("hidden_act") or "silu",
        tied=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=bias,
        output_bias=bias,
    )


def _llama_to_hf(config):
    return config_json.write_common(
        config,
        architecture="LlamaForCausalLM",
        hidden_act=config.activation,
        attention_bias=config.qkv_bias,
        mlp_bias=False,
    )


def _llama_restore(path, array, config):
    """Llama's GGUF files interleave the rows of a head, (0, H/2, 1, H/2+1, ..); undo it."""
    heads = {"query": config.heads, "key": config.kv_heads}.get(
        path.removeprefix("blocks/attention/").removesuffix("_bias")
    )
    if heads is None:
        return array
    pairs = array.reshape(heads, config.head_width // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


# Qwen 2, 2.5 and 3: a window, when used, holds for the blocks from max_window_layers on


def _qwen_from_hf(raw, **own):
    theta, scaling = config_json.read_rope(raw, layer_type="full_attention", theta=10_000.0)
    window = raw.get("sliding_window") if raw.get("use_sliding_window") else None
    first = raw.get("max_window_layers") or 0
    local = config_json.read_local_blocks(raw, pattern=lambda i: window is not None and i >= first)
    return config_json.read_common(
        raw,
        rope_theta=theta,
        rope_scaling=scaling,
        activation=raw.get("hidden_act") or "silu",
        tied=bool(raw.get("tie_word_embeddings", False)),
        sliding_window=window,
        local_blocks=local,
        **own,
    )


def _qwen_to_hf(config, **own):
    return config_json.write_common(
        config,
        hidden_act=config.activation,
        use_sliding_window=config.local_blocks is not None,
        sliding_window=config.sliding_window,
        max_window_layers=config.blocks,
        layer_types=config_json.write_layer_types(config),
        **own,
    )


def _qwen3_from_hf(raw):
    bias = bool(raw.get("attention_bias"))
    raw = {"head_dim": 128, **raw}
    return _qwen_from_hf(raw, family="qwen3", query_key_norm=True, qkv_bias=bias, output_bias=bias)


# Gemma 3, text


def _gemma3_from_hf(raw):
    theta, scaling = config_json.read_rope(raw, layer_type="full_attention", theta=1_000_000.0)
    local_raw = {"rope_theta": raw.get("rope_local_base_freq")}
    if raw.get("rope_parameters"):
        local_raw["rope_parameters"] = raw["rope_parameters"]
    local_theta, local_scaling = config_json.read_rope(
        local_raw, layer_type="sliding_attention", theta=10_000.0
    )
    if local_scaling is not None:
        raise UserError(
            f"rope type '{local_scaling.kind}' for sliding_attention is not supported: use default"
        )
    every = raw.get("sliding_window_pattern") or 6
    bias = bool(raw.get("attention_bias"))
    scalar = raw.get("query_pre_attn_scalar") or 256
    return config_json.read_common(
        {"head_dim": 256, **raw},
        family="gemma3_text",
        rope_theta=theta,
        rope_scaling=scaling,
        rope_local_theta=local_theta,
        sliding_window=raw.get("sliding_window") or 4096,
        local_blocks=config_json.read_local_blocks(raw, pattern=lambda i: (i + 1) % every),
        activation=raw.get("hidden_activation") or "gelu_pytorch_tanh",
        tied=bool(raw.get("tie_word_embeddings", True)),
        qkv_bias=bias,
        output_bias=bias,
        query_key_norm=True,
        unit_offset_norm=True,
        post_norms=True,
        embedding_scale=config_json.required(raw, "hidden_size") ** 0.5,
        attention_scale=scalar**-0.5,
        attention_softcap=raw.get("attn_logit_softcapping"),
        final_softcap=raw.get("final_logit_softcapping"),
    )


def _gemma3_to_hf(config):
    scale = config.attention_scale or config.head_width**-0.5
    return config_json.write_common(
        config,
        architecture="Gemma3ForCausalLM",
        hidden_activation=config.activation,
        attention_bias=config.qkv_bias,
        rope_local_base_freq=config.rope_local_theta,
        sliding_window=config.sliding_window,
        layer_types=config_json.write_layer_types(config),
        query_pre_attn_scalar=round(scale**-2),
        attn_logit_softcapping=config.attention_softcap,
        final_logit_softcapping=config.final_softcap,
    )


GEMMA3_WEIGHTS = {
    **DEFAULT_WEIGHTS,
    "blocks/attention/post_norm": block_weight("post_attention_layernorm", "post_attention_norm"),
    "blocks/feed_forward/norm": block_weight("pre_feedforward_layernorm", "ffn_norm"),
    "blocks/feed_forward/post_norm": block_weight("post_feedforward_layernorm", "post_ffw_norm"),
}


def _gemma3_gguf(metadata, raw):
    # What GGUF files of Gemma 3 leave out is fixed by the family: one block in six is global, local
    # blocks have base 10,000, and the 62-block model alone scales scores by width / heads.
    wide = raw["num_hidden_layers"] == 62
    pattern = metadata.get("attention.sliding_window_pattern", 6)
    local = (
        pattern
        if isinstance(pattern, list)
        else [bool((i + 1) % pattern) for i in range(raw["num_hidden_layers"])]
    )
    return {
        "sliding_window": config_json.required(metadata, "attention.sliding_window"),
        "layer_types": ["sliding_attention" if flag else "full_attention" for flag in local],
        "rope_local_base_freq": metadata.get("rope.freq_base_swa", 10_000.0),
        "query_pre_attn_scalar": (
            raw["hidden_size"] // raw["num_attention_heads"] if wide else raw["head_dim"]
        ),
        "attn_logit_softcapping": metadata.get("attn_logit_softcapping"),
        "final_logit_softcapping": metadata.get("final_logit_softcapping"),
    }


def _gemma3_restore(path, array, config):
    """Gemma's GGUF files hold 1 + weight for every norm."""
    return array - np.float32(1.0) if path.endswith("norm") else array


FAMILIES = {
    "llama": Family(
        from_hf=_llama_from_hf,
        to_hf=_llama_to_hf,
        weights=DEFAULT_WEIGHTS,
        sharding=DEFAULT_SHARDING,
        gguf=Gguf("llama", lambda metadata, raw: {}, _llama_restore),
    ),
    "qwen2": Family(
        from_hf=lambda raw: _qwen_from_hf(raw, family="qwen2", qkv_bias=True),
        to_hf=lambda config: _qwen_to_hf(config, architecture="Qwen2ForCausalLM"),
        weights=DEFAULT_WEIGHTS,
        sharding=DEFAULT_SHARDING,
        gguf=Gguf("qwen2", lambda metadata, raw: {}, as_stored),
    ),
    "qwen3": Family(
        from_hf=_qwen3_from_hf,
        to_hf=lambda config: _qwen_to_hf(
            config, architecture="Qwen3ForCausalLM", attention_bias=config.qkv_bias
        ),
        weights=DEFAULT_WEIGHTS,
        sharding=DEFAULT_SHARDING,
        gguf=Gguf("qwen3", lambda metadata, raw: {}, as_stored),
    ),
    "gemma3_text": Family(
        from_hf=_gemma3_from_hf,
        to_hf=_gemma3_to_hf,
        weights=GEMMA3_WEIGHTS,
        sharding=DEFAULT_SHARDING,
        gguf=Gguf("gemma3", _gemma3_gguf, _gemma3_restore),
    ),
}
