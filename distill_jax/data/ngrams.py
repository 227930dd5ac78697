"""Runs of n words of a text as 64-bit hashes, the same on every machine and in every process."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np

# Scripts that put no space between words, of which every character counts as a word: Thai, Lao,
# Burmese, Khmer, kana and Han.
_WITHOUT_SPACES = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff])"
)
_NO_WORD = re.compile(r"[^\w\s]+")
_CACHED_WORDS = 2**16  # about 20 MB; a text without end has words without end
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word of a run is lost


def words(text: str) -> list[str]:
    """What stands between white space; in scripts without spaces, every character."""
    return (text if text.isascii() else _WITHOUT_SPACES.sub(r" \1 ", text)).split()


def bare_words(text: str) -> list[str]:
    """The same in lower case, in one form of Unicode (NFKC), and without punctuation."""
    return words(_NO_WORD.sub("", unicodedata.normalize("NFKC", text).casefold()))


def ngrams(of: Sequence[str], n: int) -> np.ndarray:
    """A uint64 hash of every n words in a row, in their order; none of fewer than n words.

    Horner's rule over hashes of the words: two different runs agree with a probability of 2**-64.
    """
    if len(of) < n:
        return np.empty(0, np.uint64)
    hashes = np.fromiter(map(_hash_of, of), np.uint64, len(of))
    runs = len(of) - n + 1
    result = hashes[:runs].copy()
    for i in range(1, n):
        result *= _MULTIPLIER
        result += hashes[i : i + runs]
    result ^= result >> np.uint64(32)
    return result


@lru_cache(_CACHED_WORDS)
def _hash_of(word: str) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())
