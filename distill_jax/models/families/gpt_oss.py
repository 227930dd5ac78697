"""gpt-oss: experts with biases and a clamped gate, attention sinks, a window on every other block.

The released checkpoints are quantized (MXFP4) and refused; those written again as bfloat16 are
read, and so are GGUF files, those with MXFP4 among them.
"""

from distill_jax.models.config_json import (
    read_common,
    read_experts,
    read_local_blocks,
    write_common,
    write_layer_types,
)
from distill_jax.models.config_rope import read_yarn, write_rope_scaling
from distill_jax.models.families.gemma2 import gguf_metadata, gguf_windows
from distill_jax.models.family import (
    ALTERNATING,
    DEFAULT_WEIGHTS,
    GGUF_KEYS,
    Family,
    Gguf,
    Weight,
    block_weight,
)

# The defaults of transformers for absent keys.
_DEFAULTS = {
    "head_dim": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "attention_bias": True,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _from_hf(raw):
    raw = {**_DEFAULTS, **raw}
    if not raw.get("rope_parameters") and not raw.get("rope_scaling"):
        raw["rope_parameters"] = _YARN
    theta, scaling = read_yarn(raw, theta=150_000.0)
    rest, experts = read_experts(raw, count=128, per_token=4)
    local = read_local_blocks(raw, pattern=lambda i: i % 2 == 0)
    bias = bool(raw["attention_bias"])
    return read_common(
        {**rest, "rope_parameters": None, "rope_scaling": None},  # read above
        family="gpt_oss",
        rope_theta=theta,
        rope_scaling=scaling,
        sliding_window=raw["sliding_window"] if local else None,
        local_blocks=local,
        qkv_bias=bias,
        output_bias=bias,
        attention_sinks=True,
        feed_forward_bias=True,
        swiglu_limit=float(raw.get("swiglu_limit") or 7.0),
        swiglu_alpha=float(raw.get("swiglu_alpha") or 1.702),
        **experts,
    )


def _to_hf(config):
    own = {
        "architecture": "GptOssForCausalLM",
        "hidden_act": config.activation,
        "attention_bias": config.qkv_bias,
        "sliding_window": config.sliding_window or 128,
        "layer_types": write_layer_types(config),
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "swiglu_limit": config.swiglu_limit,
        "swiglu_alpha": config.swiglu_alpha,
        # Absent, it would be YaRN.
        "rope_scaling": write_rope_scaling(config.rope_scaling) or {"rope_type": "default"},
    }
    return write_common(config, **own)


def _gate_and_up(kind):
    """The outputs of gate and up take turns in one array of all experts, [E, D, 2 F]."""
    name = f"model.layers.{{block}}.mlp.experts.gate_up_proj{kind}"
    of = lambda part: f"blk.{{block}}.ffn_{part}_exps{kind.replace('_', '.') or '.weight'}"
    return [Weight(name, of(part), groups=lambda config: config.neurons) for part in ("gate", "up")]


def _down(kind):
    return Weight(
        f"model.layers.{{block}}.mlp.experts.down_proj{kind}",
        f"blk.{{block}}.ffn_down_exps{kind.replace('_', '.') or '.weight'}",
    )


_GATE, _UP = _gate_and_up("")
_GATE_BIAS, _UP_BIAS = _gate_and_up("_bias")
_SMALL = {"num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 0.9, **ALTERNATING}
_ROPE = {**_YARN, "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1000.0}
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1000.0}
_AS_RELEASED = {**_SMALL, "swiglu_limit": 7.0}

_GGUF_YARN = {  # metadata key -> name in rope_scaling
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
    "rope.scaling.yarn_attn_factor": "attention_factor",
}


def _gguf_entries(metadata, raw):
    """Of YaRN, files leave `truncate` to the model, and gpt-oss does not."""
    found = gguf_windows(metadata, raw, every=2)
    if (raw.get("rope_scaling") or {}).get("rope_type") == "yarn":
        yarn = {name: metadata[key] for key, name in _GGUF_YARN.items() if key in metadata}
        found["rope_scaling"] = {
            "original_max_position_embeddings": raw["max_position_embeddings"],
            **raw["rope_scaling"],
            **yarn,
            "truncate": False,
        }
    elif raw.get("rope_scaling") is None:
        found["rope_scaling"] = {"rope_type": "default"}  # absent, it would be YaRN
    return found


def _gguf_metadata(config):
    said, scaling = gguf_metadata(config), write_rope_scaling(config.rope_scaling) or {}
    if scaling.get("rope_type") != "yarn":
        return said
    del scaling["attention_factor"]  # llama.cpp takes the usual one of any factor
    said |= {key: scaling.get(name) for key, name in _GGUF_YARN.items()}
    return said | {"rope.scaling.type": "yarn", "rope.scaling.factor": scaling["factor"]}


def _differs(config):
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "yarn":
        return ""
    return "YaRN, as of gpt-oss itself, with bounds rounded to whole pairs"


def _lacks(config):
    if config.tied:
        return "the embedding as output matrix"
    if not config.local_blocks:
        return "no block with a window"
    return "" if config.qkv_bias else "projections without biases"


GPT_OSS = Family(
    models="gpt-oss as bfloat16",
    from_hf=_from_hf,
    to_hf=_to_hf,
    weights={
        **DEFAULT_WEIGHTS,
        "blocks/feed_forward/norm": block_weight("post_attention_layernorm", "post_attention_norm"),
        "blocks/attention/sink_bias": Weight(
            "model.layers.{block}.self_attn.sinks", "blk.{block}.attn_sinks.weight"
        ),
        "blocks/feed_forward/router": block_weight("mlp.router", "ffn_gate_inp"),
        "blocks/feed_forward/router_bias": block_weight("mlp.router", "ffn_gate_inp", "bias"),
        "blocks/feed_forward/expert_gate": _GATE,
        "blocks/feed_forward/expert_up": _UP,
        "blocks/feed_forward/expert_down": _down(""),
        "blocks/feed_forward/expert_gate_bias": _GATE_BIAS,
        "blocks/feed_forward/expert_up_bias": _UP_BIAS,
        "blocks/feed_forward/expert_down_bias": _down("_bias"),
    },
    gguf=Gguf(
        "gpt-oss",
        keys={**GGUF_KEYS, "expert_feed_forward_length": "intermediate_size"},
        more_keys={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        entries=_gguf_entries,
        metadata=_gguf_metadata,
        swapped="blocks/feed_forward/expert_(gate|up|down)",
        lacks=_lacks,
        differs=_differs,
        variants={
            "plain": {**_AS_RELEASED, "rope_parameters": _PLAIN_ROPE},
            # Of a base with which rounding, as in llama.cpp, moves hardly anything.
            "yarn": {**_AS_RELEASED, "rope_parameters": {**_ROPE, "rope_theta": 42.05}},
        },
    ),
    variants={
        "yarn": {**_SMALL, "rope_parameters": _ROPE},
        "truncated": {**_SMALL, "rope_parameters": {**_ROPE, "truncate": True}},
        "plain": {
            **_SMALL,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_parameters": _PLAIN_ROPE,
        },
    },
)
