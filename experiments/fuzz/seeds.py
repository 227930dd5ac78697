"""Small valid files of every kind that is read, from which mutations start."""

import gzip
import json
from pathlib import Path

import gguf
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

CONFIG = {
    "model_type": "llama", "vocab_size": 270, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "rope_theta": 1e4, "tie_word_embeddings": True, "attention_bias": False,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip
# Of every file of records, one.
RECORDS = {
    "pairs": {"prompt": "the", "completion": " lazy dog", "label": "a"},
    "jsonl": {
        "messages": [
            {"role": "user", "content": "hi", "name": "x"},
            {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "hi"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        ],
        "tools": '[{"name": "f"}]',
    },
    "preference": {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": "c",
    },
}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# As Hugging Face and as GGUF name them, with [out, in].
_ENDS = {
    "model.embed_tokens": ("token_embd", (270, 32)),
    "model.norm": ("output_norm", (32,)),
}
_BLOCK = {
    "input_layernorm": ("attn_norm", (32,)),
    "self_attn.q_proj": ("attn_q", (32, 32)),
    "self_attn.k_proj": ("attn_k", (16, 32)),
    "self_attn.v_proj": ("attn_v", (16, 32)),
    "self_attn.o_proj": ("attn_output", (32, 32)),
    "post_attention_layernorm": ("ffn_norm", (32,)),
    "mlp.gate_proj": ("ffn_gate", (32, 32)),
    "mlp.up_proj": ("ffn_up", (32, 32)),
    "mlp.down_proj": ("ffn_down", (32, 32)),
}


def shapes() -> dict[str, tuple[str, tuple[int, ...]]]:
    """The weights of CONFIG: name in Hugging Face -> (name in GGUF, shape)."""
    found = {f"{name}.weight": (f"{of}.weight", shape) for name, (of, shape) in _ENDS.items()}
    for block in range(CONFIG["num_hidden_layers"]):
        for name, (of, shape) in _BLOCK.items():
            found[f"model.layers.{block}.{name}.weight"] = (f"blk.{block}.{of}.weight", shape)
    return found


def write_model(directory: Path, *, shards: int = 1) -> Path:
    """A Hugging Face directory without tokenizer; with several shards, and the index of them."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    arrays = {name: np.full(shape, 0.5, np.float16) for name, (_, shape) in shapes().items()}
    if shards == 1:
        save_file(arrays, directory / SINGLE)
        return directory
    names, weight_map = sorted(arrays), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: arrays[name] for name in names[i::shards]}
        save_file(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def write_gguf(path: Path) -> Path:
    """The same model with a tokenizer of bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "block_count": 2, "context_length": 64, "embedding_length": 32, "feed_forward_length": 32,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 8,
    }.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = [chr(c) for c in range(0x21, 0x7F)] + [chr(c) for c in range(0x100, 0x1AB)]
    writer.add_token_list([*tokens, "th", "<e>", *(f"[{i}]" for i in range(9))][:270])
    writer.add_token_types([1] * 266 + [3, 5, 5, 5])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(266)
    writer.add_chat_template("{{ messages }}")
    for of, shape in shapes().values():
        writer.add_tensor(of, np.full(shape, 0.5, np.float16 if len(shape) > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_texts(directory: Path) -> dict[str, Path]:
    """A data file of every format."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {kind: directory / f"data.{kind}" for kind in ("parquet", "txt")}
    for name, record in RECORDS.items():
        files[name] = directory / f"{name}.jsonl"
        files[name].write_text(f"{json.dumps(record)}\n" * 3)
    files["txt"].write_text("the quick fox\nthe lazy dog\n")
    table = pa.Table.from_pylist([{"text": f"the fox {i}", "label": "a"} for i in range(20)])
    pq.write_table(table, files["parquet"], compression="zstd", write_page_checksum=True)
    files |= {kind: directory / f"data.{kind}" for kind in ("json", "csv", "arrow")}
    files["json"].write_text(json.dumps([RECORDS["pairs"]] * 3, indent=1))
    files["csv"].write_text('text,label\n"the ""quick"", fox",a\nthe lazy dog,b\n')
    with pa.ipc.new_stream(files["arrow"], table.schema) as stream:
        stream.write_table(table)
    files["gz"] = directory / "data.jsonl.gz"
    files["gz"].write_bytes(gzip.compress(files["jsonl"].read_bytes(), mtime=0))
    return files
