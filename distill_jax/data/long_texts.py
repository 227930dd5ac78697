"""The tokens of a text that is too long to be encoded in one piece: window by window.

Neighbouring windows overlap. What is encoded differs near their borders: a word, a special token or
an accented letter may be cut there. The windows are joined where both have the same tokens at the
same characters, several in a row, at a border that no more text on either side can move:

- between two words of the pre-tokenizer. Expressions are matched from left to right, so what
  follows a border depends on the border alone; the words behind it show that text which the left
  window lacks has not changed it.
- within a word, for BPE alone: pairs are merged within a token's own characters whatever is beside
  it, so a token that both windows have is one of the whole word. Not among spaces where there is a
  pre-tokenizer, since where a word of spaces begins may depend on how it ends.
"""

import math
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import tokenizers

from distill_jax.data.documents import CUT
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.types import UserError

WINDOW = 2**19  # characters; encoding takes 200 bytes of memory per character
_AT_ONCE = 4  # windows, which the library encodes in parallel
_NARROW = 64  # an overlap is a window divided by it
_WIDER = (4, 16, 64)  # times an overlap, where it has no border
_LEAST = 64  # characters of an overlap
_ROW = 4  # words, or tokens, that are equal on either side of a border
_PROBE = "a b\n\nc  1, d"


class Window(NamedTuple):
    """Characters start to stop of a text as tokens, in arrays of the length n.

    ids uint32; begin, end int64: the characters of a token, counted from the text's first one;
    word bool: whether a word of the pre-tokenizer begins there
    """

    start: int
    stop: int
    ids: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    word: np.ndarray


class Borders(NamedTuple):
    """Where windows of a tokenizer may be joined.

    in_words: within a word too. spaces: and there among spaces. margin: characters from where a
    window begins or ends; no token is longer.
    """

    in_words: bool
    spaces: bool
    margin: int


def encode_long(
    text: str, tokenizer: Tokenizer, where: str, *, most: float = math.inf, window: int = WINDOW
) -> np.ndarray:
    """Token ids uint32 [n] of a text: those that tokenizer.backend makes of it in one piece.

    most: the first so many are wanted; those that are given may be more. window: characters.
    Raises UserError, which names the text by `where`, if two windows have no border in common.
    """
    first, last = _around(tokenizer)
    borders = borders_of(tokenizer.backend)
    parts, left, since = [first], None, 0
    count = len(first)
    for right in _windows(text, tokenizer, window, most):
        if left is not None:
            right, i, j = _join(text, tokenizer, borders, left, since, right, where)
            parts.append(left.ids[since:i])
            count += i - since
            if count >= most:
                return np.concatenate(parts)
            since = j
        left = right
    return np.concatenate([*parts, left.ids[since:], last])


def borders_of(backend: tokenizers.Tokenizer) -> Borders:
    """The Borders of a tokenizer."""
    in_words = isinstance(backend.model, tokenizers.models.BPE)
    steps, probe = backend.pre_tokenizer, _PROBE
    if backend.normalizer is not None:
        probe = backend.normalizer.normalize_str(probe)
    spaces = steps is None or len(steps.pre_tokenize_str(probe)) == 1
    return Borders(in_words, spaces, max(map(len, backend.get_vocab(with_added_tokens=True))))


def _around(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """What the tokenizer puts before and after a text."""
    probe = tokenizer.backend.encode("a")
    inner = np.flatnonzero(np.array(probe.special_tokens_mask) == 0)
    ids = np.array(probe.ids, np.uint32)
    return ids[: inner[0]], ids[inner[-1] + 1 :]


def _windows(text: str, tokenizer: Tokenizer, window: int, most: float) -> Iterator[Window]:
    overlap = max(window // _NARROW, min(_LEAST, window // 2))
    spans = [
        (max(0, start - overlap), min(start + window, len(text)))
        for start in range(0, max(len(text), 1), window)
    ]
    together = int(min(_AT_ONCE, 1 + most // window))  # a character is seldom more than a token
    for i in range(0, len(spans), together):
        yield from _encoded(text, tokenizer, spans[i : i + together])


def _encoded(text: str, tokenizer: Tokenizer, spans: Iterable[tuple[int, int]]) -> Iterator[Window]:
    encodings = tokenizer.offsets.encode_batch([text[start:stop] for start, stop in spans])
    encodings.reverse()
    for start, stop in spans:
        one = encodings.pop()  # not kept, for its memory
        begin, end = np.array(one.offsets, np.int64).reshape(-1, 2).T + start
        words = np.array(one.word_ids, np.float64)  # nan where a token has none
        word = np.diff(words, prepend=np.nan) != 0
        yield Window(start, stop, np.array(one.ids, np.uint32), begin, end, word)


def _join(
    text: str,
    tokenizer: Tokenizer,
    borders: Borders,
    left: Window,
    since: int,
    right: Window,
    where: str,
) -> tuple[Window, int, int]:
    """The right window, widened to the left if need be, and the tokens where they are joined.

    since: the first token of the left window that is wanted.
    """
    found = border(text, borders, left, since, right)
    overlap = left.stop - right.start
    for times in _WIDER:
        # From where a token begins: words and tokens of equal length in a row, such as groups of
        # digits, are the same in both then. Or one before, where a prefix takes up a character.
        for shift in (0, 1):
            if found is not None:
                return right, *found
            most = max(left.stop - overlap * times, int(left.begin[since]) if len(left.ids) else 0)
            begin = left.begin[since:]
            begin = np.concatenate([begin[left.word[since:]], begin])
            start = int(begin[np.abs(begin - most).argmin()]) if len(begin) else most
            [right] = _encoded(text, tokenizer, [(max(start - shift, 0), right.stop)])
            found = border(text, borders, left, since, right)
    if found is None:
        raise UserError(
            f"{where}: the text has {len(text):,} characters, which are too many to be encoded in"
            f" one piece, and no place to divide it near character {left.stop:,} (a run of spaces"
            f" or a word as long as {left.stop - left.start:,} characters): split it into several"
            f" documents, a .txt file by `{CUT}`"
        )
    return right, *found


def border(
    text: str, borders: Borders, left: Window, since: int, right: Window
) -> tuple[int, int] | None:
    """Tokens i of the left window, from `since` on, and j of the right one at a common border.

    None if there is no such place.
    """
    here = np.flatnonzero(left.begin[since:] >= right.start)
    if not len(here) or not len(right.ids):
        return None
    since += int(here[0])
    begin = left.begin[since:]
    other = _beside(begin, right.begin)
    n = np.arange(len(begin))
    same = other >= 0
    for ours, theirs in zip(left[2:], right[2:], strict=True):
        same &= ours[since:] == theirs[other]
    # Runs of tokens that are the same in both, one after another; others are alone.
    opens = ~same | ~np.roll(same, 1) | (other != np.roll(other, 1) + 1)
    opens[0] = True
    first = np.maximum.accumulate(np.where(opens, n, 0))
    closes = np.append(opens[1:], True)
    last = np.minimum.accumulate(np.where(closes, n, len(n))[::-1])[::-1]
    apart = same & (begin >= np.append(begin[:1], left.end[since:][:-1]))  # of whole characters
    apart &= (begin >= right.start + borders.margin) & (begin <= left.stop - borders.margin)
    middle = (right.start + left.stop) // 2
    for in_words in (False, True)[: 1 + borders.in_words]:
        marks = same if in_words else same & left.word[since:]
        count = np.cumsum(marks)
        before, after = count - marks - (count - marks)[first], count[last] - count
        fits = np.flatnonzero(marks & apart & (before >= _ROW) & (after >= _ROW))
        for i in fits[np.abs(begin[fits] - middle).argsort(kind="stable")].tolist():
            if unicodedata.combining(text[begin[i]]):  # may be put in another order
                continue
            near = text[begin[i - _ROW] : left.end[since + i + _ROW]] if in_words else ""
            if borders.spaces or not any(map(str.isspace, near)):
                return since + i, int(other[i])
    return None


def _beside(begin: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each token the one of others that begins at its character, or -1.

    Of several that begin there, the first has the first, and so on.
    """
    ours, our_first = np.unique(begin, return_index=True)
    theirs, their_first = np.unique(others, return_index=True)
    _, i, j = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
    heads = np.full(len(begin), -1)
    heads[our_first[i]] = their_first[j]
    n = np.arange(len(begin))
    is_first = np.zeros(len(begin), bool)
    is_first[our_first] = True
    head = np.maximum.accumulate(np.where(is_first, n, 0))
    found = np.where(heads[head] >= 0, heads[head] + n - head, -1)
    return np.where(found < len(others), found, -1)
