"""Granite 3: Llama with factors on the embedding, the scores, the residual sums and the logits."""

from distill_jax.models.config_json import read_common, write_common
from distill_jax.models.config_values import without_null
from distill_jax.models.families.llama import interleaved
from distill_jax.models.family import TIED_AND_UNTIED, Family, Gguf

# The defaults of transformers for absent keys.
_DEFAULTS = {
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}


def _from_hf(raw):
    raw = {**_DEFAULTS, **without_null(raw)}
    bias = bool(raw.get("attention_bias"))
    return read_common(
        raw,
        family="granite",
        qkv_bias=bias,
        output_bias=bias,
        embedding_scale=float(raw["embedding_multiplier"]),
        attention_scale=float(raw["attention_multiplier"]),
        residual_scale=float(raw["residual_multiplier"]),
        logit_scale=1.0 / raw["logits_scaling"],
    )


def _to_hf(config):
    return write_common(
        config,
        architecture="GraniteForCausalLM",
        hidden_act=config.activation,
        attention_bias=config.qkv_bias,
        mlp_bias=config.feed_forward_bias,
        embedding_multiplier=config.embedding_scale,
        attention_multiplier=config.attention_scale,
        residual_multiplier=config.residual_scale,
        # Twelve digits: the number of which 1 / x was taken.
        logits_scaling=float(f"{1.0 / config.logit_scale:.12g}"),
    )


_FACTORS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.4,
    "residual_multiplier": 0.22,
    "logits_scaling": 0.7,
}

_GGUF_KEYS = {
    "embedding_scale": "embedding_multiplier",
    "attention.scale": "attention_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def _gguf_entries(metadata, raw):
    """Scores are scaled as usual where the file does not say how."""
    return {"attention_multiplier": metadata.get("attention.scale") or raw["head_dim"] ** -0.5}


GRANITE = Family(
    models="Granite 3",
    from_hf=_from_hf,
    to_hf=_to_hf,
    gguf=Gguf(
        "granite",
        more_keys=_GGUF_KEYS,
        entries=_gguf_entries,
        order=interleaved,
        variants={name: {**_FACTORS, **entries} for name, entries in TIED_AND_UNTIED.items()},
    ),
    variants={
        **{name: {**_FACTORS, **entries} for name, entries in TIED_AND_UNTIED.items()},
        "plain": {"attention_multiplier": 0.25},
        "bias": {**_FACTORS, "attention_bias": True, "mlp_bias": True},
    },
)
