"""GPT-2: LayerNorm with biases, no gate, learned positions; matrices lie as [in, out] in files."""

from distill_jax.models.config_json import read_common
from distill_jax.models.config_values import required, shown, without_null
from distill_jax.models.family import TIED_AND_UNTIED, Family, Gguf, Weight
from distill_jax.types import UserError

# Names in config.json, and those of most families.
_SIZES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}


def _from_hf(raw):
    usual = {name: required(raw, ours) for ours, name in _SIZES.items()}
    given = without_null(raw)
    for ours, name in _SIZES.items():
        if given.get(name, raw[ours]) != raw[ours]:
            raise UserError(
                f"config.json has {ours}={raw[ours]} and {name}={shown(given[name])}, which are the"
                " same number: remove one of them"
            )
    width, heads = usual["hidden_size"], usual["num_attention_heads"]
    usual |= {
        "intermediate_size": given.get("n_inner", 4 * width),
        "rms_norm_eps": given.get("layer_norm_epsilon", 1e-5),
        "hidden_act": given.get("activation_function", "gelu_new"),
        "tie_word_embeddings": given.get("tie_word_embeddings", True),
    }
    return read_common(
        {**raw, **usual},
        family="gpt2",
        kv_heads=heads,
        head_width=width // heads,
        rotary_width=0,
        learned_positions=True,
        norm="layer",
        norm_bias=True,
        gated=False,
        feed_forward_bias=True,
        qkv_bias=True,
        output_bias=True,
        attention_scale=None if given.get("scale_attn_weights", True) else 1.0,
    )


def _to_hf(config):
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab,
        "n_embd": config.width,
        "n_layer": config.blocks,
        "n_head": config.heads,
        "n_inner": config.neurons,
        "n_positions": config.max_positions,
        "activation_function": config.activation,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
        "scale_attn_weights": config.attention_scale is None,
        "tie_word_embeddings": config.tied,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def _canonical(name):
    """The checkpoints of 2019 were saved without the model's name before those of its parts."""
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


def _block(hf: str, gguf: str, kind: str = "weight") -> Weight:
    return Weight(f"transformer.h.{{block}}.{hf}.{kind}", f"blk.{{block}}.{gguf}.{kind}")


_WEIGHTS = {
    "embedding": Weight("transformer.wte.weight", "token_embd.weight"),
    "position_embedding": Weight("transformer.wpe.weight", "position_embd.weight"),
    "final_norm": Weight("transformer.ln_f.weight", "output_norm.weight"),
    "final_norm_bias": Weight("transformer.ln_f.bias", "output_norm.bias"),
    "head": Weight("lm_head.weight", "output.weight", transpose=True),
    "blocks/attention/norm": _block("ln_1", "attn_norm"),
    "blocks/attention/norm_bias": _block("ln_1", "attn_norm", "bias"),
    "blocks/attention/query": _block("attn.c_attn", "attn_qkv"),
    "blocks/attention/key": _block("attn.c_attn", "attn_qkv"),
    "blocks/attention/value": _block("attn.c_attn", "attn_qkv"),
    "blocks/attention/query_bias": _block("attn.c_attn", "attn_qkv", "bias"),
    "blocks/attention/key_bias": _block("attn.c_attn", "attn_qkv", "bias"),
    "blocks/attention/value_bias": _block("attn.c_attn", "attn_qkv", "bias"),
    "blocks/attention/output": _block("attn.c_proj", "attn_output"),
    "blocks/attention/output_bias": _block("attn.c_proj", "attn_output", "bias"),
    "blocks/feed_forward/norm": _block("ln_2", "ffn_norm"),
    "blocks/feed_forward/norm_bias": _block("ln_2", "ffn_norm", "bias"),
    "blocks/feed_forward/up": _block("mlp.c_fc", "ffn_up"),
    "blocks/feed_forward/up_bias": _block("mlp.c_fc", "ffn_up", "bias"),
    "blocks/feed_forward/down": _block("mlp.c_proj", "ffn_down"),
    "blocks/feed_forward/down_bias": _block("mlp.c_proj", "ffn_down", "bias"),
}

_GGUF_KEYS = {
    "block_count": "n_layer",
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}

GPT2 = Family(
    models="GPT-2, DistilGPT-2",
    from_hf=_from_hf,
    to_hf=_to_hf,
    weights=_WEIGHTS,
    # The causal mask, which files carry since 2019.
    redundant=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",
    canonical=_canonical,
    own_entries={
        **_SIZES,
        "n_inner": "intermediate_size",
        "layer_norm_epsilon": "rms_norm_eps",
        "activation_function": "hidden_act",
        "scale_attn_weights": "attention_bias",
    },
    gguf=Gguf(
        "gpt2",
        keys=_GGUF_KEYS,
        swapped="blocks/(attention|feed_forward)/(query|key|value|output|up|down)",
        lacks=lambda config: "unscaled scores" if config.attention_scale else "",
    ),
    variants={**TIED_AND_UNTIED, "unscaled": {"scale_attn_weights": False, "n_inner": 48}},
)
