"""Gemma 1: Llama with norms that add 1 to their weight, a scaled embedding and a GELU gate."""

from distill_jax.models.config_json import read_common, write_common
from distill_jax.models.config_values import required
from distill_jax.models.family import TIED_AND_UNTIED, Family, Gguf


def read_gemma(raw, **own):
    """The config of Gemma 1, 2 or 3; `own` holds the fields in which they differ."""
    bias = bool(raw.get("attention_bias"))
    return read_common(
        {"head_dim": 256, "tie_word_embeddings": True, **raw},
        qkv_bias=bias,
        output_bias=bias,
        unit_offset_norm=True,
        embedding_scale=required(raw, "hidden_size") ** 0.5,
        **own,
    )


def no_output_matrix(config):
    """Of Gemma 1 and 2, llama.cpp reads models whose output matrix is the embedding."""
    return biases(config) or ("" if config.tied else "an output matrix of its own")


def biases(config):
    """Of no Gemma, llama.cpp reads the bias of an output projection."""
    return "biases" if config.output_bias else ""


def _from_hf(raw):
    act = raw.get("hidden_act") or "gelu_pytorch_tanh"
    # The released files say "gelu" and mean the approximation by tanh; so does transformers.
    act = "gelu_pytorch_tanh" if act == "gelu" else act
    return read_gemma({"num_key_value_heads": 16, **raw}, family="gemma", activation=act)


def _to_hf(config):
    return write_common(
        config,
        architecture="GemmaForCausalLM",
        hidden_act=config.activation,
        attention_bias=config.qkv_bias,
    )


GEMMA = Family(
    models="Gemma 1",
    from_hf=_from_hf,
    to_hf=_to_hf,
    gguf=Gguf(
        "gemma",
        norm_offset=1.0,
        lacks=no_output_matrix,
        variants={"tied": {"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"}},
    ),
    variants={
        **TIED_AND_UNTIED,
        "bias": {"attention_bias": True},
        "released": {"hidden_act": "gelu", "head_dim": 24},
    },
)
