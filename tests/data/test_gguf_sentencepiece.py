"""SentencePiece in GGUF, held to the sentencepiece library and to transformers' classes."""

import io
import random
import re
from pathlib import Path

import gguf
import pytest
import sentencepiece
import transformers
from transformers.tokenization_utils_base import generate_merges

from distill_jax.data.gguf_sentencepiece import LONGEST, Pieces, merges_of
from distill_jax.data.gguf_vocabulary import tokenizer_metadata
from distill_jax.data.tokenizer import load_tokenizer
from distill_jax.gguf_file import write_gguf
from distill_jax.types import UserError
from tests.data.conftest import CORPUS, NASTY

# Some text of many words.
LINES = [*CORPUS, *Path(__file__).read_text(encoding="utf-8").split("\n")]
SPACES = ["▁" * n for n in range(2, 17)]  # tokens of Gemma's own
KINDS = {
    # of Llama 2 and Mistral: a space goes before a text
    "llama": {"user_defined_symbols": ["<turn>"]},
    "gemma": {"add_dummy_prefix": False, "user_defined_symbols": ["<turn>", *SPACES, "\n\n"]},
    "no bytes": {"byte_fallback": False, "vocab_size": 300},
}
ATOMS = [
    *(" ", "  ", "   ", "\n", "\n\n", "\t", "a", "the", "quick", "e\u0301", "é", "你好", "привет"),
    *("\U0001f600", "\U0001f469\u200d\U0001f4bb", "\u0928\u092e", "<s>", "</s>", "<unk>", "<turn>"),
    *("<control>", "▁", "<0x0A>", "12", "3.14", "def f(x):", "\x00", "\ufffd", "ﬁ", "don't"),
]
SPECIAL = re.compile("<s>|</s>|<unk>|<control>|<turn>")
DRAW = random.Random(0)
TEXTS = [*NASTY, *("".join(DRAW.choices(ATOMS, k=DRAW.randint(1, 12))) for _ in range(1000))]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


def train(kind):
    """A model of SentencePiece's own."""
    model = io.BytesIO()
    options = {"vocab_size": 700, "byte_fallback": True, **KINDS[kind]}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, model_type="bpe", minloglevel=2,
        character_coverage=0.98, normalization_rule_name="identity", split_digits=True,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        control_symbols=["<control>"], hard_vocab_limit=False, **options,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def trained(kind):
    return train(kind)


def type_of(model, i, own):
    """The type that converters write, by what the model says of a token."""
    kinds = {"IsUnknown": 2, "IsControl": 3, "IsByte": 6}
    found = next((number for name, number in kinds.items() if getattr(model, name)(i)), 1)
    return 4 if model.IdToPiece(i) in own else found


def write(path, model, kind="llama", **changes):
    """As converters do, which write the spaces of a user's own tokens as spaces."""
    own = KINDS[kind].get("user_defined_symbols", ())
    ids = range(model.GetPieceSize())
    types = [type_of(model, i, own) for i in ids]
    tokens = [model.IdToPiece(i) for i in ids]
    entries = {
        "tokens": [
            t.replace("▁", " ") if n == 4 else t for t, n in zip(tokens, types, strict=True)
        ],
        "scores": [model.GetScore(i) for i in ids],
        "types": types,
    } | changes
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(entries.get("named", "llama"))
    writer.add_tokenizer_pre("default")
    writer.add_token_list(entries["tokens"])
    if entries["scores"]:
        writer.add_token_scores(entries["scores"])
    writer.add_token_types(entries["types"])
    writer.add_add_space_prefix(KINDS[kind].get("add_dummy_prefix", True))
    entries.get("more", lambda writer: None)(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def ours(trained, kind, tmp_path_factory):
    return load_tokenizer(write(tmp_path_factory.mktemp("spm") / "a.gguf", trained, kind))


def test_texts_are_those_of_sentencepiece(trained, ours):
    plain = [text for text in TEXTS if not SPECIAL.search(text)]
    assert len(plain) > 300
    for text in plain:
        assert ours.backend.encode(text).ids == [1, *trained.EncodeAsIds(text)], repr(text)


@pytest.mark.parametrize("kind", ["llama", "gemma"], indirect=True)
def test_texts_and_special_tokens_in_them_are_those_of_transformers(trained, ours, kind):
    """Of a text that begins with a space, transformers 5 leaves out the space before it.

    Its classes make nothing of an unknown character where there is no token for every byte.
    """
    tokens = [trained.IdToPiece(i) for i in range(trained.GetPieceSize())]
    own = KINDS[kind]["user_defined_symbols"]
    added = [transformers.AddedToken(t, normalized=False, special=False) for t in own]
    added += [transformers.AddedToken("<control>", normalized=False, special=True)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    more = {"legacy": True} if kind == "llama" else {"pad_token": "</s>", "mask_token": "</s>"}
    theirs = (transformers.GemmaTokenizer if kind == "gemma" else transformers.LlamaTokenizer)(
        vocab=vocabulary, merges=generate_merges(vocabulary), unk_token="<unk>", bos_token="<s>",
        eos_token="</s>", add_bos_token=True, additional_special_tokens=added, **more,
    )  # fmt: skip
    begins_with_space = re.compile(rf"(^|{SPECIAL.pattern})[ ▁]")
    texts = [t for t in TEXTS if kind == "gemma" or not begins_with_space.search(t)]
    assert sum(SPECIAL.search(text) is not None for text in texts) > 300
    for text in texts:
        assert ours.backend.encode(text).ids == theirs(text)["input_ids"], repr(text)


@pytest.mark.parametrize("kind", ["llama", "gemma"], indirect=True)
def test_what_is_written_is_read_as_the_same_tokenizer(ours, tmp_path):
    metadata = tokenizer_metadata(ours, rows=ours.vocab_size + 5)
    assert metadata["tokenizer.ggml.model"] == "llama"
    write_gguf(tmp_path / "a.gguf", "llama", metadata, [])
    again = load_tokenizer(tmp_path / "a.gguf")
    assert (again.special_tokens, again.adds_bos) == (ours.special_tokens, ours.adds_bos)
    for text in TEXTS:
        assert again.backend.encode(text).ids == ours.backend.encode(text).ids, repr(text)


@pytest.mark.parametrize("kind", ["no bytes"], indirect=True)
def test_without_a_token_for_every_byte_nothing_is_written(ours):
    with pytest.raises(UserError, match="it lacks a token for every byte, and"):
        tokenizer_metadata(ours, rows=ours.vocab_size)


@pytest.mark.parametrize("kind", ["llama", "gemma"], indirect=True)
def test_texts_come_back(ours, kind):
    for text in TEXTS:
        ids = ours.offsets.encode(text).ids
        if kind == "gemma" or not SPECIAL.search(text):
            assert ours.backend.decode(ids, skip_special_tokens=False) == text.replace("▁", " ")


def test_the_space_before_a_text_also_stands_behind_a_special_token(ours, kind):
    """As in llama.cpp; sentencepiece itself knows no special tokens in a text."""
    tokens = ours.offsets.encode("a<control>a").tokens
    assert tokens == (["a", "<control>", "a"] if kind == "gemma" else ["▁a", "<control>", "▁a"])


def test_the_ids_that_llama_cpp_takes_for_absent_ones(ours):
    assert ours.special_tokens == {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    assert (ours.bos_id, ours.eos_id, ours.adds_bos, ours.adds_eos) == (1, 2, True, False)


@pytest.fixture(scope="module")
def small():
    """A model that learns in no time."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", minloglevel=2,
        vocab_size=100,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def test_the_file_says_what_is_put_around_a_text(small, tmp_path):
    def more(writer):
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(True)

    loaded = load_tokenizer(write(tmp_path / "a.gguf", small, more=more))
    assert (loaded.adds_bos, loaded.adds_eos) == (False, True)
    assert loaded.backend.encode("the").ids[-1] == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"named": "t5"}, "of kind 't5'"),
        ({"scores": []}, r"no tokenizer\.ggml\.scores, one float per token"),
        ({"scores": [0.0]}, "tokens, 1 scores and"),
        ({"scores": [float("nan")]}, "tokens, 1 scores and"),
        ({"types": [1]}, "and 1 types"),
        ({"tokens": ["<unk>", "<s>", "</s>", "x" * (LONGEST + 1)]}, "a token of 513 characters"),
        (
            {"more": lambda writer: writer.add_remove_extra_whitespaces(True)},
            "remove_extra_whitespaces",
        ),
        ({"more": lambda writer: writer.add_unk_token_id(10**6)}, "unknown_token_id is 1000000"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_remedy(small, changes, says, tmp_path):
    if "tokens" in changes:
        changes = {**changes, "scores": [0.0] * 4, "types": [2, 3, 3, 1]}
    with pytest.raises(UserError, match=says) as caught:
        load_tokenizer(write(tmp_path / "a.gguf", small, **changes))
    assert "Hugging Face directory" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_better_scores_merge_first_and_equal_ones_by_id():
    tokens = ["a", "b", "ab", "bb", "abb", "<s>", "<"]
    pieces = Pieces(tokens, [0, 0, -2, -1, -2, 0, 0], [1, 1, 1, 1, 1, 3, 1])
    assert merges_of(pieces) == [("b", "b"), ("a", "b"), ("a", "bb"), ("ab", "b")]
