"""A tokenizer.json that somebody else wrote: looked at before the library builds a tokenizer of it.

The library takes a number per id up to the largest one, makes text as long as a normalizer says,
and panics, which is no Exception in Python, where it did not expect what a file says.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from distill_jax.types import UserError
from distill_jax.untrusted import read_json_object

MOST_BYTES = 40 * 2**20  # the largest that were seen have 35 million
MOST_IDS = 2**20  # four times the largest vocabulary that was seen
LONGEST = 4096  # characters that a step of the processing may add, or look for
MOST_GROWTH = 100  # times that the normalizers together may lengthen a text
REMEDY = "download it again, or use another model"
_CHARS = "precompiled_charsmap"  # a table in base64

# Texts of one kind of letter are where a regular expression backtracks.
_RUNS = [letter * 48 + end for letter in ("a", "A", "1", " ", "\n", "\u00e9", ".") for end in "!x"]
_PROBES = ("a", "It's 12,345.6 \u4f60\u597d\uff0c caf\u00e9 e\u0301 \U0001f600\t\r\n", "", *_RUNS)


def read_backend(file: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json.

    Raises UserError where it cannot be read or used, makes tokens at random (dropout), or has an
    id, a text or a growth of texts beyond the bounds above.
    """
    definition = read_json_object(file, REMEDY, most=MOST_BYTES)
    problem = _problem(definition)
    if problem:
        raise UserError(f"{file}: {problem}: {REMEDY}")
    try:
        with _silent():
            backend = tokenizers.Tokenizer.from_file(str(file))
            padding = backend.padding  # may be of any length
            backend.no_padding()
            made = [backend.encode(text).ids for text in _PROBES]
            backend.decode(made[1])
            alone = backend.encode(_PROBES[0], add_special_tokens=False).ids
            if padding:
                backend.enable_padding(**padding)
    except BaseException as error:  # the library raises bare Exception, and panics
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: unreadable ({reason}): {REMEDY}") from error
    if not alone:
        raise UserError(f"{file}: it makes no token of the text 'a': {REMEDY}")
    for token in (token for ids in made for token in ids):
        if backend.id_to_token(token) is None:
            raise UserError(f"{file}: it makes the token {token}, which it does not have: {REMEDY}")
    return backend


def _problem(definition: dict[str, Any]) -> str:
    """What is beyond the bounds, in words; empty where nothing is."""
    model = definition.get("model")
    model = model if isinstance(model, dict) else {}
    if model.get("dropout"):
        return (
            f"model.dropout is {model['dropout']}, which makes other tokens of the same text each"
            " time (null makes the same)"
        )
    vocabulary = model.get("vocab") or ()
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    if len(set(ids)) < len(ids):
        return "two tokens of its vocabulary have the same id"
    ids += [each.get("id") for each in _objects(definition.get("added_tokens"))]
    for each in [len(vocabulary), *(i for i in ids if isinstance(i, int))]:
        if not 0 <= each < MOST_IDS:
            return f"its vocabulary has the id or the size {each}, beyond {MOST_IDS:,}"
    grown = 1.0
    for part in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        found = list(_objects(definition.get(part)))
        if len(found) > LONGEST:
            return f"its {part} has {len(found):,} steps, more than {LONGEST:,}"
        for each in found:
            for key, value in each.items():
                if isinstance(value, str | list) and len(value) > LONGEST and key != _CHARS:
                    return f"its {part} has a {key} of the length {len(value):,}, over {LONGEST:,}"
            if part == "normalizer" and each.get("type") == "Replace":
                pattern = each.get("pattern")
                plain = pattern.get("String") if isinstance(pattern, dict) else None
                grown *= max(1, len(each.get("content") or "") / (len(plain or "") or 1))
    if grown > MOST_GROWTH:
        return f"its normalizer makes a text up to {grown:.3g} times as long, over {MOST_GROWTH}"
    return ""


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """The value where it is an object, and those within it."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _objects(inner)


@contextmanager
def _silent() -> Iterator[None]:
    """What libraries write to stderr goes nowhere: a panic writes up to 80 lines."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
