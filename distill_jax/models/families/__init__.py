"""The model families: one file each, with its Family at the bottom; the registry is below.

A family holds everything that differs between models: config.json, names of weights, sharding and
GGUF. Start with models/family.py (the fields of a family), then llama.py. A family's file imports
models/family.py, the models/config_*.py and types. To add one, write its file and its line here.
"""

from pathlib import Path

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.config_values import check_values
from distill_jax.models.families.gemma import GEMMA
from distill_jax.models.families.gemma2 import GEMMA2
from distill_jax.models.families.gemma3 import GEMMA3
from distill_jax.models.families.gpt2 import GPT2
from distill_jax.models.families.gpt_neox import GPT_NEOX
from distill_jax.models.families.gpt_oss import GPT_OSS
from distill_jax.models.families.granite import GRANITE
from distill_jax.models.families.llama import LLAMA
from distill_jax.models.families.mistral import MISTRAL
from distill_jax.models.families.mixtral import MIXTRAL
from distill_jax.models.families.olmo2 import OLMO2
from distill_jax.models.families.phi3 import PHI3
from distill_jax.models.families.qwen2 import QWEN2
from distill_jax.models.families.qwen3 import QWEN3
from distill_jax.models.families.qwen3_moe import QWEN3_MOE
from distill_jax.models.families.smollm3 import SMOLLM3
from distill_jax.models.families.starcoder2 import STARCODER2
from distill_jax.models.family import Family
from distill_jax.types import UserError


def family_of(model_type: str | None) -> Family:
    """The family of a config.json's model_type. Raises UserError for an unknown one."""
    if model_type is None:
        raise UserError(f"it has no 'model_type': add one of {', '.join(sorted(FAMILIES))}")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(
            f"model_type '{str(model_type)[:60]}' is not supported: use one of"
            f" {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def read_config(raw: dict, path: Path) -> ModelConfig:
    """The decoder of a config.json that stands at a path, after a look at every value.

    Raises UserError naming the path.
    """
    try:
        family = family_of(raw.get("model_type"))
        check_values(raw, family.own_entries)
        return family.from_hf(raw)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


# Hugging Face's model_type -> family
FAMILIES = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "mixtral": MIXTRAL,
    "qwen3_moe": QWEN3_MOE,
    "gpt_oss": GPT_OSS,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "gpt_neox": GPT_NEOX,
    "gpt2": GPT2,
    "granite": GRANITE,
    "olmo2": OLMO2,
    "phi3": PHI3,
    "smollm3": SMOLLM3,
    "starcoder2": STARCODER2,
}
