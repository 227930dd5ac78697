"""A tokenizer from the metadata of a GGUF file: byte-level BPE, or SentencePiece's BPE."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from distill_jax.data.gguf_pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from distill_jax.data.gguf_sentencepiece import read_pieces, sentencepiece_backend
from distill_jax.data.tokenizer_settings import Settings, gguf_settings
from distill_jax.gguf_file import read_gguf
from distill_jax.types import UserError

SPECIAL_TOKEN_KEYS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}
# What llama.cpp takes for absent keys of a SentencePiece tokenizer.
_SENTENCEPIECE = {
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.add_space_prefix": True,
}
# Of single values, by patterns of their keys.
_TYPES = {
    r"tokenizer\.ggml\.(model|pre)|tokenizer\.chat_template(\..*)?": str,
    r"tokenizer\.ggml\..*_token_id": int,
    r"tokenizer\.ggml\.(add_(bos|eos)_token|add_space_prefix|remove_extra_whitespaces)": bool,
    r"general\.sampling\..*": int | float | str | bool,
}


class GGUFTokenizer(NamedTuple):
    """The parts from which data/tokenizer.py builds a Tokenizer."""

    backend: Tokenizer
    special_tokens: dict[str, str]  # "bos_token", "eos_token", ... to token
    chat_template: str | None
    settings: Settings


def read_gguf_tokenizer(path: Path) -> GGUFTokenizer:
    """Builds the tokenizer that the model was trained with.

    Raises UserError for an unreadable file, a kind of tokenizer that is not in KINDS, or a
    pre-tokenizer that is not in PRE_TOKENIZERS.
    """
    fields = _tokenizer_fields(path)
    kind = fields.get("tokenizer.ggml.model")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(
            f"{path}: the tokenizer is of kind {str(kind)[:60]!r}, and only byte-level BPE ('gpt2')"
            " and SentencePiece's BPE ('llama') can be read from GGUF: use the model's Hugging Face"
            " directory"
        )
    return KINDS[kind](fields, path)


def _byte_level_bpe(fields: dict[str, Any], path: Path) -> GGUFTokenizer:
    tokens, merges = (_texts(fields, f"tokenizer.ggml.{key}", path) for key in ("tokens", "merges"))
    pre_name = fields.get("tokenizer.ggml.pre", "default")
    if pre_name not in PRE_TOKENIZERS:
        raise UserError(
            f"{path}: pre-tokenizer {pre_name[:60]!r} is not one of {sorted(PRE_TOKENIZERS)}: "
            "use the model's Hugging Face directory"
        )
    pre = PRE_TOKENIZERS[pre_name]
    special = _special_tokens(fields, tokens, path)
    backend = _backend(tokens, merges, pre, path)
    types = fields.get("tokenizer.ggml.token_type", [])
    backend.add_tokens(_added_tokens(tokens, types if isinstance(types, list) else []))
    fields = {"tokenizer.ggml.add_bos_token": pre.adds_bos, **fields}
    steps = [processors.ByteLevel(trim_offsets=True), *_template(fields, special, backend)]
    backend.post_processor = processors.Sequence(steps) if len(steps) > 1 else steps[0]
    return GGUFTokenizer(backend, special, _chat_template(fields), gguf_settings(fields))


def _sentencepiece_bpe(fields: dict[str, Any], path: Path) -> GGUFTokenizer:
    fields = {**_SENTENCEPIECE, **fields}
    pieces = read_pieces(fields)
    if fields.get("tokenizer.ggml.remove_extra_whitespaces"):
        pieces = "remove_extra_whitespaces, which llama.cpp does not do for this kind"
    if isinstance(pieces, str):
        raise UserError(
            f"{path}: its SentencePiece tokenizer has {pieces}: use the model's Hugging Face"
            " directory"
        )
    special = _special_tokens(fields, pieces.tokens, path)
    prefix = fields["tokenizer.ggml.add_space_prefix"]
    backend = sentencepiece_backend(pieces, unknown=special["unk_token"], prefix=prefix)
    for template in _template(fields, special, backend):
        backend.post_processor = template
    return GGUFTokenizer(backend, special, _chat_template(fields), gguf_settings(fields))


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


def _special_tokens(fields: dict[str, Any], tokens: Sequence[str], path: Path) -> dict[str, str]:
    keys = SPECIAL_TOKEN_KEYS.items()
    return {name: _token(tokens, fields[key], key, path) for name, key in keys if key in fields}


def _token(tokens: Sequence[str], number: Any, key: str, path: Path) -> str:
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
        AddedToken(token, special=kind == TokenType.CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=False)
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]


def _template(
    fields: dict[str, Any], special: dict[str, str], backend: Tokenizer
) -> list[processors.PostProcessor]:
    """What puts BOS before a text and EOS after it, as the file says; nothing if it does not."""
    adds = {name: fields.get(f"tokenizer.ggml.add_{name}_token") for name in ("bos", "eos")}
    tokens = {name: special.get(f"{name}_token") for name in adds if adds[name]}
    before, after = ([tokens[name]] if tokens.get(name) else [] for name in adds)
    if not before + after:
        return []
    template = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[
            *before,
            "$A",
            *after,
            *(f"{t}:1" for t in before),
            "$B:1",
            *(f"{t}:1" for t in after),
        ],
        special_tokens=[(token, backend.token_to_id(token)) for token in before + after],
    )
    return [template]


def _chat_template(fields: dict[str, Any]) -> str | None:
    return fields.get("tokenizer.chat_template")


# By tokenizer.ggml.model.
KINDS = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}
