"""From a table of measured documents to arms that may be compared, or the reason why not.

A row is one document of one arm and seed, whole (slice "all") or the part of it in one slice.
Seeds of two arms are paired by their id: same order of the data, same start.
"""

from typing import NamedTuple

import numpy as np

from distill_jax.types import UserError

COLUMNS = ("arm", "seed", "document", "slice", "nll_total", "count")
WHOLE = "all"  # the slice that is the whole document
TEACHER = "teacher"  # the arm that is the teacher; its seed may be anything
SAME_NLL = 1e-5  # nats a token, in every arm and seed: documents this near are one document
ONE_TOKEN_SHARE = 0.9  # of documents with one counted token, from which on tokens are suspected
ONE_TOKEN_DOCUMENTS = 20  # fewer documents than this are not suspected


class Incomparable(UserError):
    """The table cannot decide anything; the message is the reason."""


class Paired(NamedTuple):
    """Two arms on the same documents. K slices, the whole first; S seeds; D documents.

    total_KSD  nats, treatment - baseline.
    count_KD   tokens.
    repeats    documents that were found to be copies, and count as one with their first.
    """

    slices: tuple[str, ...]
    total_KSD: np.ndarray
    count_KD: np.ndarray
    repeats: int


class Arm(NamedTuple):
    """One arm's numbers; 0 where a document has no token of a slice."""

    seeds: tuple[str, ...]
    total_KSD: np.ndarray
    count_KSD: np.ndarray


def read_columns(table) -> dict[str, np.ndarray]:
    """The table's columns as arrays of equal length."""
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise UserError(f"the table lacks the columns {missing}: give {', '.join(COLUMNS)}")
    columns = {name: np.asarray(table[name]) for name in COLUMNS}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"the table's columns differ in length ({lengths}): give one row a document"
        )
    for name in ("nll_total", "count"):
        columns[name] = columns[name].astype(np.float64)
    for name in ("arm", "slice", "seed"):
        columns[name] = np.array([str(value) for value in columns[name].tolist()], dtype=np.str_)
    return columns


def check_rows(columns: dict[str, np.ndarray], arms: tuple[str, ...]) -> None:
    """Refuses missing arms, numbers that are none, and rows given twice."""
    for arm in arms:
        if not np.any(columns["arm"] == arm):
            raise Incomparable(f"the arm {arm} is missing: train and evaluate it")
    for name in ("nll_total", "count"):
        bad = ~np.isfinite(columns[name])
        if bad.any():
            arm, seed = columns["arm"][bad][0], columns["seed"][bad][0]
            raise Incomparable(
                f"{name} is not finite in {bad.sum()} rows, first in arm {arm} seed {seed}: "
                "train that arm again"
            )
    if (columns["count"] < 0).any():
        raise Incomparable(f"{(columns['count'] < 0).sum()} counts are negative: count tokens anew")
    keys = [np.unique(columns[n], return_inverse=True)[1] for n in COLUMNS[:4]]
    repeated = len(keys[0]) - len(np.unique(np.stack(keys), axis=1).T)
    if repeated:
        raise Incomparable(
            f"{repeated} rows repeat an arm, seed, document and slice: list every document once"
        )


def read_arm(
    columns: dict[str, np.ndarray], arm: str, slices: tuple[str, ...], documents: np.ndarray
) -> Arm:
    """An arm's rows as arrays by slice, seed and document."""
    rows = (columns["arm"] == arm) & np.isin(columns["slice"], slices)
    seeds, s = np.unique(columns["seed"][rows], return_inverse=True)
    order = np.argsort(slices)
    k = order[np.searchsorted(slices, columns["slice"][rows], sorter=order)]
    d = np.searchsorted(documents, columns["document"][rows])
    shape = len(slices), len(seeds), len(documents)
    total_KSD, count_KSD = np.zeros(shape), np.zeros(shape)
    total_KSD[k, s, d] = columns["nll_total"][rows]
    count_KSD[k, s, d] = columns["count"][rows]
    total_KSD[count_KSD == 0] = 0.0
    if not count_KSD[0].sum():
        raise Incomparable(f"no token of arm {arm} counts: its mask is empty")
    return Arm(tuple(seeds.tolist()), total_KSD, count_KSD)


def check_same_documents(
    first: Arm, other: Arm, names: tuple[str, str], slices: tuple[str, ...]
) -> None:
    """Refuses arms whose seeds were not all measured on the same tokens."""
    expected_KD = first.count_KSD[:, 0]
    for name, arm in zip(names, (first, other), strict=True):
        for s, seed in enumerate(arm.seeds):
            differs_KD = arm.count_KSD[:, s] != expected_KD
            if not differs_KD.any():
                continue
            k = int(np.argmax(differs_KD.any(axis=1)))
            present = (arm.count_KSD[k, s] > 0, expected_KD[k] > 0)
            what = "documents" if (present[0] != present[1]).any() else "counts"
            raise Incomparable(
                f"unequal {what}: {differs_KD[k].sum()} documents of {name} seed {seed} differ "
                f"from {names[0]} seed {first.seeds[0]} in slice {slices[k]}: evaluate all "
                "arms on the same held-out documents"
            )


def check_teacher(columns, documents: np.ndarray, baseline: Arm, name: str) -> None:
    """Refuses a teacher that predicts the gold text no better than the baseline does."""
    if not np.any(columns["arm"] == TEACHER):
        return
    teacher = read_arm(columns, TEACHER, (WHOLE,), documents)
    whole = Arm(baseline.seeds, baseline.total_KSD[:1], baseline.count_KSD[:1])
    check_same_documents(whole, teacher, (name, TEACHER), (WHOLE,))
    of_teacher, of_baseline = (
        a.total_KSD[0].sum() / a.count_KSD[0].sum() for a in (teacher, baseline)
    )
    if of_teacher >= of_baseline:
        raise Incomparable(
            f"the teacher is not better than {name} on gold text (NLL {of_teacher:.4g} against "
            f"{of_baseline:.4g} nats a token): choose a teacher that knows this text"
        )


def repeated_documents(first: Arm, other: Arm) -> np.ndarray:
    """[D] int: the same number for documents that no model, of any seed, tells apart.

    A copy of a document is no further evidence. Copies are neighbors once documents are sorted by
    their count and by the NLL of one model.
    """
    count_D = first.count_KSD[0, 0]
    nll_RD = np.concatenate([first.total_KSD[0], other.total_KSD[0]]) / np.maximum(count_D, 1)
    order = np.lexsort((*nll_RD[::-1], count_D))
    near = np.abs(np.diff(nll_RD[:, order], axis=1)).max(axis=0) <= SAME_NLL
    same = near & (np.diff(count_D[order]) == 0)
    groups_D = np.empty(len(count_D), np.int64)
    groups_D[order] = np.cumsum(np.concatenate([[0], ~same]))
    return groups_D


def add_up(array_xD: np.ndarray, groups_D: np.ndarray) -> np.ndarray:
    """Sums over documents of one group, in the order of each group's first document."""
    _, first, inverse = np.unique(groups_D, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))[inverse]
    summed = np.zeros((*array_xD.shape[:-1], len(first)))
    np.add.at(summed.T, rank, array_xD.T)
    return summed


def pair(
    table,
    treatment: str,
    baseline: str,
    registered: tuple[str, ...] | None = None,
    one_token_documents: bool = False,
) -> Paired:
    """The two arms, seed by seed and document by document.

    table: columns `arm`, `seed`, `document`, `slice`, `nll_total` (nats), `count` (tokens); other
    arms may stand in it. registered: slices besides the whole; None: those of the table.
    one_token_documents: documents with a single counted token are what the data consists of.
    Raises Incomparable with the reason, UserError where it is no such table.
    """
    columns = read_columns(table)
    check_rows(columns, (treatment, baseline))
    used = np.isin(columns["arm"], (treatment, baseline, TEACHER))
    columns = {name: column[used] for name, column in columns.items()}
    if registered is None:
        registered = tuple(np.unique(columns["slice"]).tolist())
    slices = (WHOLE, *(name for name in dict.fromkeys(registered) if name != WHOLE))
    documents = np.unique(columns["document"])
    arms = [read_arm(columns, name, slices, documents) for name in (treatment, baseline)]
    unpaired = sorted(set(arms[0].seeds) ^ set(arms[1].seeds))
    if unpaired:
        raise Incomparable(
            f"seeds {', '.join(unpaired)} are missing in {treatment} or {baseline}: run both arms "
            "with the same seeds"
        )
    check_same_documents(*arms, (treatment, baseline), slices)
    count_KD = arms[0].count_KSD[:, 0]
    outside = count_KD > count_KD[:1]
    if outside.any():
        k = int(np.argmax(outside.any(axis=1)))
        raise Incomparable(
            f"slice {slices[k]} counts more tokens than {outside[k].sum()} whole documents have: "
            f"give each document a row of slice {WHOLE} too"
        )
    check_documents(count_KD[0], one_token_documents)
    check_teacher(columns, documents, arms[1], baseline)
    groups_D = repeated_documents(*arms)
    total_KSD = add_up(arms[0].total_KSD - arms[1].total_KSD, groups_D)
    repeats = len(documents) - total_KSD.shape[-1]
    return Paired(slices, total_KSD, add_up(count_KD, groups_D), repeats)


def check_documents(count_D: np.ndarray, one_token_documents: bool) -> None:
    """Refuses tokens listed as documents: tokens of one document are not independent."""
    count_D = count_D[count_D > 0]
    single = float(np.mean(count_D <= 1))
    suspect = single >= ONE_TOKEN_SHARE and len(count_D) >= ONE_TOKEN_DOCUMENTS
    if suspect and not one_token_documents:
        raise Incomparable(
            f"{single:.0%} of {len(count_D)} documents have one counted token: tokens are not "
            "documents; give whole documents, or set study.one_token_documents if the data is so"
        )
