"""Published models that are compared: sizes as the config.json of each has them on the Hub."""

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.families import FAMILIES

_QWEN3 = {
    "model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 40960,
    "attention_bias": False,
}  # fmt: skip
_LLAMA3 = {
    "model_type": "llama", "vocab_size": 128256, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 5e5, "max_position_embeddings": 131072,
}  # fmt: skip
_GEMMA3 = {
    "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "rope_local_base_freq": 1e4, "tie_word_embeddings": True,
}  # fmt: skip


def _sizes(width, neurons, blocks, heads, kv_heads, head_width, tied):
    return {
        "hidden_size": width, "intermediate_size": neurons, "num_hidden_layers": blocks,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_width,
        "tie_word_embeddings": tied,
    }  # fmt: skip


def _llama3(factor, *sizes):
    scaling = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    return _LLAMA3 | _sizes(*sizes) | {"rope_scaling": scaling}


def _gemma3(vocab, window, scalar, *sizes):
    of = {"vocab_size": vocab, "sliding_window": window, "query_pre_attn_scalar": scalar}
    return _GEMMA3 | _sizes(*sizes, True) | of | {"max_position_embeddings": 32768}


MODELS = {
    "Qwen3-8B": _QWEN3 | _sizes(4096, 12288, 36, 32, 8, 128, False),
    "Qwen3-0.6B": _QWEN3 | _sizes(1024, 3072, 28, 16, 8, 128, True),
    "Llama-3.1-8B": _llama3(8.0, 4096, 14336, 32, 32, 8, 128, False),
    "Llama-3.2-1B": _llama3(32.0, 2048, 8192, 16, 32, 8, 64, True),
    "Gemma-3-27B": _gemma3(262208, 1024, 168, 5376, 21504, 62, 32, 16, 128),
    "Gemma-3-1B": _gemma3(262144, 512, 256, 1152, 6912, 26, 4, 1, 256),
}
# name -> teacher, student
PAIRS = {
    "qwen": ("Qwen3-8B", "Qwen3-0.6B"),
    "llama": ("Llama-3.1-8B", "Llama-3.2-1B"),
    "gemma": ("Gemma-3-27B", "Gemma-3-1B"),
}


def architecture(name: str) -> ModelConfig:
    """The decoder of a model, all of its blocks."""
    raw = MODELS[name]
    return FAMILIES[raw["model_type"]].from_hf(raw)
