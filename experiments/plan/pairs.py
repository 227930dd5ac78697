"""The pairs that are planned: sizes of published models, as their config.json has them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

_QWEN3 = {
    "model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 40960,
    "attention_bias": False,
}  # fmt: skip
_LLAMA31 = {
    "model_type": "llama", "vocab_size": 128256, "head_dim": 128, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
_GEMMA3 = {
    "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "rope_local_base_freq": 1e4, "tie_word_embeddings": True,
}  # fmt: skip


def _sizes(width, neurons, blocks, heads, kv_heads, **more):
    return {
        "hidden_size": width, "intermediate_size": neurons, "num_hidden_layers": blocks,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, **more,
    }  # fmt: skip


TIED, OWN_HEAD = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-32B": _QWEN3 | _sizes(5120, 25600, 64, 64, 8) | OWN_HEAD,
    "Qwen3-8B": _QWEN3 | _sizes(4096, 12288, 36, 32, 8) | OWN_HEAD,
    "Qwen3-4B": _QWEN3 | _sizes(2560, 9728, 36, 32, 8) | TIED,
    "Qwen3-1.7B": _QWEN3 | _sizes(2048, 6144, 28, 16, 8) | TIED,
    "Qwen3-0.6B": _QWEN3 | _sizes(1024, 3072, 28, 16, 8) | TIED,
    "Qwen3-30B-A3B": _QWEN3
    | _sizes(2048, 6144, 48, 32, 4)
    | OWN_HEAD
    | {
        "model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "norm_topk_prob": True, "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "Llama-3.1-70B": _LLAMA31 | _sizes(8192, 28672, 80, 64, 8),
    "Llama-3.1-8B": _LLAMA31 | _sizes(4096, 14336, 32, 32, 8),
    "Gemma-3-27B": _GEMMA3
    | _sizes(5376, 21504, 62, 32, 16)
    | {
        "head_dim": 128, "vocab_size": 262208, "sliding_window": 1024,
        "query_pre_attn_scalar": 168, "max_position_embeddings": 131072,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "Gemma-3-1B": _GEMMA3
    | _sizes(1152, 6912, 26, 4, 1)
    | {
        "head_dim": 256, "vocab_size": 262144, "sliding_window": 512,
        "query_pre_attn_scalar": 256, "max_position_embeddings": 32768,
    },
}  # fmt: skip


class Pair(NamedTuple):
    """A run to plan. price: of a chip for an hour; more: further keys of its config."""

    teacher: str
    student: str
    topology: str
    rows: int
    price: float
    more: dict[str, Any]


# In bfloat16, the student's parameters in float32, rows of 2,048 tokens, a billion in all. The
# prices are examples, near what a chip costs on demand.
PAIRS = {
    "small": Pair("Qwen3-8B", "Qwen3-0.6B", "v5e:4x4", 16, 1.2, {}),
    "qwen": Pair("Qwen3-32B", "Qwen3-4B", "v5p:2x2x4", 64, 4.2, {}),
    "gemma": Pair("Gemma-3-27B", "Gemma-3-1B", "v6e:4x4", 64, 2.7, {}),
    "llama": Pair("Llama-3.1-70B", "Llama-3.1-8B", "v5e:8x8", 256, 1.2, {"model.remat": "dots"}),
    "experts64": Pair("Qwen3-30B-A3B", "Qwen3-1.7B", "v5e:8x8", 64, 1.2, {}),
    "experts": Pair("Qwen3-30B-A3B", "Qwen3-0.6B", "v5e:4x4", 128, 1.2, {"model.remat": "dots"}),
}
TOKENS = 1_000_000_000


def write_sizes(directory: Path, name: str) -> Path:
    """A directory that holds the config.json of a model and nothing else."""
    path = directory / name
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(MODELS[name], indent=2) + "\n")
    return path
