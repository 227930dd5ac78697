"""The small architectures that the tests of models run over: family -> name -> config.json entries.

They come on top of SIZES in conftest.py: 3 blocks, texts of 24 tokens. Every family needs an entry.
"""

TIED_AND_UNTIED = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
}
ALTERNATING = {
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
BIAS = {"attention_bias": True}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR_ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0}
LINEAR = {"rope_parameters": {"full_attention": LINEAR_ROPE}, "final_logit_softcapping": 3.0}

VARIANTS = {
    "llama": {**TIED_AND_UNTIED, "bias": BIAS, "rope3": {"rope_parameters": LLAMA3_ROPE}},
    "mistral": {
        **TIED_AND_UNTIED,
        "window": {"sliding_window": 5},
        "global": {"sliding_window": None, "head_dim": None},
    },
    "qwen2": {**TIED_AND_UNTIED, "window": {"use_sliding_window": True, **ALTERNATING}},
    "qwen3": TIED_AND_UNTIED,
    "gemma3_text": {
        name: {**ALTERNATING, **entries}
        for name, entries in {**TIED_AND_UNTIED, "linear": LINEAR}.items()
    },
}

# GGUF files leave out what is the same in all real models of a family.
REAL_LLAMA3_ROPE = {
    "rope_parameters": {
        **LLAMA3_ROPE,
        "rope_theta": 500_000.0,
        "original_max_position_embeddings": 8192,
    },
    "max_position_embeddings": 16_384,
}
GGUF_VARIANTS = {
    "llama": {**TIED_AND_UNTIED, "bias": BIAS, "rope3": REAL_LLAMA3_ROPE},
    "qwen2": TIED_AND_UNTIED,
    "qwen3": TIED_AND_UNTIED,
    # Absent from the files: it is the width of a head in all but the 62-block model.
    "gemma3_text": {
        name: {**entries, "query_pre_attn_scalar": 16}
        for name, entries in VARIANTS["gemma3_text"].items()
    },
}
