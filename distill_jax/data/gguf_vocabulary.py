"""A tokenizer as the metadata of a GGUF file: the inverse of gguf_tokenizer.py.

It is written where llama.cpp has a name for its kind and pre-tokenizer, and refused in one line
otherwise.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gguf import TokenType

from distill_jax.data.gguf_pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from distill_jax.data.gguf_sentencepiece import BYTES, SPACE, Pieces, merges_of
from distill_jax.data.gguf_tokenizer import SPECIAL_TOKEN_KEYS
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.data.tokenizer_settings import gguf_metadata
from distill_jax.types import UserError

# Of a pre-tokenizer: what has no part in which words there are.
_OF_OFFSETS = ("trim_offsets",)
_DEFAULTS = {"use_regex": True, "invert": False}
# Normalizers, then pre-tokenizers, that make spaces SPACE, and whether one goes before a text. Of
# Metaspace, a text that begins with a space has one fewer than with SentencePiece and llama.cpp.
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_NEVER = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
_METASPACE = {"type": "Metaspace", "replacement": SPACE, "split": False}
_SPACES = [
    ([_PREPEND, _REPLACE], [], True),
    ([_REPLACE], [], False),
    ([_REPLACE], [_NEVER], False),  # no space is left to split at
    ([], [{**_METASPACE, "prepend_scheme": "first"}], True),
    ([], [{**_METASPACE, "prepend_scheme": "always"}], True),
    ([], [{**_METASPACE, "prepend_scheme": "never"}], False),
]


class _Vocabulary(NamedTuple):
    tokens: list[str]
    types: list[int]


def tokenizer_metadata(tokenizer: Tokenizer, *, rows: int) -> dict[str, Any]:
    """The metadata of a tokenizer; llama.cpp wants as many tokens as the embedding has rows.

    Raises UserError for what llama.cpp cannot be told, and for more tokens than rows.
    """
    definition = json.loads(tokenizer.backend.to_str())
    model = definition["model"]
    if model["type"] != "BPE":
        raise _refused(f"its kind is {model['type']}")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise _refused(f"it has {name} {model[name]!r}")
    if tokenizer.vocab_size > rows:
        raise _refused(f"its {tokenizer.vocab_size} tokens are more than {rows} rows of embedding")
    for token in definition["added_tokens"]:
        for flag in ("lstrip", "rstrip", "single_word"):
            if token[flag]:
                raise _refused(f"its token {token['content']!r} has {flag}")
    _check_ends(tokenizer)
    own = _byte_level if "ByteLevel" in json.dumps(definition["pre_tokenizer"]) else _pieces
    vocabulary = _vocabulary(tokenizer, definition, rows)
    ids = {key: tokenizer.special_tokens.get(name) for name, key in SPECIAL_TOKEN_KEYS.items()}
    return {
        **own(definition, vocabulary, tokenizer),
        "tokenizer.ggml.token_type": vocabulary.types,
        **{key: tokenizer.backend.token_to_id(token) for key, token in ids.items() if token},
        "tokenizer.ggml.add_bos_token": tokenizer.adds_bos,
        "tokenizer.ggml.add_eos_token": tokenizer.adds_eos,
        **_templates(tokenizer),
        **gguf_metadata(tokenizer.settings, tokenizer.eos_id),
    }


def other_tokens(tokenizer: Tokenizer) -> str:
    """Of which texts llama.cpp makes other tokens, though it can be told no more; "": of none."""
    definition = json.loads(tokenizer.backend.to_str())
    steps = [*_steps(definition["normalizer"]), *_steps(definition["pre_tokenizer"])]
    schemes = [step["prepend_scheme"] for step in steps if step["type"] == "Metaspace"]
    if any(step["type"] == "NFC" for step in steps):
        return "texts that are not in NFC"
    if "first" in schemes:
        return "texts that begin with a space, and after a special token"
    return "texts that begin with a space" if "always" in schemes else ""


def splits_as(tokenizer: Tokenizer, name: str) -> bool:
    """Whether it makes the same words as the pre-tokenizer of that name in PRE_TOKENIZERS."""
    definition = json.loads(tokenizer.backend.to_str())
    whole_words = definition["model"].get("ignore_merges", False)
    said = _meaning(definition["normalizer"], definition["pre_tokenizer"], whole_words)
    return said == _meaning_of(PRE_TOKENIZERS[name])


def _refused(what: str) -> UserError:
    return UserError(
        f"GGUF has no name for the student's tokenizer ({what}): use --config.export.format=hf"
    )


def _check_ends(tokenizer: Tokenizer) -> None:
    ids = tokenizer.offsets.encode("a").ids
    before = [tokenizer.bos_id] if tokenizer.adds_bos else []
    after = [tokenizer.eos_id] if tokenizer.adds_eos else []
    whole = tokenizer.backend.encode("a").ids
    if whole != [*before, *ids, *after]:
        tokens = [tokenizer.backend.id_to_token(i) for i in whole]
        raise _refused(f"it makes {tokens} of the text 'a', not BOS, the text and EOS")


def _vocabulary(tokenizer: Tokenizer, definition: Mapping[str, Any], rows: int) -> _Vocabulary:
    special = {token["id"]: token["special"] for token in definition["added_tokens"]}
    tokens, types = [], []
    for i in range(rows):
        token = tokenizer.backend.id_to_token(i)
        if token is None:
            kind = TokenType.UNUSED
        elif i in special:
            kind = TokenType.CONTROL if special[i] else TokenType.USER_DEFINED
        else:
            kind = TokenType.NORMAL
        tokens.append(f"[PAD{i}]" if token is None else token)
        types.append(int(kind))
    (most, times), *_ = Counter(tokens).most_common(1)
    if times > 1:
        raise _refused(f"it has the token {most!r} twice")
    return _Vocabulary(tokens, types)


def _byte_level(
    definition: Mapping[str, Any], vocabulary: _Vocabulary, tokenizer: Tokenizer
) -> dict[str, Any]:
    model = definition["model"]
    said = _meaning(definition["normalizer"], definition["pre_tokenizer"], model["ignore_merges"])
    for name, pre in PRE_TOKENIZERS.items():
        if said == _meaning_of(pre):
            merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
            return {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": name,
                "tokenizer.ggml.tokens": vocabulary.tokens,
                "tokenizer.ggml.merges": merges,
            }
    raise _refused(f"its normalizer and pre-tokenizer are {_short(definition)}")


def _meaning(normalizer: Any, pre_tokenizer: Any, whole_words: bool) -> list[Any]:
    """What decides which words there are, in a form that can be compared."""
    return [*_steps(normalizer), "then", *_steps(pre_tokenizer), bool(whole_words)]


def _meaning_of(pre: PreTokenizer) -> list[Any]:
    normalizer = json.loads(pre.normalizer.__getstate__()) if pre.normalizer else None
    steps = {"pretokenizers": [json.loads(step.__getstate__()) for step in pre.steps]}
    return _meaning(normalizer, steps, pre.whole_words)


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, one after the other, sequences opened."""
    if part is None:
        return
    for name in ("pretokenizers", "normalizers"):
        if name in part:
            for step in part[name]:
                yield from _steps(step)
            return
    step = {key: value for key, value in part.items() if key not in _OF_OFFSETS}
    for key, value in _DEFAULTS.items():
        if step.get(key) == value:
            del step[key]
    # Of a pattern that covers every character, both keep the words that it finds.
    if step.get("behavior") == "Removed" and step.get("invert"):
        step = {k: v for k, v in step.items() if k != "invert"} | {"behavior": "Isolated"}
    yield step


def _short(definition: Mapping[str, Any]) -> str:
    said = [*_steps(definition["normalizer"]), *_steps(definition["pre_tokenizer"])]
    text = " ".join(json.dumps(said, ensure_ascii=True).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def _pieces(
    definition: Mapping[str, Any], vocabulary: _Vocabulary, tokenizer: Tokenizer
) -> dict[str, Any]:
    prefix, model = _prefix(definition), definition["model"]
    unknown = tokenizer.special_tokens.get("unk_token") or model["unk_token"]
    tokens, types = vocabulary.tokens, list(vocabulary.types)
    for i, token in enumerate(tokens):
        if token in BYTES:
            types[i] = int(TokenType.BYTE)
        elif token == unknown:
            types[i] = int(TokenType.UNKNOWN)
    if not set(BYTES).issubset(tokens):
        raise _refused("it lacks a token for every byte, and llama.cpp ends at unknown characters")
    if not model["byte_fallback"]:
        raise _refused("it has a token for every byte without using them")
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    first = {}
    for place, pair in enumerate(merges):
        first.setdefault("".join(pair), place)
    scores = [-float(first.get(token, len(merges))) for token in tokens]
    missing = set(merges).symmetric_difference(merges_of(Pieces(tokens, scores, types)))
    if missing:
        raise _refused(f"its merges do not follow from scores, such as {sorted(missing)[0]}")
    vocabulary.types[:] = types
    spaced = (
        token.replace(SPACE, " ") if kind == TokenType.USER_DEFINED else token
        for token, kind in zip(tokens, types, strict=True)
    )
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": list(spaced),
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefix,
        **({SPECIAL_TOKEN_KEYS["unk_token"]: tokens.index(unknown)} if unknown else {}),
    }


def _prefix(definition: Mapping[str, Any]) -> bool:
    """Whether a space goes before a text. Raises UserError where spaces are treated otherwise."""
    said = [list(_steps(definition[part])) for part in ("normalizer", "pre_tokenizer")]
    for *steps, prefix in _SPACES:
        if said == steps:
            return prefix
    raise _refused(f"its normalizer and pre-tokenizer are {_short(definition)}")


def _templates(tokenizer: Tokenizer) -> dict[str, Any]:
    further = tokenizer.settings.templates
    found = {f"tokenizer.chat_template.{name}": text for name, text in further.items()}
    found |= {"tokenizer.chat_templates": sorted(further)} if further else {}
    default = tokenizer.chat_template
    return found | ({"tokenizer.chat_template": default} if default is not None else {})
