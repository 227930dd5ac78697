"""GPT-NeoX: Pythia. LayerNorm with biases, no gate, halves in parallel, part of a head turns."""

import numpy as np

from distill_jax.models.config_json import read_common, write_common
from distill_jax.models.config_rope import read_rotary_width, rotary_share, share_of
from distill_jax.models.config_values import required, without_null
from distill_jax.models.family import GGUF_SIZES, TIED_AND_UNTIED, Family, Gguf, Weight

# The defaults of transformers for absent keys.
_DEFAULTS = {
    "rotary_emb_base": 10_000.0,
    "rotary_pct": 0.25,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "use_parallel_residual": True,
    "attention_bias": True,
}
_UNUSED = ("head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta")


def _from_hf(raw):
    raw = {**_DEFAULTS, **without_null(raw)}
    heads, width = required(raw, "num_attention_heads"), required(raw, "hidden_size")
    bias = bool(raw["attention_bias"])
    usual = {"rope_theta": raw["rotary_emb_base"], "rms_norm_eps": raw["layer_norm_eps"]}
    return read_common(
        {**raw, **usual},
        family="gpt_neox",
        kv_heads=heads,
        head_width=width // heads,
        rotary_width=read_rotary_width(raw, width // heads, share=raw["rotary_pct"]),
        norm="layer",
        norm_bias=True,
        gated=False,
        feed_forward_bias=True,
        parallel_residual=bool(raw["use_parallel_residual"]),
        qkv_bias=bias,
        output_bias=bias,
    )


def _to_hf(config):
    entries = write_common(
        config,
        architecture="GPTNeoXForCausalLM",
        hidden_act=config.activation,
        layer_norm_eps=config.norm_eps,
        rotary_emb_base=config.rope_theta,
        rotary_pct=rotary_share(config),
        use_parallel_residual=config.parallel_residual,
        attention_bias=config.qkv_bias,
        hidden_dropout=0.0,
    )
    return {name: value for name, value in entries.items() if name not in _UNUSED}


def _heads(config):
    """The rows of the fused matrix: query, key and value of the first head, of the second, .."""
    return config.heads


def _block(hf: str, gguf: str, kind: str = "weight", **more) -> Weight:
    names = f"gpt_neox.layers.{{block}}.{hf}.{kind}", f"blk.{{block}}.{gguf}.{kind}"
    return Weight(*names, kind == "weight" and "norm" not in hf, **more)


def _fused(kind):
    return _block("attention.query_key_value", "attn_qkv", kind, groups=_heads)


_WEIGHTS = {
    "embedding": Weight("gpt_neox.embed_in.weight", "token_embd.weight"),
    "final_norm": Weight("gpt_neox.final_layer_norm.weight", "output_norm.weight"),
    "final_norm_bias": Weight("gpt_neox.final_layer_norm.bias", "output_norm.bias"),
    "head": Weight("embed_out.weight", "output.weight", transpose=True),
    "blocks/attention/norm": _block("input_layernorm", "attn_norm"),
    "blocks/attention/norm_bias": _block("input_layernorm", "attn_norm", "bias"),
    "blocks/attention/query": _fused("weight"),
    "blocks/attention/key": _fused("weight"),
    "blocks/attention/value": _fused("weight"),
    "blocks/attention/query_bias": _fused("bias"),
    "blocks/attention/key_bias": _fused("bias"),
    "blocks/attention/value_bias": _fused("bias"),
    "blocks/attention/output": _block("attention.dense", "attn_output"),
    "blocks/attention/output_bias": _block("attention.dense", "attn_output", "bias"),
    "blocks/feed_forward/norm": _block("post_attention_layernorm", "ffn_norm"),
    "blocks/feed_forward/norm_bias": _block("post_attention_layernorm", "ffn_norm", "bias"),
    "blocks/feed_forward/up": _block("mlp.dense_h_to_4h", "ffn_up"),
    "blocks/feed_forward/up_bias": _block("mlp.dense_h_to_4h", "ffn_up", "bias"),
    "blocks/feed_forward/down": _block("mlp.dense_4h_to_h", "ffn_down"),
    "blocks/feed_forward/down_bias": _block("mlp.dense_4h_to_h", "ffn_down", "bias"),
}

_LINEAR_ROPE = {
    "rope_type": "linear",
    "factor": 4.0,
    "rope_theta": 1000.0,
    "partial_rotary_factor": 0.25,
}


def _gguf_entries(metadata, raw):
    """Of a head, `rope.dimension_count` coordinates turn."""
    head = raw["hidden_size"] // raw["num_attention_heads"]
    return {"rotary_pct": share_of(metadata.get("rope.dimension_count", head), head)}


def _gguf_order(path, config):
    """Files hold all queries, all keys and all values, one after the other."""
    if path not in ("blocks/attention/query", "blocks/attention/query_bias"):
        return None
    rows = np.arange(3 * config.heads * config.head_width)
    return rows.reshape(config.heads, 3, config.head_width).swapaxes(0, 1).reshape(-1)


def _lacks(config):
    if config.tied:
        return "the embedding as output matrix"
    return "" if config.qkv_bias else "projections without biases"


GPT_NEOX = Family(
    models="Pythia, GPT-NeoX-20B",
    from_hf=_from_hf,
    to_hf=_to_hf,
    weights=_WEIGHTS,
    # The causal mask and the frequencies, which the files of Pythia carry.
    redundant=r".*\.(attention\.(bias|masked_bias)|rotary_emb\.inv_freq)",
    canonical=lambda name: "embed_out.weight" if name == "lm_head.weight" else name,
    own_entries={
        "layer_norm_eps": "rms_norm_eps",
        "rotary_emb_base": "rope_theta",
        "rotary_pct": "partial_rotary_factor",
        "use_parallel_residual": "attention_bias",
    },
    gguf=Gguf(
        "gptneox",
        keys={**GGUF_SIZES, "attention.layer_norm_epsilon": "layer_norm_eps"},
        more_keys={
            "use_parallel_residual": "use_parallel_residual",
            "rope.freq_base": "rotary_emb_base",
        },
        entries=_gguf_entries,
        order=_gguf_order,
        lacks=_lacks,
        variants={
            "untied": {"head_dim": None, "rotary_pct": 0.5, **TIED_AND_UNTIED["untied"]},
            "sequential": {"head_dim": None, "use_parallel_residual": False, "rotary_pct": 0.25},
        },
    ),
    variants={
        name: {"head_dim": None, "rotary_pct": 0.5, **entries}
        for name, entries in {
            **TIED_AND_UNTIED,
            "sequential": {"use_parallel_residual": False, "rope_parameters": _LINEAR_ROPE},
            "whole": {"rotary_pct": 1.0, "attention_bias": False},
        }.items()
    },
)
