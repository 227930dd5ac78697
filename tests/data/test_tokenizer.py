import json

import pytest
import transformers
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from distill_jax.data.tokenizer import (
    load_tokenizer,
    make_tokenizer,
    save_tokenizer,
)
from distill_jax.data.tokenizer_difference import first_difference
from distill_jax.types import UserError
from tests.data.conftest import encode_text

TEMPLATE = "{% for m in messages %}{{ bos_token + m.role + m.content }}{% endfor %}"

# The configs that an exported student has beside its tokenizer; they may change how transformers
# reads tokenizer files.
MODEL_TYPES = {
    "smollm": [None, "llama"],
    "gpt-2": [None, "llama"],
    "llama-bpe": [None, "llama"],
    "qwen2": ["qwen2", "qwen3"],
    "gemma": [None, "gemma3_text", "llama"],
}
CASES = [(name, kind) for name, kinds in MODEL_TYPES.items() for kind in kinds]


@pytest.fixture(scope="module", params=CASES, ids=str)
def saved(request, tmp_path_factory, make_small):
    name, model_type = request.param
    directory = tmp_path_factory.mktemp("saved")
    if model_type is not None:
        (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = make_small(name, chat_template=TEMPLATE)
    save_tokenizer(tokenizer, directory)
    return (
        tokenizer,
        load_tokenizer(directory),
        transformers.AutoTokenizer.from_pretrained(directory),
    )


def test_saved_tokenizer_gives_transformers_the_same_ids(saved, nasty):
    ours, again, theirs = saved
    assert again.backend.encode(nasty).ids == ours.backend.encode(nasty).ids
    assert theirs(nasty)["input_ids"] == ours.backend.encode(nasty).ids
    ids = ours.backend.encode(nasty, add_special_tokens=False).ids
    assert theirs.decode(ids) == ours.backend.decode(ids, skip_special_tokens=False)


def test_saved_tokenizer_keeps_special_tokens_and_template(saved):
    ours, again, theirs = saved
    aside = dict.fromkeys(("backend", "offsets", "template_file", "settings"))  # see test_export.py
    assert again._replace(**aside) == ours._replace(**aside)
    specials = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert specials == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert theirs.chat_template == ours.chat_template
    assert len(theirs) == ours.vocab_size


def test_a_text_is_what_the_tokenizer_makes_of_it_and_end_of_text(tokenizer, nasty):
    ids = encode_text(tokenizer, nasty)
    assert ids[-1] == tokenizer.eos_id
    assert ids[:-1] == tokenizer.backend.encode(nasty).ids
    assert tokenizer.adds_bos == (encode_text(tokenizer, "")[0] == tokenizer.bos_id)


def test_end_of_text_is_not_doubled_but_survives_a_text_that_ends_in_its_string(smollm_like):
    eos = smollm_like.eos_id
    assert encode_text(smollm_like, "a<|im_end|>")[-2:] == [eos, eos]


def write_directory(directory, tokenizer, config):
    tokenizer.backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["llama-bpe", "gpt-2"])
@pytest.mark.parametrize("flag", [True, False])
def test_tokenizer_json_decides_what_a_text_begins_with_as_in_transformers(
    tmp_path, make_small, name, flag
):
    config = {
        "add_bos_token": flag,
        "add_eos_token": flag,
        "bos_token": "<bos>",
        "eos_token": "<|im_end|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_directory(tmp_path, make_small(name), config)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).backend.encode("hello").ids == theirs("hello")["input_ids"]


def test_an_end_of_text_that_the_tokenizer_adds_is_not_added_again(tmp_path, make_small):
    tokenizer = make_small("gpt-2")
    expected = encode_text(tokenizer, "hello")
    tokenizer.backend.post_processor = TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", tokenizer.eos_id)]
    )
    write_directory(tmp_path, tokenizer, {"eos_token": "<|im_end|>"})
    assert encode_text(load_tokenizer(tmp_path), "hello") == expected


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>"}),
        ("tokenizer_config.json", {"eos_token": {"content": "<|endoftext|>"}}),
        ("special_tokens_map.json", {"eos_token": {"content": "<|endoftext|>"}}),
        ("generation_config.json", {"eos_token_id": [0, 2]}),
        ("config.json", {"eos_token_id": 0}),
    ],
)
def test_end_of_text_is_found_where_models_keep_it(tmp_path, smollm_like, file, content):
    write_directory(tmp_path, smollm_like, {})
    (tmp_path / file).write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).eos_id == smollm_like.backend.token_to_id("<|endoftext|>")


@pytest.mark.parametrize(
    ("template", "found"),
    [("x", "x"), ([{"name": "rag", "template": "y"}, {"name": "default", "template": "x"}], "x")],
)
def test_template_in_the_config_is_read(tmp_path, smollm_like, template, found):
    write_directory(tmp_path, smollm_like, {"eos_token": "<|im_end|>", "chat_template": template})
    assert load_tokenizer(tmp_path).chat_template == found
    (tmp_path / "chat_template.jinja").write_text("z")
    assert load_tokenizer(tmp_path).chat_template == "z"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no end-of-text token"),
        ({"tokenizer_config.json": '{"eos_token": "<nope>"}'}, "'<nope>' is not in the vocabulary"),
        ({"config.json": '{"eos_token_id": 99999}'}, "'<99999>' is not in the vocabulary"),
        ({"tokenizer_config.json": "{"}, "not JSON"),
        ({"tokenizer.json": "{}"}, "tokenizer.json: unreadable"),
        ({"tokenizer.json": None}, "has no tokenizer.json"),
    ],
)
def test_broken_directories_are_one_line(tmp_path, smollm_like, files, says):
    smollm_like.backend.save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        (tmp_path / name).unlink(missing_ok=True)
        if content is not None:
            (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_padding_and_truncation_of_the_file_do_not_reach_documents(tmp_path, make_small):
    tokenizer = make_small("gpt-2")
    expected = tokenizer.backend.encode("hello world").ids
    tokenizer.backend.enable_padding(length=50)
    tokenizer.backend.enable_truncation(2)
    write_directory(tmp_path, tokenizer, {"eos_token": "<|im_end|>"})
    assert load_tokenizer(tmp_path).backend.encode("hello world").ids == expected


def remake(tokenizer, change):
    """The same tokenizer after a change to its definition."""
    definition = json.loads(tokenizer.backend.to_str())
    change(definition)
    backend = type(tokenizer.backend).from_str(json.dumps(definition))
    special = dict(tokenizer.special_tokens)
    return make_tokenizer(backend, special_tokens=special, chat_template=None)


def swap_tokens(definition):
    vocab = definition["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def swap_merges(definition):
    merges = definition["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def drop_digits(definition):
    definition["pre_tokenizer"]["pretokenizers"].pop(0)


def lower(definition):
    definition["normalizer"] = {"type": "Lowercase"}


def pad_vocabulary(definition):
    vocab = definition["model"]["vocab"]
    vocab |= {f"[PAD{i}]": i for i in range(len(vocab), len(vocab) + 20)}


def rewrite(definition):
    definition["normalizer"] = {"type": "Sequence", "normalizers": []}
    definition["post_processor"] = None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (swap_tokens, "token 68 is"),
        (swap_merges, "merge 0 is"),
        (drop_digits, "the text 'In 1984"),
        (lower, "the text 'In 1984"),
    ],
)
def test_a_different_tokenizer_is_named_by_its_first_difference(smollm_like, change, says):
    changed = remake(smollm_like, change)
    assert says in first_difference(smollm_like, changed)
    assert "\n" not in first_difference(changed, smollm_like)
    assert changed.fingerprint != smollm_like.fingerprint


@pytest.mark.parametrize("change", [lambda definition: None, pad_vocabulary, rewrite])
def test_padding_and_spelling_are_no_difference(smollm_like, change):
    changed = remake(smollm_like, change)
    assert first_difference(smollm_like, changed) is None
    assert first_difference(changed, smollm_like) is None


def test_an_added_token_that_text_can_produce_is_a_difference(smollm_like):
    other = remake(smollm_like, lambda definition: None)
    other.backend.add_tokens([AddedToken("<tool>", special=False)])
    special = dict(other.special_tokens)
    other = make_tokenizer(other.backend, special_tokens=special, chat_template=None)
    assert "'<tool>'" in first_difference(smollm_like, other)
    assert "'<tool>'" in first_difference(other, smollm_like)
