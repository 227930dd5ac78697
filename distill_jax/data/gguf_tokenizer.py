"""A byte-level BPE tokenizer from the metadata of a GGUF file."""

from pathlib import Path
from typing import Any, NamedTuple

import gguf
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from distill_jax.data.tokenizer_settings import Settings, gguf_settings
from distill_jax.types import UserError

_CONTROL, _USER_DEFINED = 3, 4  # token types of the format
_SPECIAL_TOKEN_KEYS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}


class PreTokenizer(NamedTuple):
    """The meaning of a name in `tokenizer.ggml.pre`.

    steps          pre-tokenizers, one after the other
    normalizer     of the text before them
    whole_words    whether a word that is itself a token skips the merges
    adds_bos       the default if the file does not say
    """

    steps: list[pre_tokenizers.PreTokenizer]
    normalizer: normalizers.Normalizer | None = None
    whole_words: bool = False
    adds_bos: bool = False


class GGUFTokenizer(NamedTuple):
    """The parts from which data/tokenizer.py builds a Tokenizer."""

    backend: Tokenizer
    special_tokens: dict[str, str]  # "bos_token", "eos_token", ... to token
    chat_template: str | None
    settings: Settings


def read_gguf_tokenizer(path: Path) -> GGUFTokenizer:
    """Builds the tokenizer that the model was trained with.

    Raises UserError for an unreadable file, a tokenizer other than byte-level BPE, or a
    pre-tokenizer that is not in PRE_TOKENIZERS.
    """
    fields = _tokenizer_fields(path)
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UserError(
            f"{path}: the tokenizer is of kind {kind!r}, and only byte-level BPE ('gpt2') can be "
            "read from GGUF: use the model's Hugging Face directory"
        )
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"):
        if key not in fields:
            raise UserError(f"{path}: no {key} in the file: use the model's Hugging Face directory")
    pre_name = fields.get("tokenizer.ggml.pre", "default")
    if pre_name not in PRE_TOKENIZERS:
        raise UserError(
            f"{path}: pre-tokenizer {pre_name!r} is not one of {sorted(PRE_TOKENIZERS)}: "
            "use the model's Hugging Face directory"
        )
    pre = PRE_TOKENIZERS[pre_name]
    tokens = fields["tokenizer.ggml.tokens"]
    special = {
        name: tokens[fields[key]] for name, key in _SPECIAL_TOKEN_KEYS.items() if key in fields
    }
    backend = _backend(tokens, fields["tokenizer.ggml.merges"], pre)
    backend.add_tokens(_added_tokens(tokens, fields.get("tokenizer.ggml.token_type", [])))
    adds_bos = fields.get("tokenizer.ggml.add_bos_token", pre.adds_bos)
    bos = special.get("bos_token") if adds_bos else None
    backend.post_processor = _post_processor(bos, backend)
    template = fields.get("tokenizer.chat_template")
    return GGUFTokenizer(backend, special, template, gguf_settings(fields))


def _tokenizer_fields(path: Path) -> dict[str, Any]:
    try:
        reader = gguf.GGUFReader(path)
        wanted = ("tokenizer.", "general.sampling.")
        fields = {k: v.contents() for k, v in reader.fields.items() if k.startswith(wanted)}
    # Raised by the reader for a file that is truncated or of another format.
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path}: not a readable GGUF file ({error}): download it again") from error
    return fields


def _backend(tokens: list[str], merges: list[str], pre: PreTokenizer) -> Tokenizer:
    backend = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in merges],
            ignore_merges=pre.whole_words,
        )
    )
    backend.normalizer = pre.normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(pre.steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _added_tokens(tokens: list[str], types: list[int]) -> list[AddedToken]:
    return [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=False)
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _post_processor(bos: str | None, backend: Tokenizer) -> processors.PostProcessor:
    if bos is None:
        return processors.ByteLevel(trim_offsets=True)
    template = processors.TemplateProcessing(
        single=[bos, "$A"],
        pair=[bos, "$A", f"{bos}:1", "$B:1"],
        special_tokens=[(bos, backend.token_to_id(bos))],
    )
    return processors.Sequence([processors.ByteLevel(trim_offsets=True), template])


def _byte_level(*, words: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=words)


def _split_then_bytes(digits: str) -> list[pre_tokenizers.PreTokenizer]:
    """The pattern published with Llama 3 and Qwen2, which differ in how digits are grouped."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    return [split, _byte_level(words=False)]


PRE_TOKENIZERS = {
    "default": PreTokenizer([_byte_level(words=True)]),
    "gpt-2": PreTokenizer([_byte_level(words=True)]),
    "smollm": PreTokenizer(
        [pre_tokenizers.Digits(individual_digits=True), _byte_level(words=True)]
    ),
    "llama-bpe": PreTokenizer(_split_then_bytes(r"\p{N}{1,3}"), whole_words=True, adds_bos=True),
    "qwen2": PreTokenizer(_split_then_bytes(r"\p{N}"), normalizer=normalizers.NFC()),
}
