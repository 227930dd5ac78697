"""Mistral: Llama with a window on every block (v0.1: 4,096 positions; later ones: none).

With layer_types in config.json, which transformers calls Ministral, only some blocks have a window.
GGUF files of Mistral carry the architecture "llama" and no window: they are read as Llama, which
is the same model for texts up to the length of the window. A student without a window is written
as such a file.
"""

from distill_jax.models.config_json import (
    read_common,
    read_local_blocks,
    write_common,
    write_layer_types,
)
from distill_jax.models.families.llama import LLAMA
from distill_jax.models.family import TIED_AND_UNTIED, Family


def _from_hf(raw):
    # The defaults of transformers for absent keys; null means no window.
    raw = {"sliding_window": 4096, "num_key_value_heads": 8, **raw}
    window = raw["sliding_window"]
    local = read_local_blocks(raw, pattern=lambda i: window is not None)
    return read_common(
        raw, family="mistral", sliding_window=window if local else None, local_blocks=local
    )


def _to_hf(config):
    local = config.local_blocks or (False,)
    mixed = {"layer_types": write_layer_types(config)} if len(set(local)) > 1 else {}
    return write_common(
        config,
        architecture="MistralForCausalLM",
        hidden_act=config.activation,
        sliding_window=config.sliding_window if any(local) else None,
        **mixed,
    )


def _gguf_entries(metadata, raw):
    """Files of the architecture say no window."""
    return {"sliding_window": None}


MISTRAL = Family(
    models="Mistral 7B, Ministral",
    from_hf=_from_hf,
    to_hf=_to_hf,
    gguf=LLAMA.gguf._replace(is_own=lambda metadata: False, entries=_gguf_entries, variants={}),
    variants={
        **TIED_AND_UNTIED,
        "window": {"sliding_window": 5},
        "global": {"sliding_window": None, "head_dim": None},
    },
)
