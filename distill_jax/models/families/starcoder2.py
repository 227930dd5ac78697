"""StarCoder2: Llama with LayerNorm, no gate, and biases in every projection."""

from distill_jax.models.config_json import read_common, write_common
from distill_jax.models.config_values import required, without_null
from distill_jax.models.family import (
    DEFAULT_WEIGHTS,
    GGUF_SIZES,
    TIED_AND_UNTIED,
    Family,
    Gguf,
    Weight,
    block_weight,
    lacks_other_widths,
)

# The defaults of transformers for absent keys.
_DEFAULTS = {
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "norm_epsilon": 1e-5,
    "initializer_range": 0.018042,
    "use_bias": True,
    "tie_word_embeddings": True,
}


def _from_hf(raw):
    raw = {**_DEFAULTS, **without_null(raw)}
    blocks, window = required(raw, "num_hidden_layers"), raw.get("sliding_window")
    return read_common(
        {**raw, "rms_norm_eps": raw["norm_epsilon"]},
        family="starcoder2",
        sliding_window=window,
        local_blocks=(True,) * blocks if window else None,
        norm="layer",
        norm_bias=True,
        gated=False,
        qkv_bias=raw["use_bias"],
        output_bias=raw["use_bias"],
        feed_forward_bias=raw["use_bias"],
    )


def _to_hf(config):
    return write_common(
        config,
        architecture="Starcoder2ForCausalLM",
        hidden_act=config.activation,
        norm_epsilon=config.norm_eps,
        sliding_window=config.sliding_window,
        use_bias=config.qkv_bias,
    )


def _lacks(config):
    if config.local_blocks:
        return "a window"
    return lacks_other_widths(config) or ("" if config.qkv_bias else "projections without biases")


STARCODER2 = Family(
    models="StarCoder2",
    from_hf=_from_hf,
    to_hf=_to_hf,
    weights={
        **DEFAULT_WEIGHTS,
        "final_norm_bias": Weight("model.norm.bias", "output_norm.bias"),
        "blocks/attention/norm_bias": block_weight("input_layernorm", "attn_norm", "bias"),
        "blocks/feed_forward/norm_bias": block_weight(
            "post_attention_layernorm", "ffn_norm", "bias"
        ),
        "blocks/feed_forward/up": block_weight("mlp.c_fc", "ffn_up"),
        "blocks/feed_forward/up_bias": block_weight("mlp.c_fc", "ffn_up", "bias"),
        "blocks/feed_forward/down": block_weight("mlp.c_proj", "ffn_down"),
        "blocks/feed_forward/down_bias": block_weight("mlp.c_proj", "ffn_down", "bias"),
    },
    own_entries={"norm_epsilon": "rms_norm_eps", "use_bias": "attention_bias"},
    gguf=Gguf(
        "starcoder2",
        keys={**GGUF_SIZES, "attention.layer_norm_epsilon": "norm_epsilon"},
        entries=lambda metadata, raw: {"use_bias": raw["attention_bias"]},
        lacks=_lacks,
        variants={
            name: {"head_dim": 8, "sliding_window": None, **entries}
            for name, entries in TIED_AND_UNTIED.items()
        },
    ),
    variants={**TIED_AND_UNTIED, "window": {"sliding_window": 5, "use_bias": False}},
)
