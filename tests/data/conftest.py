"""Small tokenizers of the tests' own, one for every kind of text processing."""

import json

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from distill_jax.data.gguf_pre_tokenizers import PRE_TOKENIZERS
from distill_jax.data.tokenizer import close_text, make_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, 123 times in 1984.",
    "def function(argument):\n    return argument + 1  # don't\n\n",
    "It's what we'll say: hello world! Hello assistant, user and system.",
    "Ein schöner Tag, déjà vu, 你好世界, привет, \U0001f600.",
] * 4
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<bos>"]
NASTY = [
    "",
    " ",
    "a 123 45  6\n",
    "x12y3.14 1,000",
    "  two  spaces   three\t\ttabs\n\n\n end ",
    "It's THEY'LL don't 'tis",
    "cafe\u0301 café naïve ﬁ \uff21\uff11",
    "你好\uff0c世界。привет \U0001f469\u200d\U0001f4bb\U0001f600 ٣ Ⅷ ½",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a<|im_end|>b <|endoftext|> <|im_end",
    "\x00\x07\r\n\ufeff\ufffd",
    "def f(x):\n\treturn {'a': x**2}",
]


def encode_text(tokenizer, text):
    """Token ids of a text as a document: what the tokenizer gives, and the end-of-text token."""
    return close_text(tokenizer, tokenizer.backend.encode(text).ids)


def byte_level_backend(pre_name: str, *, bos: str | None = None) -> Tokenizer:
    pre = PRE_TOKENIZERS[pre_name]
    backend = Tokenizer(models.BPE(ignore_merges=pre.whole_words))
    backend.normalizer = pre.normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(pre.steps)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    if bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return backend


def _metaspace_backend() -> Tokenizer:
    """BPE over characters with bytes as fallback, like Gemma's."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    # Without a pre-tokenizer that splits, training would merge over words: train on words.
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    words = [word for line in CORPUS for word in line.replace(" ", " |").split("|")]
    backend.train_from_iterator(words, trainer)
    definition = json.loads(backend.to_str())
    definition["added_tokens"] = definition["added_tokens"][: 1 + len(SPECIAL)]
    backend = Tokenizer.from_str(json.dumps(definition))
    bos = ("<bos>", backend.token_to_id("<bos>"))
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    return backend


BACKENDS = {
    "smollm": lambda: byte_level_backend("smollm"),
    "gpt-2": lambda: byte_level_backend("gpt-2"),
    "llama-bpe": lambda: byte_level_backend("llama-bpe", bos="<bos>"),
    "qwen2": lambda: byte_level_backend("qwen2"),
    "gemma": _metaspace_backend,
}


def tokenizer_of(backend: Tokenizer, *, chat_template: str | None = None):
    return make_tokenizer(
        backend,
        special_tokens={
            "bos_token": "<bos>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
        },
        chat_template=chat_template,
    )


def small_tokenizer(name: str, *, chat_template: str | None = None):
    return tokenizer_of(BACKENDS[name](), chat_template=chat_template)


@pytest.fixture(scope="session", params=sorted(BACKENDS))
def tokenizer(request):
    return small_tokenizer(request.param)


@pytest.fixture(scope="session")
def smollm_like():
    return small_tokenizer("smollm")


@pytest.fixture(scope="session")
def make_small():
    return small_tokenizer


@pytest.fixture(params=NASTY, ids=range(len(NASTY)))
def nasty(request):
    return request.param
