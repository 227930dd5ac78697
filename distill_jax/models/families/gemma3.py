"""Gemma 3, text: local and global blocks with separate rotary tables; norms after each half."""

from distill_jax.models.config_json import refuse_unsupported
from distill_jax.models.config_rope import read_rope
from distill_jax.models.config_values import shown
from distill_jax.models.families.gemma import biases
from distill_jax.models.families.gemma2 import (
    FOUR_NORMS,
    GGUF_CAPS,
    gguf_entries,
    gguf_metadata,
    read_gemma2,
    write_gemma2,
)
from distill_jax.models.family import ALTERNATING, TIED_AND_UNTIED, Family, Gguf
from distill_jax.types import UserError

# The defaults of transformers for absent keys.
_DEFAULTS = {"num_key_value_heads": 4, "sliding_window": 4096}


def _from_hf(raw):
    # transformers reads it and computes without; no released model sets it.
    refuse_unsupported(raw, {"attn_logit_softcapping": None})
    ropes = raw.get("rope_parameters")
    if ropes and not any(ropes.get(kind) for kind in ("full_attention", "sliding_attention")):
        raise UserError(
            f"config.json has rope_parameters {shown(ropes)} of no kind of block, which"
            " transformers leaves aside: give full_attention and sliding_attention in it"
        )
    theta, scaling = read_rope(raw, layer_type="full_attention", theta=1_000_000.0)
    local_raw = {"rope_theta": raw.get("rope_local_base_freq")}
    if raw.get("rope_parameters"):
        local_raw["rope_parameters"] = raw["rope_parameters"]
    local_theta, local_scaling = read_rope(
        local_raw, layer_type="sliding_attention", theta=10_000.0
    )
    if local_scaling is not None:
        raise UserError(
            f"rope type '{local_scaling.kind}' for sliding_attention is not supported: use default"
        )
    every = raw.get("sliding_window_pattern") or 6
    return read_gemma2(
        {**_DEFAULTS, **raw},
        family="gemma3_text",
        pattern=lambda i: (i + 1) % every,
        rope_theta=theta,
        rope_scaling=scaling,
        rope_local_theta=local_theta,
        query_key_norm="head",
    )


def _to_hf(config):
    return write_gemma2(
        config,
        architecture="Gemma3ForCausalLM",
        rope_local_base_freq=config.rope_local_theta,
    )


def _gguf_entries(metadata, raw):
    own = gguf_entries(metadata, raw, every=6, wide=62)
    return {**own, "rope_local_base_freq": metadata.get("rope.freq_base_swa", 10_000.0)}


_LINEAR_ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0}
_LINEAR = {
    "rope_parameters": {"full_attention": _LINEAR_ROPE},
    "final_logit_softcapping": 3.0,
}
_VARIANTS = {
    name: {**ALTERNATING, **entries}
    for name, entries in {**TIED_AND_UNTIED, "linear": _LINEAR}.items()
}
# Not in GGUF files: it is the width of a head in all but the 62-block model.
_GGUF_VARIANTS = {
    name: {**entries, "query_pre_attn_scalar": 16} for name, entries in _VARIANTS.items()
}

GEMMA3 = Family(
    models="Gemma 3, text alone",
    from_hf=_from_hf,
    to_hf=_to_hf,
    weights=FOUR_NORMS,
    gguf=Gguf(
        "gemma3",
        more_keys={**GGUF_CAPS, "rope.freq_base_swa": "rope_local_base_freq"},
        entries=_gguf_entries,
        metadata=gguf_metadata,
        norm_offset=1.0,
        lacks=biases,
        variants=_GGUF_VARIANTS,
    ),
    variants=_VARIANTS,
)
