"""The models that are compared: sizes as the config.json of each has them on the Hub."""

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.families import FAMILIES
from experiments.plan.pairs import MODELS as PLANNED

_LLAMA = PLANNED["Llama-3.1-8B"]
MODELS = PLANNED | {
    "Llama-3.2-1B": _LLAMA
    | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "tie_word_embeddings": True, "rope_scaling": _LLAMA["rope_scaling"] | {"factor": 32.0},
    },
}  # fmt: skip
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
