"""A text that is encoded window by window has the tokens of the whole."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from distill_jax.data import encode, limits
from distill_jax.data.documents import Document
from distill_jax.data.gguf_sentencepiece import Pieces, sentencepiece_backend
from distill_jax.data.long_texts import encode_long
from distill_jax.data.tokenizer import make_tokenizer
from distill_jax.types import UserError
from tests.data.conftest import BACKENDS, CORPUS, NASTY, SPECIAL, byte_level_backend
from tests.tokens import tokenize_documents

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
CHINESE = "\u4f60\u597d\u4e16\u754c\uff0c\u8fd9\u662f\u4e00\u4e2a\u6d4b\u8bd5\u3002"
TEXTS = {
    "words": "".join(CORPUS),
    "spaces": "a" + " " * 150 + "b  c",
    "newlines": "one\n" * 9 + "\n" * 120 + "  \n" * 40,
    "one letter": "a" * 900,
    "digits": "31415926535897932384626433832795" * 20,
    "emoji": f"{FAMILY} {FAMILY}{FAMILY}\U0001f1e9\U0001f1ea" * 30,
    "no spaces": "thequickbrownfoxjumpsoverthelazydog" * 20,
    "chinese": CHINESE * 40,
    "accents": "cafe\u0301 nai\u0308ve \u1100\u1161\u11a8 a\u0323\u0307 " * 30,
    "special": "<|im_start|>user hi<|im_end|>\n<|endoftext|><mark> a <mark>" * 15,
    "code": "def f(x):\n        return {'a': x**2}\n\n\n" * 20,
    "indented": ("\t" * 9 + "x\n" + " " * 40 + "y\r\n") * 12,
}  # fmt: skip


MORE = [
    "th", "qu", "ck", "ow", "ox", "er", "▁t", "▁a", "he", "re", "the", "qui", "▁th", "▁the", "ti",
    "on", "in", "tion", "31", "14", "15", "141", "aa", "aa▁", "ick", "own",
]  # fmt: skip


def _template(backend: Tokenizer, single: str) -> Tokenizer:
    ids = [(token, backend.token_to_id(token)) for token in ("<bos>", "<|im_end|>")]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return backend


def word_piece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.normalizer = normalizers.BertNormalizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", *SPECIAL], show_progress=False
    )
    backend.train_from_iterator([*CORPUS, CHINESE], trainer)
    return _template(backend, "<bos> $A <|im_end|>")


def unigram() -> Tokenizer:
    letters = sorted({*"".join(TEXTS.values()).replace(" ", "▁")} - {*CHINESE[4:]})
    pieces = ["<unk>", *SPECIAL, *letters, *MORE, "▁▁", "aaa", "aaaaa"]
    backend = Tokenizer(models.Unigram([(p, -float(i % 9)) for i, p in enumerate(pieces)], 0))
    backend.pre_tokenizer, backend.normalizer = pre_tokenizers.Metaspace(), normalizers.NFKC()
    backend.add_special_tokens(SPECIAL)
    return _template(backend, "$A <|im_end|>")


def sentence_piece(*, prefix: bool) -> Tokenizer:
    """Merges over the whole text, in an order that is not that of length; runs of spaces."""
    whole = ["<unk>", "<bos>", "<|im_end|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({*"".join(TEXTS.values()).replace(" ", "▁")} - {*CHINESE})
    runs = ["▁" * n for n in range(2, 17)] + ["a" * n for n in (3, 4, 8)]
    tokens = [*whole, *MORE, *runs, *letters]
    scores = [-float(i * 7919 % 997) for i in range(len(tokens))]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - len(whole))]
    backend = sentencepiece_backend(Pieces(tokens, scores, types), unknown="<unk>", prefix=prefix)
    return _template(backend, "<bos> $A")


def composed() -> Tokenizer:
    backend = byte_level_backend("qwen2")
    backend.normalizer = normalizers.NFC()
    return backend


ALL = BACKENDS | {
    "word-piece": word_piece,
    "unigram": unigram,
    "llama-2": lambda: sentence_piece(prefix=True),
    "no-prefix": lambda: sentence_piece(prefix=False),
    "composed": composed,
}


@pytest.fixture(scope="module", params=sorted(ALL))
def any_tokenizer(request):
    backend = ALL[request.param]()
    backend.add_tokens([
        AddedToken("<mark>", lstrip=True, rstrip=True, special=False),
        AddedToken("  \n  ", special=False, normalized=False),
    ])  # fmt: skip
    return make_tokenizer(
        backend,
        special_tokens={"bos_token": "<bos>", "eos_token": "<|im_end|>"},
        chat_template=None,
    )


def same(text: str, tokenizer, window: int = 200) -> bool:
    """Whether the text could be divided; if so, into the tokens of the whole."""
    try:
        found = encode_long(text, tokenizer, "n", window=window)
    except UserError:
        return False
    assert found.dtype == np.uint32
    assert found.tolist() == tokenizer.backend.encode(text).ids
    return True


# A place between words of which several are whole on either side: the words here are too long.
INDIVISIBLE = {
    "word-piece": {"one letter", "digits", "no spaces", "indented"},
    "unigram": {"one letter", "digits", "no spaces", "chinese"},
}


@pytest.mark.parametrize("name", TEXTS)
def test_windows_have_the_tokens_of_the_whole(any_tokenizer, name, request):
    kind = request.node.callspec.params["any_tokenizer"]
    divided = [same(TEXTS[name][i:], any_tokenizer) for i in range(0, 60, 7)]
    assert all(divided) == (name not in INDIVISIBLE.get(kind, ()))


PART = st.one_of(
    st.sampled_from([text[:n] for text in TEXTS.values() for n in (7, 30, 90)]),
    st.sampled_from(NASTY),
    st.builds(lambda s, n: s * n, st.sampled_from([*"a1 \n\t.\u0301\u4f60\u00e9", " \n"]),
              st.integers(1, 120)),
    st.text(max_size=30).filter(lambda s: s.isprintable()),
)  # fmt: skip


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(st.lists(PART, min_size=3, max_size=30).map("".join), st.integers(130, 300))
@example("x\n" + " " * 400 + "\ny and some more words, then the end of it" * 9, 200)
@example("ab " * 34 + "\u0301" * 150 + "\u0323" * 150, 200)  # NFC puts these in order
def test_any_text_has_the_tokens_of_the_whole_or_is_refused(any_tokenizer, text, window):
    same(text, any_tokenizer, window)


@pytest.mark.parametrize("most", [0, 700])
def test_a_long_document_is_as_one_in_one_piece(smollm_like, most, monkeypatch):
    """Among short ones, whole and up to a number of tokens."""
    documents = [Document(str(i), "x", text=TEXTS[name]) for i, name in enumerate(TEXTS)]
    documents.insert(2, Document("pair", "x", pair=("a b", "c d")))
    whole = tokenize_documents(documents, smollm_like, max_tokens=most)
    for module in (limits, encode):
        monkeypatch.setattr(module, "LONGEST", 300)
    seen = []
    windows = lambda text, *rest, **more: (
        seen.append(text) or encode_long(text, *rest, **more, window=250)
    )
    monkeypatch.setattr(encode, "encode_long", windows)
    found = tokenize_documents(documents, smollm_like, max_tokens=most)
    assert seen
    for ours, theirs in zip(found[:4], whole[:4], strict=True):
        assert np.array_equal(ours, theirs)


def test_no_more_windows_are_encoded_than_are_needed(smollm_like, monkeypatch):
    seen, text = [], "word 12 " * 5000
    encode_batch = Tokenizer.encode_batch
    spy = type("Spy", (), {
        "encode_batch": lambda _, some: seen.extend(some) or encode_batch(smollm_like.offsets, some)
    })()  # fmt: skip
    found = encode_long(text, smollm_like._replace(offsets=spy), "n", most=300, window=400)
    assert len(found) >= 300
    assert sum(map(len, seen)) < 5000
    assert found[:300].tolist() == smollm_like.backend.encode(text).ids[:300]


def test_spaces_without_end_are_refused_in_one_line(smollm_like):
    with pytest.raises(UserError, match=r"n: .* near character 200 .* `split -C 100k") as raised:
        encode_long("a" + " " * 900, smollm_like, "n", window=200)
    assert "\n" not in str(raised.value)


def test_a_word_of_spaces_is_not_divided_where_its_beginning_depends_on_its_end():
    """The word is the first newline, spaces and the second one; without that one it is two words.

    The spaces are the same tokens either way, but the newline takes two of them.
    """
    backend = byte_level_backend("qwen2")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*letters, "ĠĠ", "ĊĠĠ", *SPECIAL]
    merges = [("Ġ", "Ġ"), ("Ċ", "ĠĠ")]
    backend.model = models.BPE({token: i for i, token in enumerate(vocabulary)}, merges)
    tokenizer = make_tokenizer(
        backend, special_tokens={"eos_token": "<|im_end|>"}, chat_template=None
    )
    assert not same("x\n" + " " * 400 + "\ny", tokenizer)
    assert same("x\n" + " " * 90 + "\ny" + " words" * 60, tokenizer)
