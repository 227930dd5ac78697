"""Gemma 2: Gemma with soft caps, a window on every other block, and a norm after each half too."""

from distill_jax.models.config_json import read_local_blocks, write_common, write_layer_types
from distill_jax.models.config_values import required
from distill_jax.models.families.gemma import no_output_matrix, read_gemma
from distill_jax.models.family import (
    ALTERNATING,
    DEFAULT_WEIGHTS,
    TIED_AND_UNTIED,
    Family,
    Gguf,
    block_weight,
)

# The defaults of transformers for absent keys; a soft cap that is null is none.
_DEFAULTS = {
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}

GGUF_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}

FOUR_NORMS = {
    **DEFAULT_WEIGHTS,
    "blocks/attention/post_norm": block_weight("post_attention_layernorm", "post_attention_norm"),
    "blocks/feed_forward/norm": block_weight("pre_feedforward_layernorm", "ffn_norm"),
    "blocks/feed_forward/post_norm": block_weight("post_feedforward_layernorm", "post_ffw_norm"),
}


def read_gemma2(raw, *, pattern, **own):
    """The config of Gemma 2 or 3. pattern(index): whether a block is local, without layer_types."""
    return read_gemma(
        raw,
        sliding_window=raw.get("sliding_window"),
        local_blocks=read_local_blocks(raw, pattern=pattern),
        activation=raw.get("hidden_activation") or "gelu_pytorch_tanh",
        post_norms=True,
        attention_scale=(raw.get("query_pre_attn_scalar") or 256) ** -0.5,
        attention_softcap=raw.get("attn_logit_softcapping"),
        final_softcap=raw.get("final_logit_softcapping"),
        **own,
    )


def write_gemma2(config, **own):
    """The config.json of Gemma 2 or 3."""
    scale = config.attention_scale or config.head_width**-0.5
    return write_common(
        config,
        hidden_activation=config.activation,
        attention_bias=config.qkv_bias,
        sliding_window=config.sliding_window,
        layer_types=write_layer_types(config),
        query_pre_attn_scalar=round(scale**-2),
        attn_logit_softcapping=config.attention_softcap,
        final_logit_softcapping=config.final_softcap,
        **own,
    )


def gguf_entries(metadata, raw, *, every, wide):
    """What GGUF files of Gemma 2 and 3 say of windows, and what they leave to the number of blocks.

    Only the model of `wide` blocks scales scores by width / heads, the others by the width of a
    head.
    """
    wide_heads = raw["hidden_size"] // raw["num_attention_heads"]
    scalar = wide_heads if raw["num_hidden_layers"] == wide else raw["head_dim"]
    return {**gguf_windows(metadata, raw, every=every), "query_pre_attn_scalar": scalar}


def gguf_windows(metadata, raw, *, every):
    """What GGUF files say of windows. Without a pattern, one block in `every` is global."""
    pattern = metadata.get("attention.sliding_window_pattern", every)
    of_number = lambda: [bool((i + 1) % pattern) for i in range(raw["num_hidden_layers"])]
    local = pattern if isinstance(pattern, list) else of_number()
    return {
        "sliding_window": required(metadata, "attention.sliding_window"),
        "layer_types": ["sliding_attention" if flag else "full_attention" for flag in local],
    }


def gguf_metadata(config):
    """The inverse of gguf_windows."""
    local = list(config.local_blocks or (False,) * config.blocks)
    window = config.sliding_window
    return {"attention.sliding_window": window, "attention.sliding_window_pattern": local}


def _gguf_entries(metadata, raw):
    """Absent caps are Gemma 2's own to llama.cpp."""
    caps = {name: metadata.get(key, _DEFAULTS[name]) for key, name in GGUF_CAPS.items()}
    return caps | gguf_entries(metadata, raw, every=2, wide=46)


def _lacks(config):
    return no_output_matrix(config) or ("" if config.local_blocks else "no block with a window")


_CAPPED = {**ALTERNATING, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}

GEMMA2 = Family(
    models="Gemma 2",
    from_hf=lambda raw: read_gemma2(
        {**_DEFAULTS, **raw}, family="gemma2", pattern=lambda i: (i + 1) % 2
    ),
    to_hf=lambda config: write_gemma2(config, architecture="Gemma2ForCausalLM"),
    weights=FOUR_NORMS,
    gguf=Gguf(
        "gemma2",
        more_keys=GGUF_CAPS,
        entries=_gguf_entries,
        metadata=gguf_metadata,
        norm_offset=1.0,
        lacks=_lacks,
        variants={
            "tied": {**_CAPPED, "query_pre_attn_scalar": 16},
            "one window": {
                **_CAPPED,
                "query_pre_attn_scalar": 16,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
        },
    ),
    variants={
        # Caps low enough to be seen.
        name: {**_CAPPED, **own}
        for name, own in {
            **TIED_AND_UNTIED,
            "uncapped": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
            "global": {"layer_types": ["full_attention"] * 3, "query_pre_attn_scalar": 40},
            "bias": {"attention_bias": True},
        }.items()
    },
)
