"""The tokenizer of a run: loading and saving."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from distill_jax.data.gguf_tokenizer import read_gguf_tokenizer
from distill_jax.data.tokenizer_file import read_backend
from distill_jax.data.tokenizer_settings import (
    NO_SETTINGS,
    Settings,
    chat_template,
    read_json,
    read_settings,
    template_file,
    write_settings,
)
from distill_jax.types import UserError

# Encoding runs in threads. Unset, the library turns its threads off, with a warning, in every
# process that is forked later.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer(NamedTuple):
    """A tokenizer, and its properties that the encoding of documents depends on.

    backend         the tokenizer itself
    offsets         the same without post-processing, so that token offsets are exact
    bos_id          beginning of text, None where there is none
    eos_id          end of text
    pad_id          padding, None where there is none; may equal eos_id, so never a mask
    adds_bos        whether encoding a text puts bos_id first
    adds_eos        whether encoding a text puts eos_id last
    added_tokens    strings that are one token anywhere in a text
    special_tokens  "bos_token", "eos_token", ... to token, as chat templates use them
    chat_template   jinja2 source or None
    template_file   where that was read, for errors; empty where it was not
    vocab_size      one more than the highest token id, added tokens included
    fingerprint     sha256 in hex of all of the above
    settings        what the model's files say besides, for an exported student
    """

    backend: tokenizers.Tokenizer
    offsets: tokenizers.Tokenizer
    bos_id: int | None
    eos_id: int
    pad_id: int | None
    adds_bos: bool
    adds_eos: bool
    added_tokens: tuple[str, ...]
    special_tokens: dict[str, str]
    chat_template: str | None
    template_file: str
    vocab_size: int
    fingerprint: str
    settings: Settings


def make_tokenizer(
    backend: tokenizers.Tokenizer,
    *,
    special_tokens: dict[str, str],
    chat_template: str | None,
    template_file: str = "",
    settings: Settings = NO_SETTINGS,
) -> Tokenizer:
    """Builds a Tokenizer. Raises UserError if a special token is not in the vocabulary."""
    backend.no_padding()
    backend.no_truncation()
    ids = {name: backend.token_to_id(token) for name, token in special_tokens.items()}
    for name, token in special_tokens.items():
        if ids[name] is None:
            raise UserError(f"{name} {token!r} is not in the vocabulary: repair the tokenizer")
    if "eos_token" not in ids:
        raise UserError(
            "the tokenizer has no end-of-text token: name one as 'eos_token' in "
            "tokenizer_config.json"
        )
    definition = backend.to_str()
    offsets = tokenizers.Tokenizer.from_str(definition)
    offsets.post_processor = None
    probe = backend.encode("a")
    first, last = probe.ids[0], probe.ids[-1]
    parts = [_canonical(json.loads(definition)), _canonical(special_tokens), chat_template or ""]
    return Tokenizer(
        backend=backend,
        offsets=offsets,
        bos_id=ids.get("bos_token"),
        eos_id=ids["eos_token"],
        pad_id=ids.get("pad_token"),
        adds_bos=bool(probe.special_tokens_mask[0]) and first == ids.get("bos_token"),
        adds_eos=bool(probe.special_tokens_mask[-1]) and last == ids["eos_token"],
        added_tokens=tuple(
            token.content for _, token in sorted(backend.get_added_tokens_decoder().items())
        ),
        special_tokens=dict(special_tokens),
        chat_template=chat_template,
        template_file=template_file,
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        fingerprint=hashlib.sha256("\0".join(parts).encode()).hexdigest(),
        settings=settings,
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads the tokenizer of a Hugging Face directory (tokenizer.json) or of a .gguf file.

    As in transformers, tokenizer.json decides whether a text begins with BOS, not the flags in
    tokenizer_config.json.
    Raises UserError if it is missing, malformed, or without an end-of-text token.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        return make_tokenizer(**read_gguf_tokenizer(path)._asdict(), template_file=str(path))
    file = path / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"{path} has no tokenizer.json: save the tokenizer there with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    backend = read_backend(file)
    config = read_json(path / "tokenizer_config.json")
    return make_tokenizer(
        backend,
        special_tokens=_special_tokens(path, config, backend),
        chat_template=chat_template(path, config),
        template_file=str(template_file(path)),
        settings=read_settings(path, config, backend),
    )


def _special_tokens(
    path: Path, config: dict[str, Any], backend: tokenizers.Tokenizer
) -> dict[str, str]:
    older = read_json(path / "special_tokens_map.json")
    found = {}
    for name in _SPECIAL_TOKENS:
        token = config.get(name) or older.get(name)
        if isinstance(token, dict):
            token = token.get("content")
        if token is not None and not isinstance(token, str):
            raise UserError(f"{path}: {name} is {str(token)[:50]!r}: name a token, as a string")
        if token is not None:
            found[name] = token
    for file in ("generation_config.json", "config.json"):
        ids = read_json(path / file).get("eos_token_id")
        first = ids[0] if isinstance(ids, list) and ids else ids
        if "eos_token" not in found and isinstance(first, int) and 0 <= first < 2**32:
            found["eos_token"] = backend.id_to_token(first) or f"<{first}>"
    return found


def save_tokenizer(tokenizer: Tokenizer, directory: Path, *, positions: int | None = None) -> None:
    """Writes the files from which transformers' AutoTokenizer builds the same tokenizer.

    They say what the tokenizer's own files said, but for what names a program, a version or a
    place. positions: of the model, which model_max_length does not exceed.
    """
    directory = Path(directory)
    tokenizer.backend.save(str(directory / "tokenizer.json"))
    write_settings(
        tokenizer.settings,
        directory,
        special_tokens=tokenizer.special_tokens,
        template=tokenizer.chat_template,
        positions=positions,
    )


def close_text(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Adds the end-of-text token to an encoded text, unless the tokenizer has added it."""
    return ids if tokenizer.adds_eos else [*ids, tokenizer.eos_id]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
