"""Whether two tokenizers are equivalent."""

import json
from itertools import zip_longest
from typing import Any

from distill_jax.data.tokenizer import Tokenizer

# Texts on which byte-level BPE tokenizers with equal vocabularies are known to differ: digits
# after letters and spaces, runs of white space, contractions, composed and decomposed accents,
# scripts without spaces, emoji, code, capitals, control characters.
PROBES = (
    "In 1984 the 3rd of 12,345.678 items cost $9 and 100 more; x2 = 10 20  30\n",
    "a  b   c\t\td \n\n \n  e\r\nf\u00a0g\u3000h ",
    " leading and trailing  ",
    "It's we'll I'M THEY'RE don't 'tis O'Neill",
    "caf\u00e9 cafe\u0301 \u01c6 \ufb01 \u212b \u1e9b\u0323 \uff21\uff11",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f \uc548\ub155",
    "\u0e2a\u0e27\u0e31 \u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2660\ufe0f",
    "\u0663\u0664 \u2167 \u00b2\u00bd 1\u00b2",
    "def f(x):\n    return {'a': x**2, \"b\": [1, -2.5e-3]}  # ok!?\n\n\n\tpass",
    "HTTPServer camelCase snake_case KEBAB-case e.g., i.e. http://a.b/c?d=e&f#g",
    "\x00\x07\x1b[0m \ufeff\ufffd",
)


def first_difference(a: Tokenizer, b: Tokenizer) -> str | None:
    """The first thing that the two tokenizers treat differently, in words, or None.

    Compared are the tokens of all ids that both have, merges, and the encoding of probe texts and
    of every added token. An id that only one has is a difference only if text can produce it (an
    added token): padded vocabularies are equal. The end-of-text token and chat templates are not
    compared.
    """
    for i in range(min(a.vocab_size, b.vocab_size)):
        token_a, token_b = a.backend.id_to_token(i), b.backend.id_to_token(i)
        if token_a != token_b:
            return f"token {i} is {token_a!r} in one and {token_b!r} in the other"
    model_a, model_b = _definition(a), _definition(b)
    if model_a == model_b:
        return None
    merges_a, merges_b = model_a["model"].get("merges", []), model_b["model"].get("merges", [])
    for place, (merge_a, merge_b) in enumerate(zip_longest(merges_a, merges_b)):
        if merge_a != merge_b:
            return f"merge {place} is {merge_a} in one and {merge_b} in the other"
    # Different definitions may still be equivalent: their encodings decide.
    added = sorted({*a.added_tokens, *b.added_tokens})
    for probe in [*PROBES, *(f"x {token} y" for token in added)]:
        ids_a, ids_b = a.offsets.encode(probe).ids, b.offsets.encode(probe).ids
        if ids_a != ids_b:
            return _describe(probe, a, ids_a, b, ids_b)
    return None


def _definition(tokenizer: Tokenizer) -> dict[str, Any]:
    definition = json.loads(tokenizer.offsets.to_str())
    # The vocabulary has been compared over the ids that both have.
    del definition["model"]["vocab"]
    return definition


def _describe(probe: str, a: Tokenizer, ids_a: list[int], b: Tokenizer, ids_b: list[int]) -> str:
    pairs = zip_longest(ids_a, ids_b)
    place, (id_a, id_b) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
    return (
        f"the text {probe!r} has as token number {place} {_token(a, id_a)} in one and "
        f"{_token(b, id_b)} in the other"
    )


def _token(tokenizer: Tokenizer, i: int | None) -> str:
    return "nothing" if i is None else f"{i} {tokenizer.backend.id_to_token(i)!r}"
