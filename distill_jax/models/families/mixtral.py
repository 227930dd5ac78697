"""Mixtral: Mistral with experts in the place of the feed-forward half (2401.04088)."""

from distill_jax.models.config_json import read_common, read_experts, write_common
from distill_jax.models.config_values import required
from distill_jax.models.families.llama import LLAMA
from distill_jax.models.family import DEFAULT_WEIGHTS, TIED_AND_UNTIED, Family, block_weight


def _from_hf(raw):
    raw = {"num_key_value_heads": 8, **raw}
    # The defaults of transformers for absent keys.
    rest, experts = read_experts(raw, count=8, per_token=2)
    window = raw.get("sliding_window")
    return read_common(
        {"rope_theta": 1_000_000.0, **rest},
        family="mixtral",
        sliding_window=window,
        local_blocks=(True,) * required(raw, "num_hidden_layers") if window else None,
        **experts,
    )


def _to_hf(config):
    return write_common(
        config,
        architecture="MixtralForCausalLM",
        hidden_act=config.activation,
        sliding_window=config.sliding_window,
        num_local_experts=config.experts,
        num_experts_per_tok=config.experts_per_token,
    )


_PART = "block_sparse_moe.experts.{expert}"

MIXTRAL = Family(
    models="Mixtral 8x7B",
    from_hf=_from_hf,
    to_hf=_to_hf,
    weights={
        **DEFAULT_WEIGHTS,
        "blocks/feed_forward/router": block_weight("block_sparse_moe.gate", "ffn_gate_inp"),
        "blocks/feed_forward/expert_gate": block_weight(f"{_PART}.w1", "ffn_gate_exps"),
        "blocks/feed_forward/expert_up": block_weight(f"{_PART}.w3", "ffn_up_exps"),
        "blocks/feed_forward/expert_down": block_weight(f"{_PART}.w2", "ffn_down_exps"),
    },
    gguf=LLAMA.gguf._replace(
        more_keys={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        is_own=lambda metadata: metadata.get("expert_count", 0) > 0,
        variants=TIED_AND_UNTIED,
    ),
    variants={
        **TIED_AND_UNTIED,
        "window": {"sliding_window": 5, "num_local_experts": 3, "num_experts_per_tok": 1},
    },
)
