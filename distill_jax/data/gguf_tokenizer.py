"""A byte-level BPE tokenizer from the metadata of a GGUF file."""

import re
from pathlib import Path
from typing import Any, NamedTuple

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
from distill_jax.gguf_file import read_gguf
from distill_jax.types import UserError

_CONTROL, _USER_DEFINED = 3, 4  # token types of the format
_SPECIAL_TOKEN_KEYS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}
# Of single values, by patterns of their keys.
_TYPES = {
    r"tokenizer\.ggml\.(model|pre)|tokenizer\.chat_template(\..*)?": str,
    r"tokenizer\.ggml\..*_token_id": int,
    r"general\.sampling\..*": int | float | str | bool,
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
    tokens, merges = (_texts(fields, f"tokenizer.ggml.{key}", path) for key in ("tokens", "merges"))
    pre_name = fields.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre_name, str) or pre_name not in PRE_TOKENIZERS:
        raise UserError(
            f"{path}: pre-tokenizer {str(pre_name)[:60]!r} is not one of {sorted(PRE_TOKENIZERS)}: "
            "use the model's Hugging Face directory"
        )
    pre = PRE_TOKENIZERS[pre_name]
    special = {
        name: _token(tokens, fields[key], key, path)
        for name, key in _SPECIAL_TOKEN_KEYS.items()
        if key in fields
    }
    backend = _backend(tokens, merges, pre, path)
    types = fields.get("tokenizer.ggml.token_type", [])
    backend.add_tokens(_added_tokens(tokens, types if isinstance(types, list) else []))
    adds_bos = fields.get("tokenizer.ggml.add_bos_token", pre.adds_bos)
    bos = special.get("bos_token") if adds_bos else None
    backend.post_processor = _post_processor(bos, backend)
    template = fields.get("tokenizer.chat_template")
    return GGUFTokenizer(backend, special, template, gguf_settings(fields))


def _tokenizer_fields(path: Path) -> dict[str, Any]:
    metadata = read_gguf(path).metadata.items()
    fields = {k: v for k, v in metadata if k.startswith(("tokenizer.", "general.sampling."))}
    for key, value in fields.items():
        wanted = next((of for pattern, of in _TYPES.items() if re.fullmatch(pattern, key)), object)
        if not isinstance(value, wanted):
            raise UserError(
                f"{path}: {key} is {str(value)[:60]!r}, which is of another type than the format"
                " says: use the model's Hugging Face directory"
            )
    return fields


def _texts(fields: dict[str, Any], key: str, path: Path) -> list[str]:
    value = fields.get(key)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(
            f"{path}: no {key}, a list of texts, in the file: use the model's Hugging Face"
            " directory"
        )
    return value


def _token(tokens: list[str], number: Any, key: str, path: Path) -> str:
    if type(number) is not int or not 0 <= number < len(tokens):
        raise UserError(
            f"{path}: {key} is {str(number)[:60]}, and its tokens are 0 to {len(tokens) - 1}: use"
            " the model's Hugging Face directory"
        )
    return tokens[number]


def _backend(tokens: list[str], merges: list[str], pre: PreTokenizer, path: Path) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(tokens)}
    for merge in merges:
        pair = merge.split(" ")
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
            raise UserError(
                f"{path}: the merge {merge[:60]!r} is not of two tokens to a third: use the model's"
                " Hugging Face directory"
            )
    backend = Tokenizer(
        models.BPE(
            vocab=vocab,
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
