"""The description of a model family, with defaults that most families share."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from distill_jax.models.architecture import ModelConfig


class Weight(NamedTuple):
    """A parameter's name in files; `{block}` stands for the block's index.

    A name with `{expert}` is that of one expert's part; without, all experts are in one array.
    Parameters of one name are one array (fused): they lie in it beside each other along their
    outputs, in the order in which they stand in the family's `weights`.

    transpose  files hold [out, in], parameters are [in, out].
    groups     config -> how often the parameters of one array take turns, each time with an equal
               part of their outputs; 1: each is in one piece. The same for all of an array.
    """

    hf: str
    gguf: str
    transpose: bool = False
    groups: Callable[[ModelConfig], int] = lambda config: 1


# Shared by all families so far. Projections out of the residual stream shard their columns over
# `tensor`, those back into it their rows, so that each half of a block needs one sum over `tensor`.
DEFAULT_SHARDING = [
    (r"(position_)?embedding", ("tensor", "fsdp")),
    (r"head", ("fsdp", "tensor")),
    (r"blocks/attention/(query|key|value)", (None, "fsdp", "tensor")),
    (r"blocks/attention/(query|key|value)_bias", (None, "tensor")),
    (r"blocks/attention/output", (None, "tensor", "fsdp")),
    (r"blocks/feed_forward/(gate|up)", (None, "fsdp", "tensor")),
    (r"blocks/feed_forward/(gate|up)_bias", (None, "tensor")),
    (r"blocks/feed_forward/down", (None, "tensor", "fsdp")),
    (r"blocks/feed_forward/router", (None, "fsdp", "tensor")),
    (r"blocks/feed_forward/expert_(gate|up)", (None, "expert", "fsdp", "tensor")),
    (r"blocks/feed_forward/expert_(gate|up)_bias", (None, "expert", "tensor")),
    (r"blocks/feed_forward/expert_down", (None, "expert", "tensor", "fsdp")),
    (r"blocks/feed_forward/expert_down_bias", (None, "expert", None)),
    (r".*", ()),
]


def block_weight(hf: str, gguf: str, kind: str = "weight") -> Weight:
    """The names of a block's weight or bias; files hold matrices as [out, in]."""
    matrix = kind == "weight" and "norm" not in hf
    return Weight(f"model.layers.{{block}}.{hf}.{kind}", f"blk.{{block}}.{gguf}.{kind}", matrix)


DEFAULT_WEIGHTS = {
    "embedding": Weight("model.embed_tokens.weight", "token_embd.weight"),
    "final_norm": Weight("model.norm.weight", "output_norm.weight"),
    "head": Weight("lm_head.weight", "output.weight", transpose=True),
    "blocks/attention/norm": block_weight("input_layernorm", "attn_norm"),
    "blocks/attention/query": block_weight("self_attn.q_proj", "attn_q"),
    "blocks/attention/key": block_weight("self_attn.k_proj", "attn_k"),
    "blocks/attention/value": block_weight("self_attn.v_proj", "attn_v"),
    "blocks/attention/output": block_weight("self_attn.o_proj", "attn_output"),
    "blocks/attention/query_bias": block_weight("self_attn.q_proj", "attn_q", "bias"),
    "blocks/attention/key_bias": block_weight("self_attn.k_proj", "attn_k", "bias"),
    "blocks/attention/value_bias": block_weight("self_attn.v_proj", "attn_v", "bias"),
    "blocks/attention/output_bias": block_weight("self_attn.o_proj", "attn_output", "bias"),
    "blocks/attention/query_norm": block_weight("self_attn.q_norm", "attn_q_norm"),
    "blocks/attention/key_norm": block_weight("self_attn.k_norm", "attn_k_norm"),
    "blocks/feed_forward/norm": block_weight("post_attention_layernorm", "ffn_norm"),
    "blocks/feed_forward/gate": block_weight("mlp.gate_proj", "ffn_gate"),
    "blocks/feed_forward/up": block_weight("mlp.up_proj", "ffn_up"),
    "blocks/feed_forward/down": block_weight("mlp.down_proj", "ffn_down"),
    "blocks/feed_forward/gate_bias": block_weight("mlp.gate_proj", "ffn_gate", "bias"),
    "blocks/feed_forward/up_bias": block_weight("mlp.up_proj", "ffn_up", "bias"),
    "blocks/feed_forward/down_bias": block_weight("mlp.down_proj", "ffn_down", "bias"),
}

# Entries of a config.json that several families' variants share.
TIED_AND_UNTIED = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
}
ALTERNATING = {
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}


# Metadata keys of GGUF files, without the architecture's prefix, and their names in a config.json.
GGUF_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
GGUF_KEYS = {**GGUF_SIZES, "attention.layer_norm_rms_epsilon": "rms_norm_eps"}


class Gguf(NamedTuple):
    """The conventions of a family's GGUF files, each in both directions; they are llama.cpp's.

    architecture  its name in the file, and the prefix of its metadata keys
    keys          metadata key -> name in config.json, of what every file says
    more_keys     the same of what a file may leave out
    entries       (metadata without the prefix, config.json of all keys) -> further entries of it
    metadata      config -> further metadata: the inverse of entries
    order         (parameter path, config) -> for each row of a file's array, which row of Hugging
                  Face's array it is; None: the same one. The path is that of the first parameter
    swapped       regular expression of paths whose last two axes lie the other way round
    norm_offset   what files add to the weights of norms, which rounds them to 2**-24
    lacks         config -> what llama.cpp lacks of it for this architecture, in words; "": nothing
    differs       config -> what llama.cpp computes otherwise, though files say it in its own way
    is_own        metadata without the prefix -> whether such a file is of this family, where
                  several have one architecture
    variants      as in Family, those that such a file can express
    """

    architecture: str
    keys: dict[str, str] = GGUF_KEYS
    more_keys: Mapping[str, str] = MappingProxyType({})
    entries: Callable[[dict, dict], dict] = lambda metadata, raw: {}
    metadata: Callable[[ModelConfig], dict] = lambda config: {}
    order: Callable[[str, ModelConfig], np.ndarray | None] = lambda path, config: None
    swapped: str = ""
    norm_offset: float = 0.0
    lacks: Callable[[ModelConfig], str] = lambda config: ""
    differs: Callable[[ModelConfig], str] = lambda config: ""
    is_own: Callable[[dict], bool] = lambda metadata: True
    variants: dict[str, dict] = TIED_AND_UNTIED


def lacks_other_widths(config: ModelConfig) -> str:
    """What llama.cpp lacks of several families: heads that are not as wide as the model in all."""
    same = config.heads * config.head_width == config.width
    return "" if same else "heads of another width in all than the model"


class Family(NamedTuple):
    """One model family.

    models       examples, as the README names them
    from_hf      config.json dict -> ModelConfig; UserError for a feature that the decoder lacks
    to_hf        the inverse
    variants     name -> entries of a config.json: the small architectures that the tests run over,
                 on top of the sizes in tests/models/conftest.py (3 blocks; texts of 24 tokens)
    weights      parameter path ("blocks/attention/query") -> Weight; a model has a subset of them
    redundant    regular expression of the whole name of arrays in Hugging Face's files that are no
                 parameters, because they follow from the config
    canonical    name of an array in Hugging Face's files -> that in `weights`, where other versions
                 of such files name the same array otherwise
    own_entries  entry of its config.json that config_values.py lacks -> one there that takes the
                 same values
    sharding     (regular expression that matches a whole path, mesh axes of its dimensions), first
                 match wins; the leading block axis is included
    only_tokenizer  key of PRE_TOKENIZERS: how transformers splits texts for such a model, whatever
                 its tokenizer.json says; "": as that says
    gguf         None: there are no GGUF files of this family's own
    """

    models: str
    from_hf: Callable[[dict], ModelConfig]
    to_hf: Callable[[ModelConfig], dict]
    variants: dict[str, dict]
    weights: dict[str, Weight] = DEFAULT_WEIGHTS
    redundant: str = r".*rotary_emb\.inv_freq"
    canonical: Callable[[str], str] = lambda name: name
    own_entries: Mapping[str, str] = MappingProxyType({})
    sharding: list[tuple[str, tuple[str | None, ...]]] = DEFAULT_SHARDING
    only_tokenizer: str = ""
    gguf: Gguf | None = None
