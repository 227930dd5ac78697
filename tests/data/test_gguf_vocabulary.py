"""Tokenizers as GGUF metadata: what is written is read as the same tokenizer, or refused."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors

from distill_jax.data.gguf_pre_tokenizers import PRE_TOKENIZERS
from distill_jax.data.gguf_sentencepiece import Pieces, merges_of
from distill_jax.data.gguf_vocabulary import other_tokens, tokenizer_metadata
from distill_jax.data.tokenizer import load_tokenizer, make_tokenizer
from distill_jax.data.tokenizer_difference import first_difference
from distill_jax.data.tokenizer_settings import NO_SETTINGS
from distill_jax.gguf_file import read_gguf, write_gguf
from distill_jax.types import UserError
from tests.data.conftest import BACKENDS, NASTY, byte_level_backend, tokenizer_of

SAMPLING = {"temperature": 0.6, "top_k": 40, "do_sample": True}


def settings_of(tokenizer):
    """A text ends with another token, too."""
    ids = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
    generation = {**ids, "eos_token_id": [tokenizer.eos_id, 0], **SAMPLING}
    return NO_SETTINGS._replace(generation=generation, templates={"tools": "{{ tools }}"})


def again(tokenizer, path, rows=None):
    """Written and read."""
    metadata = tokenizer_metadata(tokenizer, rows=rows or tokenizer.vocab_size)
    write_gguf(path, "llama", metadata, [])
    return load_tokenizer(path)


def backend_of(name):
    if name == "gemma":
        return of_scores(BACKENDS[name]())
    return BACKENDS[name]() if name in BACKENDS else byte_level_backend(name)


def of_scores(backend):
    """The same, with every merge of two tokens that the order of its own ones allows."""
    definition = json.loads(backend.to_str())
    model, order = definition["model"], {}
    for place, pair in enumerate(model["merges"]):
        order.setdefault("".join(pair), place)
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    scores = [-order.get(token, len(order)) for token in tokens]
    model["merges"] = merges_of(Pieces(tokens, scores, [1] * len(tokens)))
    return Tokenizer.from_str(json.dumps(definition))


@pytest.mark.parametrize("name", sorted({*PRE_TOKENIZERS, *BACKENDS}))
def test_what_is_written_is_read_as_the_same_tokenizer(name, tmp_path):
    tokenizer = tokenizer_of(backend_of(name), chat_template="{{ messages }}")
    tokenizer = tokenizer._replace(settings=settings_of(tokenizer))
    read = again(tokenizer, tmp_path / "a.gguf", rows=tokenizer.vocab_size + 3)
    assert first_difference(tokenizer, read) is None
    for text in NASTY:
        assert read.backend.encode(text).ids == tokenizer.backend.encode(text).ids
        assert read.offsets.encode(text).offsets == tokenizer.offsets.encode(text).offsets
    assert read.special_tokens.items() >= tokenizer.special_tokens.items()
    assert set(read.added_tokens) >= set(tokenizer.added_tokens)
    assert (read.adds_bos, read.adds_eos) == (tokenizer.adds_bos, tokenizer.adds_eos)
    assert read.chat_template == "{{ messages }}"
    assert read.vocab_size == tokenizer.vocab_size + 3
    assert read.settings == tokenizer.settings


@pytest.mark.parametrize("name", ["smollm", "llama-bpe", "gemma"])
def test_written_again_it_is_the_same(name, tmp_path):
    read = again(tokenizer_of(backend_of(name)), tmp_path / "a.gguf")
    again(read, tmp_path / "b.gguf")
    assert read_gguf(tmp_path / "a.gguf").metadata == read_gguf(tmp_path / "b.gguf").metadata


def test_several_names_of_one_meaning_are_written_as_the_first(tmp_path):
    for name, written in (("default", "gpt-2"), ("starcoder", "smollm"), ("smaug-bpe", "dbrx")):
        metadata = tokenizer_metadata(tokenizer_of(byte_level_backend(name)), rows=420)
        assert metadata["tokenizer.ggml.pre"] == written


def changed(name, change):
    """A small tokenizer whose definition is changed."""
    definition = json.loads(backend_of(name).to_str())
    change(definition)
    return tokenizer_of(Tokenizer.from_str(json.dumps(definition)))


def without_a_merge(definition):
    definition["model"]["merges"].pop(3)


REFUSED = {
    "lower case": (
        "smollm",
        lambda d: d.update(normalizer=json.loads(normalizers.Lowercase().__getstate__())),
        'its normalizer and pre-tokenizer are [{"type": "Lowercase"}',
    ),
    "whole words": ("smollm", lambda d: d["model"].update(ignore_merges=True), "Digits"),
    "spaces": ("gemma", lambda d: d.update(pre_tokenizer=None, normalizer=None), "are []"),
    "merges": ("gemma", without_a_merge, "its merges do not follow from scores"),
    "bytes": ("gemma", lambda d: d["model"].update(byte_fallback=False), "a token for every byte"),
    "rstrip": ("smollm", lambda d: d["added_tokens"][1].update(rstrip=True), "has rstrip"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_cannot_be_told_is_one_line_that_names_it(case):
    name, change, says = REFUSED[case]
    tokenizer = changed(name, change)
    with pytest.raises(UserError) as error:
        tokenizer_metadata(tokenizer, rows=tokenizer.vocab_size)
    assert says in str(error.value)
    assert str(error.value).endswith(": use --config.export.format=hf")
    assert "\n" not in str(error.value)


def metaspace(scheme):
    step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    return lambda definition: definition.update(normalizer=None, pre_tokenizer=step)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("smollm", lambda d: None, ""),
        ("gemma", lambda d: None, ""),
        ("qwen2", lambda d: None, "not in NFC"),
        ("gemma", metaspace("first"), "begin with a space, and after a special token"),
        ("gemma", metaspace("always"), "begin with a space"),
        ("gemma", metaspace("never"), ""),
    ],
)
def test_where_llama_cpp_makes_other_tokens_is_known(name, change, says):
    """As compared with llama.cpp: experiments/gguf."""
    said = other_tokens(changed(name, change))
    assert said.endswith(says)
    assert bool(said) == bool(says)


def test_a_kind_without_merges_is_refused():
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("</s>", -9.0)], unk_id=0))
    tokenizer = make_tokenizer(backend, special_tokens={"eos_token": "</s>"}, chat_template=None)
    with pytest.raises(UserError, match=r"its kind is Unigram"):
        tokenizer_metadata(tokenizer, rows=3)


def test_marks_at_the_end_of_words_are_refused():
    vocabulary = {"a": 0, "a</w>": 1, "</s>": 2}
    backend = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>"))
    tokenizer = make_tokenizer(backend, special_tokens={"eos_token": "</s>"}, chat_template=None)
    with pytest.raises(UserError, match=r"it has end_of_word_suffix '</w>'"):
        tokenizer_metadata(tokenizer, rows=3)


def test_what_else_is_put_around_a_text_is_refused(smollm_like):
    backend = Tokenizer.from_str(smollm_like.backend.to_str())
    start = ("<|im_start|>", backend.token_to_id("<|im_start|>"))
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[start]
    )
    with pytest.raises(UserError, match="of the text 'a', not BOS, the text and EOS"):
        tokenizer_metadata(tokenizer_of(backend), rows=420)


def test_more_tokens_than_rows_are_refused(smollm_like):
    with pytest.raises(UserError, match=" tokens are more than 400 rows of embedding"):
        tokenizer_metadata(smollm_like, rows=400)


def test_a_token_of_a_user_is_found_again_and_not_special(tmp_path, smollm_like):
    backend = Tokenizer.from_str(smollm_like.backend.to_str())
    backend.add_tokens([AddedToken("<x y>", normalized=False)])
    read = again(tokenizer_of(backend), tmp_path / "a.gguf")
    assert read.backend.encode("a<x y>b").tokens == ["a", "<x y>", "b"]
    assert read.backend.decode(read.backend.encode("<x y>").ids) == "<x y>"
