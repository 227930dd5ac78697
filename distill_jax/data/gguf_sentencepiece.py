"""SentencePiece's BPE from the metadata of a GGUF file: tokens, their scores and their types.

At every point, the pair whose joined token has the best score is merged (sentencepiece's
bpe_model.cc; llama.cpp does the same). The tokenizers library wants the pairs in the order of their
merging, which follows from the scores.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

SPACE = "▁"
LONGEST = 512  # characters of a token; SentencePiece's own limit is 16 unless it is raised
# Types of tokens that no pair is merged to: they are looked for as a whole, or stand for bytes.
_NEVER_MERGED = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class Pieces(NamedTuple):
    """The vocabulary by id.

    tokens   spaces written as SPACE
    scores   of merging to a token: the best goes first, of equal ones the lowest id
    types    gguf.TokenType
    """

    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]


def sentencepiece_backend(pieces: Pieces, *, unknown: str, prefix: bool) -> Tokenizer:
    """The tokenizer without BOS and EOS.

    unknown: token of a character that is not in the vocabulary, where it lacks a token for every
        byte; several in a row are one.
    prefix: a space goes before a text, and before the text after a special token, as in llama.cpp.
    """
    vocabulary = {token: i for i, token in enumerate(pieces.tokens)}
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges_of(pieces),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=all(byte in vocabulary for byte in BYTES),
        )
    )
    spaces = normalizers.Replace(" ", SPACE)
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    )
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(
        [*parts, *([decoders.Strip(content=" ", left=1)] if prefix else [])]
    )
    backend.add_tokens(_whole(pieces, prefix=prefix))
    return backend


def merges_of(pieces: Pieces) -> list[tuple[str, str]]:
    """The pairs of tokens that make a third, those that are merged first in front.

    Of one token's pairs, that with the shorter left part goes first.
    """
    place = {token: i for i, token in enumerate(pieces.tokens)}
    made = [i for token, i in place.items() if pieces.types[i] not in _NEVER_MERGED]
    made.sort(key=lambda i: (-pieces.scores[i], i))
    return [
        (token[:cut], token[cut:])
        for token in (pieces.tokens[i] for i in made)
        for cut in range(1, len(token))
        if token[:cut] in place and token[cut:] in place
    ]


def read_pieces(fields: Mapping[str, object]) -> Pieces | str:
    """The vocabulary of a file's metadata; what is wrong with it, in words, if anything is."""
    found = {}
    for key, kind in (("tokens", str), ("scores", float), ("token_type", int)):
        value = fields.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, list) or not all(type(one) is kind for one in value):
            return f"no tokenizer.ggml.{key}, one {kind.__name__} per token, in the file"
        found[key] = value
    tokens, types = found["tokens"], found["token_type"]
    if {len(value) for value in found.values()} != {len(tokens)}:
        return f"{len(tokens)} tokens, {len(found['scores'])} scores and {len(types)} types"
    if any(score != score for score in found["scores"]):
        return "a score that is no number"
    if (longest := max(map(len, tokens), default=0)) > LONGEST:
        return f"a token of {longest:,} characters, over {LONGEST}"
    spaced = [
        token.replace(" ", SPACE) if kind == TokenType.USER_DEFINED else token
        for token, kind in zip(tokens, types, strict=True)
    ]
    return Pieces(spaced, found["scores"], types)


def _whole(pieces: Pieces, *, prefix: bool) -> list[AddedToken]:
    """Tokens that are looked for in a text before any merging.

    Those with spaces are found where spaces have become SPACE already, and where a prefix would
    be put before them, too, by merging.
    """
    found = []
    for token, kind in zip(pieces.tokens, pieces.types, strict=True):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            found.append(AddedToken(token, special=True, normalized=False))
        elif kind == TokenType.USER_DEFINED and (SPACE not in token or not prefix):
            found.append(AddedToken(token, special=False, normalized=SPACE in token))
    return found
