"""Qwen 2 and 2.5: a window, if used, applies to the blocks from max_window_layers on."""

from distill_jax.models.config_json import (
    read_common,
    read_local_blocks,
    write_common,
    write_layer_types,
)
from distill_jax.models.family import ALTERNATING, TIED_AND_UNTIED, Family, Gguf, lacks_other_widths
from distill_jax.types import UserError

# The defaults of transformers for absent keys.
_DEFAULTS = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}


def read_qwen(raw, **own):
    """The config of Qwen 2 or 3; `own` holds the fields in which they differ."""
    raw = {**_DEFAULTS, **raw}
    window = raw["sliding_window"] if raw.get("use_sliding_window") else None
    first = raw["max_window_layers"] or 0
    local = read_local_blocks(raw, pattern=lambda i: window is not None and i >= first)
    if local and window is None and raw["sliding_window"] is not None:
        raise UserError(
            "config.json has sliding_attention in layer_types without use_sliding_window=true: set"
            " that, or full_attention in all of layer_types"
        )
    return read_common(raw, sliding_window=window, local_blocks=local, **own)


def write_qwen(config, **own):
    """The config.json of Qwen 2 or 3."""
    return write_common(
        config,
        hidden_act=config.activation,
        use_sliding_window=config.local_blocks is not None,
        sliding_window=config.sliding_window,
        max_window_layers=config.blocks,
        layer_types=write_layer_types(config),
        **own,
    )


QWEN2 = Family(
    models="Qwen2, Qwen2.5",
    from_hf=lambda raw: read_qwen(raw, family="qwen2", qkv_bias=True),
    to_hf=lambda config: write_qwen(config, architecture="Qwen2ForCausalLM"),
    only_tokenizer="qwen2",
    gguf=Gguf(
        "qwen2",
        lacks=lacks_other_widths,
        variants={name: {"head_dim": 8, **entries} for name, entries in TIED_AND_UNTIED.items()},
    ),
    variants={**TIED_AND_UNTIED, "window": {"use_sliding_window": True, **ALTERNATING}},
)
