"""From records to what a verdict looks at: totals of every document, by slice, arm and seed.

Letters beside the legend of types.py: P slices (parts; the first is the whole document), R seeds
(runs), E documents (examples).
"""

import hashlib
import itertools
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from distill_jax.data.encode import Tokenized
from distill_jax.evals.records_file import OF_TEACHER, Columns, Records
from distill_jax.evals.slices import ALL, slice_name
from distill_jax.types import UserError


class ArmTotals(NamedTuple):
    """One arm, float64; seeds as text, in the order of their numbers.

    total_PRE   sums of the column over the tokens of each part
    weight_PRE  counted tokens; equal over seeds and arms that were measured on the same tokens
    """

    seeds: tuple[str, ...]
    total_PRE: np.ndarray
    weight_PRE: np.ndarray


class DocumentTotals(NamedTuple):
    """All arms on the documents that have a counted token.

    slices     names, "all" first; each has a token somewhere
    documents  int64 [E], their places in the held-out text
    arms       by name
    teacher_E  the teacher's totals of whole documents; None where the column has none of a teacher
    """

    slices: tuple[str, ...]
    documents: np.ndarray
    arms: dict[str, ArmTotals]
    teacher_E: np.ndarray | None


def document_totals(
    records: Mapping[tuple[str, int], Records], column: str = "nll"
) -> DocumentTotals:
    """Totals of a per-token column over the records of every (arm, seed).

    Arms on the same tokens get the slices of the first one: the teacher's entropy at a border may
    round differently in another program. Raises UserError where records lack the column.
    """
    for (arm, seed), own in records.items():
        if column not in own.columns:
            raise UserError(
                f"the records of {arm} seed {seed} have no {column}: measure it with a teacher"
            )
    first = next(iter(records.values()))
    sliced = {key: first if same_tokens(own, first) else own for key, own in records.items()}
    documents = np.unique(np.concatenate([own.columns["document"] for own in records.values()]))
    names = _slices_with_tokens(sliced.values())
    weights = {id(own): _sums(own, None, names, documents) for own in sliced.values()}
    arms = {}
    for arm in dict.fromkeys(arm for arm, _ in records):
        seeds = sorted(seed for other, seed in records if other == arm)
        values = [records[arm, seed].columns[column] for seed in seeds]
        slices = [sliced[arm, seed] for seed in seeds]
        totals = [_sums(s, v, names, documents) for s, v in zip(slices, values, strict=True)]
        weight_PRE = np.stack([weights[id(own)] for own in slices], axis=1)
        arms[arm] = ArmTotals(tuple(map(str, seeds)), np.stack(totals, axis=1), weight_PRE)
    of_teacher = OF_TEACHER + column
    known = (r for key, r in records.items() if sliced[key] is first and of_teacher in r.columns)
    teacher = next(known, None)
    teacher_E = teacher and _sums(first, teacher.columns[of_teacher], names[:1], documents)[0]
    return DocumentTotals(names, documents.astype(np.int64), arms, teacher_E)


def document_groups(text: Tokenized) -> np.ndarray:
    """What documents of equal tokens have in common, str [documents]: 16 digits of their SHA-256.

    Copies of one document are one piece of evidence.
    """
    tokens = np.ascontiguousarray(text.tokens, "<u4").view(np.uint8)
    ends = (4 * np.asarray(text.offsets)).tolist()
    digests = [hashlib.sha256(tokens[a:b]).hexdigest()[:16] for a, b in itertools.pairwise(ends)]
    return np.array(digests, "<U16")


def same_tokens(a: Records, b: Records) -> bool:
    """Whether two records are of the same tokens of the same documents."""
    names = ("document", "position", "token")
    return all(np.array_equal(a.columns[name], b.columns[name]) for name in names)


def _slices_with_tokens(records: Collection[Records]) -> tuple[str, ...]:
    found = {ALL: None}
    for own in {id(own): own for own in records}.values():
        for name, values in own.names.items():
            sizes = np.bincount(own.columns[f"slice_{name}"], minlength=len(values))
            found |= {slice_name(name, values[i]): None for i in np.flatnonzero(sizes)}
    return tuple(found)


def _sums(
    slices: Records, value_n: np.ndarray | None, names: tuple[str, ...], documents: np.ndarray
) -> np.ndarray:
    """[P, E]: sums of a value, or counts, in one pass per slicing and not one per slice."""
    columns: Columns = slices.columns
    place_n = np.searchsorted(documents, columns["document"])
    weights = None if value_n is None else value_n.astype(np.float64)
    sums_PE = np.zeros((len(names), len(documents)))
    place = {name: p for p, name in enumerate(names)}
    sums_PE[0] = np.bincount(place_n, weights, minlength=len(documents))
    for name, values in slices.names.items() if len(names) > 1 else ():
        cell_n = columns[f"slice_{name}"].astype(np.int64) * len(documents) + place_n
        found = np.bincount(cell_n, weights, minlength=len(values) * len(documents))
        for value, row_E in zip(values, found.reshape(len(values), -1), strict=True):
            if (p := place.get(slice_name(name, value))) is not None:
                sums_PE[p] = row_E
    return sums_PE
