"""Qwen 3: Qwen 2 with norms on queries and keys instead of biases."""

from distill_jax.models.families.qwen2 import read_qwen, write_qwen
from distill_jax.models.family import TIED_AND_UNTIED, Family, Gguf


def _from_hf(raw):
    bias = bool(raw.get("attention_bias"))
    raw = {"head_dim": 128, **raw}
    return read_qwen(raw, family="qwen3", query_key_norm="head", qkv_bias=bias, output_bias=bias)


def _to_hf(config):
    return write_qwen(config, architecture="Qwen3ForCausalLM", attention_bias=config.qkv_bias)


QWEN3 = Family(
    models="Qwen3",
    from_hf=_from_hf,
    to_hf=_to_hf,
    gguf=Gguf("qwen3", lacks=lambda config: "biases" if config.output_bias else ""),
    variants=TIED_AND_UNTIED,
)
