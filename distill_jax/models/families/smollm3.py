"""SmolLM3: Llama in which every fourth block has no rotary positions (NoPE, 2305.19466)."""

from distill_jax.models.config_json import (
    read_common,
    read_local_blocks,
    write_common,
    write_layer_types,
)
from distill_jax.models.config_rope import read_rope
from distill_jax.models.config_values import required
from distill_jax.models.families.llama import interleaved
from distill_jax.models.family import ALTERNATING, TIED_AND_UNTIED, Family, Gguf
from distill_jax.types import UserError

# The defaults of transformers for absent keys.
_DEFAULTS = {
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}


def _from_hf(raw):
    raw = {**_DEFAULTS, **raw}
    blocks, window = required(raw, "num_hidden_layers"), raw.get("sliding_window")
    every, turns = raw.get("no_rope_layer_interval") or 4, raw.get("no_rope_layers")
    if turns is None:
        turns = [(i + 1) % every != 0 for i in range(blocks)]
    if len(turns) < blocks:
        raise UserError(
            f"config.json has {len(turns)} no_rope_layers for {blocks} num_hidden_layers: restore"
            " the file"
        )
    rope_blocks = tuple(bool(flag) for flag in turns[:blocks])  # there may be more in a file
    windowed = bool(raw.get("use_sliding_window")) and window is not None
    local = read_local_blocks(raw, pattern=lambda i: windowed and not turns[i])
    theta, scaling = read_rope(raw, layer_type="full_attention", theta=2_000_000.0)
    bias = bool(raw.get("attention_bias"))
    return read_common(
        raw,
        family="smollm3",
        rope_theta=theta,
        rope_scaling=scaling,
        rope_blocks=None if all(rope_blocks) else rope_blocks,
        sliding_window=window if local else None,
        local_blocks=local,
        qkv_bias=bias,
        output_bias=bias,
    )


def _to_hf(config):
    return write_common(
        config,
        architecture="SmolLM3ForCausalLM",
        hidden_act=config.activation,
        attention_bias=config.qkv_bias,
        mlp_bias=config.feed_forward_bias,
        no_rope_layers=[int(turns) for turns in config.rope_blocks or (True,) * config.blocks],
        use_sliding_window=config.local_blocks is not None,
        sliding_window=config.sliding_window,
        layer_types=write_layer_types(config),
    )


_NOPE = {"no_rope_layers": [1, 0, 1]}

_FOUR = {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}


def _gguf_entries(metadata, raw):
    """Files do not say which blocks have no rotary positions: every fourth."""
    return {"no_rope_layer_interval": 4}


SMOLLM3 = Family(
    models="SmolLM3",
    from_hf=_from_hf,
    to_hf=_to_hf,
    gguf=Gguf(
        "smollm3",
        entries=_gguf_entries,
        order=interleaved,
        lacks=lambda config: "biases" if config.output_bias or config.feed_forward_bias else "",
        variants={name: {**_FOUR, **entries} for name, entries in TIED_AND_UNTIED.items()},
    ),
    variants={
        **{name: {**_NOPE, **entries} for name, entries in TIED_AND_UNTIED.items()},
        "interval": {"no_rope_layer_interval": 2, "attention_bias": True, "mlp_bias": True},
        "window": {**_NOPE, "use_sliding_window": True, "sliding_window": 5},
        # Blocks with each of the four: a window or none, rotary positions or none.
        "kinds": {
            "num_hidden_layers": 4,
            "no_rope_layers": [1, 1, 0, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": [*ALTERNATING["layer_types"], "full_attention"],
        },
    },
)
