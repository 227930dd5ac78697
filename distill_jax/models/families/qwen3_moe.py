"""Qwen 3 with experts in the place of the feed-forward half.

Which blocks have experts is up to config.json; here it is all of them, or none.
"""

from distill_jax.models.config_json import read_common, read_experts, write_common
from distill_jax.models.config_values import required
from distill_jax.models.family import DEFAULT_WEIGHTS, TIED_AND_UNTIED, Family, Gguf, block_weight
from distill_jax.types import UserError


def _from_hf(raw):
    # The defaults of transformers for absent keys.
    raw = {"num_key_value_heads": 4, "moe_intermediate_size": 768, "sliding_window": 4096, **raw}
    rest, experts = read_experts(raw, count=128, per_token=8, least=0)
    blocks, step = required(raw, "num_hidden_layers"), raw.get("decoder_sparse_step") or 1
    dense = raw.get("mlp_only_layers") or []
    with_experts = [i for i in range(blocks) if i not in dense and (i + 1) % step == 0]
    if experts["experts"] and 0 < len(with_experts) < blocks:
        raise UserError(
            f"config.json gives experts to {len(with_experts)} of {blocks} blocks"
            f" (decoder_sparse_step={step}, mlp_only_layers={str(dense)[:40]}), and the blocks of a"
            " model must be alike: use a checkpoint with experts in all of them"
        )
    if not with_experts or not experts["experts"]:
        experts, neurons = {}, rest["intermediate_size"]
    else:
        neurons = rest["moe_intermediate_size"]
    window = raw["sliding_window"] if raw.get("use_sliding_window") else None
    bias = bool(raw.get("attention_bias"))
    return read_common(
        rest,
        family="qwen3_moe",
        neurons=neurons,
        router_normalised=bool(raw.get("norm_topk_prob", False)),
        sliding_window=window,
        local_blocks=(True,) * blocks if window else None,
        query_key_norm="head",
        qkv_bias=bias,
        output_bias=bias,
        **experts,
    )


def _to_hf(config):
    return write_common(
        config,
        architecture="Qwen3MoeForCausalLM",
        hidden_act=config.activation,
        attention_bias=config.qkv_bias,
        use_sliding_window=config.sliding_window is not None,
        sliding_window=config.sliding_window,
        moe_intermediate_size=config.neurons,
        num_experts=config.experts,
        num_experts_per_tok=config.experts_per_token or 1,
        norm_topk_prob=config.router_normalised,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )


_PART = "mlp.experts.{expert}"
_SMALL = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24}

_GGUF_KEYS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}


def _lacks(config):
    return "biases" if config.output_bias else "" if config.experts else "blocks without experts"


QWEN3_MOE = Family(
    models="Qwen3-30B-A3B",
    from_hf=_from_hf,
    to_hf=_to_hf,
    weights={
        **DEFAULT_WEIGHTS,
        "blocks/feed_forward/router": block_weight("mlp.gate", "ffn_gate_inp"),
        "blocks/feed_forward/expert_gate": block_weight(f"{_PART}.gate_proj", "ffn_gate_exps"),
        "blocks/feed_forward/expert_up": block_weight(f"{_PART}.up_proj", "ffn_up_exps"),
        "blocks/feed_forward/expert_down": block_weight(f"{_PART}.down_proj", "ffn_down_exps"),
    },
    gguf=Gguf(
        "qwen3moe",
        more_keys=_GGUF_KEYS,
        entries=lambda metadata, raw: {"norm_topk_prob": True},  # always so in llama.cpp
        lacks=_lacks,
        variants={
            name: {**_SMALL, "norm_topk_prob": True, **entries}
            for name, entries in TIED_AND_UNTIED.items()
        },
    ),
    variants={
        name: {**_SMALL, **entries}
        for name, entries in {
            **TIED_AND_UNTIED,
            "normalised": {"norm_topk_prob": True, "attention_bias": True},
            "window": {"use_sliding_window": True, "sliding_window": 5},
            "dense": {"num_experts": 0},
        }.items()
    },
)
