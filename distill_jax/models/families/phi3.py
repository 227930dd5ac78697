"""Phi 3, 3.5 and 4: Llama with one matrix for query, key and value, and one for gate and up."""

from distill_jax.models.config_json import read_common, write_common
from distill_jax.models.config_rope import read_rotary_width, rotary_share, share_of
from distill_jax.models.config_values import required
from distill_jax.models.family import (
    DEFAULT_WEIGHTS,
    TIED_AND_UNTIED,
    Family,
    Gguf,
    block_weight,
    lacks_other_widths,
)

_LONG = ("su", "yarn")  # other names of longrope in files of this family


def _from_hf(raw):
    raw = {"original_max_position_embeddings": 4096, **raw}
    for name in ("rope_parameters", "rope_scaling"):
        scaling = raw.get(name) or {}
        if (scaling.get("rope_type") or scaling.get("type")) in _LONG:
            raw[name] = {**scaling, "rope_type": "longrope"}
    heads, window = required(raw, "num_attention_heads"), raw.get("sliding_window")
    head_width = raw.get("head_dim") or required(raw, "hidden_size") // heads
    share = raw.get("partial_rotary_factor") or 1.0
    turned = read_rotary_width(raw, head_width, share=share)
    return read_common(
        {**raw, "partial_rotary_factor": None},  # read above
        family="phi3",
        rotary_width=None if turned == head_width else turned,
        sliding_window=window,
        local_blocks=None if window is None else (True,) * required(raw, "num_hidden_layers"),
    )


def _to_hf(config):
    return write_common(
        config,
        architecture="Phi3ForCausalLM",
        hidden_act=config.activation,
        sliding_window=config.sliding_window,
        partial_rotary_factor=rotary_share(config),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
    )


_QUERY_KEY_VALUE = block_weight("self_attn.qkv_proj", "attn_qkv")
_GATE_UP = block_weight("mlp.gate_up_proj", "ffn_up")


def _longrope(pairs, original):
    """Heads 8 wide; the tests' texts of 24 tokens are long where `original` is less."""
    factors = {"short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 1.5, 2.5, 4.0]}
    return {
        "head_dim": 8,
        "partial_rotary_factor": pairs / 4,
        "rope_parameters": {
            "rope_type": "longrope",
            **{name: values[:pairs] for name, values in factors.items()},
        },
        "original_max_position_embeddings": original,
    }


def _gguf_entries(metadata, raw):
    """A window of 0 is none; of a head, `rope.dimension_count` coordinates turn."""
    head = metadata.get("attention.key_length")
    head = head or raw["hidden_size"] // raw["num_attention_heads"]
    return {
        "head_dim": head,
        "partial_rotary_factor": share_of(metadata.get("rope.dimension_count", head), head),
        "sliding_window": metadata.get("attention.sliding_window") or None,
    }


def _differs(config):
    beyond = f"texts of more than {config.sliding_window} tokens without the window"
    return beyond if config.local_blocks else ""


PHI3 = Family(
    models="Phi-3, Phi-3.5, Phi-4",
    from_hf=_from_hf,
    to_hf=_to_hf,
    weights={
        **DEFAULT_WEIGHTS,
        "blocks/attention/query": _QUERY_KEY_VALUE,
        "blocks/attention/key": _QUERY_KEY_VALUE,
        "blocks/attention/value": _QUERY_KEY_VALUE,
        "blocks/feed_forward/gate": _GATE_UP,
        "blocks/feed_forward/up": _GATE_UP,
    },
    gguf=Gguf(
        "phi3",
        more_keys={"attention.sliding_window": "sliding_window"},
        entries=_gguf_entries,
        lacks=lacks_other_widths,
        differs=_differs,
        variants={
            name: {"head_dim": 8, **entries}
            for name, entries in {
                **TIED_AND_UNTIED,
                "window": {"sliding_window": 5},
                "partial": {"partial_rotary_factor": 0.75},
            }.items()
        },
    ),
    variants={
        **TIED_AND_UNTIED,
        "long": _longrope(3, 10),
        "short": _longrope(4, 32),
        "window": {"sliding_window": 5},
        "partial": {"partial_rotary_factor": 0.75},
    },
)
