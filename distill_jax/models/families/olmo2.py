"""OLMo 2: norms after each half alone, and over all queries and all keys of a position."""

from distill_jax.models.config_json import read_common, write_common
from distill_jax.models.family import (
    DEFAULT_WEIGHTS,
    TIED_AND_UNTIED,
    Family,
    Gguf,
    block_weight,
    lacks_other_widths,
)


def _from_hf(raw):
    bias = bool(raw.get("attention_bias"))
    return read_common(
        raw,
        family="olmo2",
        qkv_bias=bias,
        output_bias=bias,
        query_key_norm="whole",
        pre_norms=False,
        post_norms=True,
    )


def _to_hf(config):
    return write_common(
        config,
        architecture="Olmo2ForCausalLM",
        hidden_act=config.activation,
        attention_bias=config.qkv_bias,
    )


def _lacks(config):
    if config.output_bias:
        return "biases"
    return "the embedding as output matrix" if config.tied else lacks_other_widths(config)


OLMO2 = Family(
    models="OLMo 2",
    from_hf=_from_hf,
    to_hf=_to_hf,
    weights={
        **DEFAULT_WEIGHTS,
        "blocks/attention/post_norm": block_weight(
            "post_attention_layernorm", "post_attention_norm"
        ),
        "blocks/feed_forward/post_norm": block_weight(
            "post_feedforward_layernorm", "post_ffw_norm"
        ),
    },
    gguf=Gguf(
        "olmo2",
        lacks=_lacks,
        variants={"untied": {**TIED_AND_UNTIED["untied"], "head_dim": 8}},
    ),
    variants={**TIED_AND_UNTIED, "bias": {"attention_bias": True}},
)
