"""Documents that are nearly equal to an earlier one, by MinHash and locality-sensitive hashing.

Two documents are as alike as their sets of 5-word runs: the Jaccard index, common ones over all
(Lee et al. 2022, arXiv:2107.06499, section 4.2). MinHash estimates it (Broder 1997); of each
signature 8 bits are kept (Li and König 2010, arXiv:0910.3349).
"""

import numpy as np
from datasketch import MinHash

from distill_jax.data.ngrams import ngrams, words

WORDS = 5
PERMUTATIONS = 256
SEED = 1  # of the permutations
FOUND = 0.98  # of the pairs as alike as the threshold, the share that meets in a band
_BITS = 8
_PIECE = 4096  # runs that are permuted at once, which takes 4 MB


def signature(text: str) -> np.ndarray | None:
    """[PERMUTATIONS] uint32; None for a text without a word.

    A text of fewer than WORDS words is one run.
    """
    found = words(text)
    if not found:
        return None
    runs = ngrams(found, min(WORDS, len(found))).astype(np.uint32)
    sketch = _EMPTY.copy()
    for start in range(0, len(runs), _PIECE):
        sketch.update_batch(runs[start : start + _PIECE].tolist())
    return sketch.hashvalues


def bands_of(threshold: float) -> tuple[int, int]:
    """How many bands of how many hashes make FOUND of the pairs at the threshold meet in one.

    Of the ways to do so, the one with the longest bands: the fewest pairs are compared.
    """
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= FOUND:
            return bands, rows
    return PERMUTATIONS, 1


class Signatures:
    """Signatures of documents, found by bands that they share.

    Memory per document: PERMUTATIONS bytes, and 12 to 16 per band; 0.6 KB at a threshold of 0.8.
    datasketch's own index takes ten times as much.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.bands, self.rows = bands_of(threshold)
        self._count = 0
        self._signatures_DP = np.empty((1024, PERMUTATIONS), np.uint8)
        self._keys_DB = np.empty((1024, self.bands), np.uint32)
        self._make_chains()

    def __len__(self) -> int:
        return self._count

    def has_alike(self, signature_P: np.ndarray) -> bool:
        """Whether a document was added whose estimated similarity is at least the threshold."""
        _, slots_B = self._place(signature_P)
        every = np.arange(self.bands)
        at_B, met = self._heads_BS[every, slots_B], []
        while (at_B >= 0).any():
            met.append(at_B[at_B >= 0])
            at_B = np.where(at_B >= 0, self._next_DB[at_B, every], -1)
        if not met:
            return False
        candidates = self._signatures_DP[np.unique(np.concatenate(met))]
        equal = (candidates == signature_P.astype(np.uint8)).mean(axis=1)
        by_chance = 0.5**_BITS
        return bool(((equal - by_chance) / (1 - by_chance) >= self.threshold).any())

    def add(self, signature_P: np.ndarray) -> None:
        """Adds the signature of a document."""
        if self._count == len(self._keys_DB):
            self._signatures_DP = _doubled(self._signatures_DP)
            self._keys_DB = _doubled(self._keys_DB)
            self._make_chains()
        keys_B, slots_B = self._place(signature_P)
        every = np.arange(self.bands)
        self._signatures_DP[self._count] = signature_P.astype(np.uint8)
        self._keys_DB[self._count] = keys_B
        self._next_DB[self._count] = self._heads_BS[every, slots_B]
        self._heads_BS[every, slots_B] = self._count
        self._count += 1

    def _place(self, signature_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A hash of every band, and the slots where the chains of these hashes begin."""
        bands_BR = signature_P[: self.bands * self.rows].reshape(self.bands, self.rows)
        keys_B = np.zeros(self.bands, np.uint32)
        for column in bands_BR.T:
            keys_B = (keys_B ^ column) * np.uint32(0x9E3779B1)
            keys_B ^= keys_B >> np.uint32(15)
        return keys_B, keys_B & np.uint32(self._heads_BS.shape[1] - 1)

    def _make_chains(self) -> None:
        """As many slots per band as there is room for documents; -1 ends a chain."""
        size = len(self._keys_DB)
        self._heads_BS = np.full((self.bands, size), -1, np.int32)
        self._next_DB = np.full((size, self.bands), -1, np.int32)
        for band in range(self.bands):
            slots = self._keys_DB[: self._count, band] & np.uint32(size - 1)
            order = np.argsort(slots, kind="stable").astype(np.int32)
            chained = slots[order]
            same = chained[1:] == chained[:-1]
            self._next_DB[order[1:][same], band] = order[:-1][same]
            self._heads_BS[band, chained] = order  # the last of each slot stays


def _doubled(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, np.empty_like(array)])


# The runs are hashes already.
_EMPTY = MinHash(PERMUTATIONS, seed=SEED, scheme="affine32", hashfunc=int)
