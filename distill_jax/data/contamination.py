"""Training text that has words of held-out text, by runs of 13 words (Brown et al. 2020).

As in arXiv:2005.14165, appendix C: words in lower case, between white space, without punctuation;
a short held-out text is compared as a whole; what many documents share is ignored, here many
held-out ones. Unlike there, what shares a run is removed whole, and not a window around the place.
"""

from collections.abc import Iterable, Mapping
from hashlib import sha256

import numpy as np

from distill_jax.data.ngrams import bare_words, ngrams

WORDS = 13
FEWEST_WORDS = 8  # of a held-out text that counts as a whole where it has fewer than WORDS
COMMON = 10  # held-out texts; a run that more of them have, or more than half, is no text's own


def own_runs(texts: Iterable[str]) -> dict[int, np.ndarray]:
    """Sorted hashes of the runs of words, by their length, that only few of the texts have.

    8 bytes for each word of the texts; three times as much while they are read.
    """
    found, seen = {}, set()
    for text in texts:
        if (digest := sha256(text.encode("utf-8", "surrogatepass")).digest()) in seen:
            continue  # copies count once
        seen.add(digest)
        words = bare_words(text)
        n = min(WORDS, len(words))
        if n >= FEWEST_WORDS:
            found.setdefault(n, []).append(np.unique(ngrams(words, n)))
    most = min(COMMON, max(1, len(seen) // 2))
    known = {}
    for n, runs in sorted(found.items()):
        distinct, times = np.unique(np.concatenate(runs), return_counts=True)
        known[n] = distinct[times <= most]
    return known


def shares(text: str, known: Mapping[int, np.ndarray]) -> bool:
    """Whether a text has any of the runs that own_runs gave."""
    words = bare_words(text)
    return any(_any_in(ngrams(words, n), runs) for n, runs in known.items())


def _any_in(hashes: np.ndarray, known: np.ndarray) -> bool:
    """Whether any hash is in a sorted array."""
    if not len(known):
        return False
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return bool((known[places] == hashes).any())
