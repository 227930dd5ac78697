"""Gemma 3, text: local and global blocks with separate rotary tables; norms after each half."""

import numpy as np

from distill_jax.models.config_json import (
    read_common,
    read_local_blocks,
    read_rope,
    required,
    write_common,
    write_layer_types,
)
from distill_jax.models.family import (
    ALTERNATING,
    DEFAULT_WEIGHTS,
    TIED_AND_UNTIED,
    Family,
    Gguf,
    block_weight,
)
from distill_jax.types import UserError


def _from_hf(raw):
    theta, scaling = read_rope(raw, layer_type="full_attention", theta=1_000_000.0)
    local_raw = {"rope_theta": raw.get("rope_local_base_freq")}
    if raw.get("rope_parameters"):
        local_raw["rope_parameters"] = raw["rope_parameters"]
    local_theta, local_scaling = read_rope(
        local_raw, layer_type="sliding_attention", theta=10_000.0
    )
    if local_scaling is not None:
        raise UserError(
            f"rope type '{local_scaling.kind}' for sliding_attention is not supported: use default"
        )
    every = raw.get("sliding_window_pattern") or 6
    bias = bool(raw.get("attention_bias"))
    scalar = raw.get("query_pre_attn_scalar") or 256
    return read_common(
        {"head_dim": 256, **raw},
        family="gemma3_text",
        rope_theta=theta,
        rope_scaling=scaling,
        rope_local_theta=local_theta,
        sliding_window=raw.get("sliding_window") or 4096,
        local_blocks=read_local_blocks(raw, pattern=lambda i: (i + 1) % every),
        activation=raw.get("hidden_activation") or "gelu_pytorch_tanh",
        tied=bool(raw.get("tie_word_embeddings", True)),
        qkv_bias=bias,
        output_bias=bias,
        query_key_norm=True,
        unit_offset_norm=True,
        post_norms=True,
        embedding_scale=required(raw, "hidden_size") ** 0.5,
        attention_scale=scalar**-0.5,
        attention_softcap=raw.get("attn_logit_softcapping"),
        final_softcap=raw.get("final_logit_softcapping"),
    )


def _to_hf(config):
    scale = config.attention_scale or config.head_width**-0.5
    return write_common(
        config,
        architecture="Gemma3ForCausalLM",
        hidden_activation=config.activation,
        attention_bias=config.qkv_bias,
        rope_local_base_freq=config.rope_local_theta,
        sliding_window=config.sliding_window,
        layer_types=write_layer_types(config),
        query_pre_attn_scalar=round(scale**-2),
        attn_logit_softcapping=config.attention_softcap,
        final_logit_softcapping=config.final_softcap,
    )


_WEIGHTS = {
    **DEFAULT_WEIGHTS,
    "blocks/attention/post_norm": block_weight("post_attention_layernorm", "post_attention_norm"),
    "blocks/feed_forward/norm": block_weight("pre_feedforward_layernorm", "ffn_norm"),
    "blocks/feed_forward/post_norm": block_weight("post_feedforward_layernorm", "post_ffw_norm"),
}


def _gguf_entries(metadata, raw):
    # Not in the files, but the same for the whole family: one block in six is global, and local
    # blocks have base 10,000. Only the 62-block model scales scores by width / heads.
    wide = raw["num_hidden_layers"] == 62
    pattern = metadata.get("attention.sliding_window_pattern", 6)
    local = (
        pattern
        if isinstance(pattern, list)
        else [bool((i + 1) % pattern) for i in range(raw["num_hidden_layers"])]
    )
    return {
        "sliding_window": required(metadata, "attention.sliding_window"),
        "layer_types": ["sliding_attention" if flag else "full_attention" for flag in local],
        "rope_local_base_freq": metadata.get("rope.freq_base_swa", 10_000.0),
        "query_pre_attn_scalar": (
            raw["hidden_size"] // raw["num_attention_heads"] if wide else raw["head_dim"]
        ),
        "attn_logit_softcapping": metadata.get("attn_logit_softcapping"),
        "final_logit_softcapping": metadata.get("final_logit_softcapping"),
    }


def _hf_array(path, array, config):
    """Gemma's GGUF files hold 1 + weight for every norm."""
    return array - np.float32(1.0) if path.endswith("norm") else array


_LINEAR_ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0}
_LINEAR = {
    "rope_parameters": {"full_attention": _LINEAR_ROPE},
    "final_logit_softcapping": 3.0,
}
_VARIANTS = {
    name: {**ALTERNATING, **entries}
    for name, entries in {**TIED_AND_UNTIED, "linear": _LINEAR}.items()
}
# Not in GGUF files: it is the width of a head in all but the 62-block model.
_GGUF_VARIANTS = {
    name: {**entries, "query_pre_attn_scalar": 16} for name, entries in _VARIANTS.items()
}

GEMMA3 = Family(
    from_hf=_from_hf,
    to_hf=_to_hf,
    weights=_WEIGHTS,
    gguf=Gguf("gemma3", entries=_gguf_entries, hf_array=_hf_array, variants=_GGUF_VARIANTS),
    variants=_VARIANTS,
)
