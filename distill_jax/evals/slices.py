"""Kinds of held-out tokens on which a student may break while its mean still improves.

A slicing gives every token one of a few codes. It depends on the text, the training text and the
teacher alone, never on a student, so that all arms of a study have the same slices and their names
are known before the first run. Adding a slicing is one function and one line in SLICES.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from distill_jax.data.encode import Tokenized
from distill_jax.evals.records_file import OF_TEACHER, Records

ALL = "all"
DECILES = 10
FIRST_POSITIONS, LAST_POSITIONS = 16, 4096  # where the buckets of positions begin and end
FIRST_LENGTHS, LAST_LENGTHS = 64, 16384  # the same of document lengths, in tokens
ENTROPY_BANDS = (0.1, 0.5, 1.0, 2.0, 4.0)  # nats, borders between bands
KINDS = 20  # of labels; where there are more, the smaller ones are joined
OTHER = "other"


class Tokens(NamedTuple):
    """The counted tokens of a held-out text, and what is known about them without a student.

    document_n, position_n, token_n as in evals/records_file.py. entropy_n: of the teacher in nats;
    None where it is not known (yet).
    """

    document_n: np.ndarray
    position_n: np.ndarray
    token_n: np.ndarray
    entropy_n: np.ndarray | None
    training_counts_V: np.ndarray
    document_lengths: np.ndarray
    document_labels: Sequence[str]


class Slicing(NamedTuple):
    """What each code is called, and each token's code; None where no code is known (yet)."""

    names: tuple[str, ...]
    code_n: np.ndarray | None


def frequency(tokens: Tokens) -> Slicing:
    """Tenths of the held-out tokens by how often the label was a label in training; 0 the rarest.

    Tokens of equal counts stay together, in the tenth where the middle of their share lies: the
    tenths are as equal as that allows, and one may be empty beside a very frequent token.
    """
    counts_V = tokens.training_counts_V
    known_n = tokens.token_n < len(counts_V)
    count_n = np.where(known_n, counts_V[np.where(known_n, tokens.token_n, 0)], 0)
    _, group_n, sizes = np.unique(count_n, return_inverse=True, return_counts=True)
    middle = np.cumsum(sizes) - sizes / 2
    code = np.minimum((DECILES * middle / len(count_n)).astype(int), DECILES - 1)
    return Slicing(tuple(f"{i} of {DECILES}" for i in range(1, DECILES + 1)), code[group_n])


def position(tokens: Tokens) -> Slicing:
    """The position of the token in its document, by powers of two."""
    longest = int(np.max(tokens.document_lengths, initial=1))
    return _by_powers(tokens.position_n, longest, FIRST_POSITIONS, LAST_POSITIONS)


def length(tokens: Tokens) -> Slicing:
    """How many tokens the document has, by powers of two."""
    lengths = np.asarray(tokens.document_lengths)
    longest = int(np.max(lengths, initial=1))
    return _by_powers(lengths[tokens.document_n], longest, FIRST_LENGTHS, LAST_LENGTHS)


def label(tokens: Tokens) -> Slicing:
    """The domain of the document; beyond KINDS labels those with the fewest tokens are joined."""
    kinds, code_d = np.unique(np.array(tokens.document_labels, str), return_inverse=True)
    sizes = np.bincount(code_d[tokens.document_n], minlength=len(kinds))
    order = np.argsort(-sizes, kind="stable")
    names = [str(kinds[i]) for i in order]
    if len(names) > KINDS:
        own = [name for name in names[: KINDS - 1] if name != OTHER]
        names = [*own, OTHER]
    place = {name: i for i, name in enumerate(names)}
    code_of_kind = np.array([place.get(str(kind), len(names) - 1) for kind in kinds])
    return Slicing(tuple(names), code_of_kind[code_d][tokens.document_n])


def entropy(tokens: Tokens) -> Slicing:
    """How unsure the teacher is, in nats."""
    first, *_, last = borders = [f"{border:g}" for border in ENTROPY_BANDS]
    between = (f"{a}-{b} nats" for a, b in itertools.pairwise(borders))
    names = (f"below {first} nats", *between, f"{last} nats or more")
    if tokens.entropy_n is None:
        return Slicing(names, None)
    return Slicing(names, np.searchsorted(ENTROPY_BANDS, tokens.entropy_n, side="right"))


def add_slices(
    columns: Mapping[str, np.ndarray],
    *,
    training_counts_V: np.ndarray,
    document_lengths: np.ndarray,
    document_labels: Sequence[str],
) -> Records:
    """Records with a column `slice_x` for every slicing x; slice_entropy only with a teacher.

    training_counts_V: how often each token was a label in training (training_counts). Document
    lengths, in tokens, and labels are those of all held-out documents.
    """
    tokens = Tokens(
        columns["document"],
        columns["position"],
        columns["token"],
        columns.get(OF_TEACHER + "entropy"),
        training_counts_V,
        document_lengths,
        document_labels,
    )
    found = {name: slicing(tokens) for name, slicing in SLICES.items()}
    found = {name: s for name, s in found.items() if s.code_n is not None}
    codes = {f"slice_{name}": s.code_n.astype(np.int16) for name, s in found.items()}
    return Records(dict(columns) | codes, {name: s.names for name, s in found.items()})


def registered(
    held_out: Tokenized, *, training_counts_V: np.ndarray, with_teacher: bool
) -> tuple[str, ...]:
    """The names of all slices that a pass over a held-out text will give, before any pass.

    A slice without tokens and one that holds all tokens are left out, except where the tokens of
    a slicing are known only once the teacher has run.
    """
    counted = _counted(held_out)
    lengths = np.diff(held_out.offsets)
    tokens = Tokens(*counted, None, training_counts_V, lengths, held_out.labels)
    found = []
    for name, slicing in SLICES.items():
        names, code_n = slicing(tokens)
        if code_n is not None:
            sizes = np.bincount(code_n, minlength=len(names))
            found += [
                slice_name(name, value)
                for value, size in zip(names, sizes, strict=True)
                if 0 < size < len(code_n)
            ]
        elif with_teacher:
            found += [slice_name(name, value) for value in names]
    return tuple(found)


def training_counts(training: Tokenized) -> np.ndarray:
    """How often each token is a label that counts in one pass over a training text, int64 [V]."""
    _, _, token_n = _counted(training)
    return np.bincount(token_n)


def slice_name(slicing: str, value: str) -> str:
    """How a slice is called in tables and reports, such as `frequency:1 of 10`."""
    return f"{slicing}:{value}"


def slice_masks(records: Records) -> dict[str, np.ndarray]:
    """The tokens of each slice that has any, bool [n], by its name; `all` comes first."""
    masks = {ALL: np.ones(len(records.columns["token"]), bool)}
    for name, values in records.names.items():
        code_n = records.columns[f"slice_{name}"]
        for code in np.unique(code_n):
            masks[slice_name(name, values[code])] = code_n == code
    return masks


def _counted(text: Tokenized) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(document_n, position_n, token_n) of the tokens that are predicted and counted."""
    lengths = np.diff(text.offsets)
    position_n = np.arange(len(text.tokens)) - np.repeat(text.offsets[:-1], lengths)
    kept = (position_n > 0) & (np.asarray(text.trained) > 0)
    document_n = np.repeat(np.arange(len(lengths)), lengths)
    return document_n[kept], position_n[kept], np.asarray(text.tokens)[kept].astype(np.int64)


def _by_powers(value_n: np.ndarray, longest: int, first: int, last: int) -> Slicing:
    """Buckets up to first, 2 first, ... last and above, as far as a value can reach."""
    borders = [first]
    while borders[-1] < min(longest, last):
        borders.append(2 * borders[-1])
    starts = [1, *(border + 1 for border in borders)]
    names = [f"{a}-{b}" for a, b in zip(starts[:-1], borders, strict=True)]
    if longest > borders[-1]:
        names.append(f"{starts[-1]} or more")
    return Slicing(tuple(names), np.searchsorted(borders, value_n, side="left"))


SLICES: dict[str, Callable[[Tokens], Slicing]] = {
    "frequency": frequency,
    "position": position,
    "length": length,
    "label": label,
    "entropy": entropy,
}
