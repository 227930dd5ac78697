"""Tokens to look at: the worst ones side by side, and passages for a heat map.

Columns are in the order (document, position). Text comes from the records, so tokens that were not
counted, such as a prompt or a document's first token, are missing from it.
"""

from collections.abc import Callable, Sequence

import numpy as np

from distill_jax.diagnosis.causes import CAUSES
from distill_jax.evals.records_file import Columns

WORST = 12  # examples
PER_DOCUMENT = 2  # examples at most
CONTEXT = 24  # tokens before an example
PASSAGES = 3  # each of another document
PASSAGE = 120  # tokens at most

TextOf = Callable[[int], str]


def worst(
    kd: Sequence[Columns],
    sft: Sequence[Columns] | None,
    kl_n: np.ndarray,
    causes_n: np.ndarray,
    text_of: TextOf,
) -> list[dict[str, object]]:
    """Hot tokens with the largest KL, each cause in turn, beside what each model expected.

    causes_n: a cause's name, None where a token is not hot. Of several seeds the one is shown that
    gives the label its median NLL.
    """
    first = kd[0]
    seed_n = _median_seed(kd)
    sft_seed_n = _median_seed(sft) if sft else None
    return [
        {
            "document": int(first["document"][i]),
            "position": int(first["position"][i]),
            "context": context(first, i, text_of),
            "gold": text_of(int(first["token"][i])),
            "forward_kl": float(kl_n[i]),
            "class": str(causes_n[i]),
            "teacher": likeliest(first, i, text_of, "teacher_"),
            "kd": likeliest(kd[seed_n[i]], i, text_of),
            "sft": likeliest(sft[sft_seed_n[i]], i, text_of) if sft else None,
        }
        for i in choose_worst(first["document"], kl_n, causes_n)
    ]


def choose_worst(document_n: np.ndarray, kl_n: np.ndarray, causes_n: np.ndarray) -> list[int]:
    """Places of at most WORST tokens, PER_DOCUMENT of one document, each cause in turn."""
    order = np.argsort(-kl_n, kind="stable")
    total = lambda name: kl_n[causes_n == name].sum()
    queues = [
        iter(order[causes_n[order] == name].tolist())
        for name in sorted(CAUSES, key=total, reverse=True)
    ]
    chosen: list[int] = []
    used: dict[int, int] = {}
    while queues and len(chosen) < WORST:
        queue = queues.pop(0)
        for i in queue:
            document = int(document_n[i])
            if used.get(document, 0) < PER_DOCUMENT:
                used[document] = used.get(document, 0) + 1
                chosen.append(i)
                queues.append(queue)
                break
    return chosen


def context(columns: Columns, i: int, text_of: TextOf) -> str:
    """The counted tokens before token i in its document; an ellipsis where some are missing."""
    start = max(0, i - CONTEXT)
    start += int(np.count_nonzero(columns["document"][start:i] != columns["document"][i]))
    parts: list[str] = []
    for k in range(start, i):
        parts.append(text_of(int(columns["token"][k])))
        if columns["position"][k + 1] != columns["position"][k] + 1:
            parts.append(" … ")
    return "".join(parts)


def likeliest(
    columns: Columns, i: int, text_of: TextOf, prefix: str = ""
) -> list[dict[str, object]]:
    """The likeliest tokens of a model at token i, best first."""
    ids, probability = columns[f"{prefix}top5"][i], columns[f"{prefix}top5_probability"][i]
    return [
        {"text": text_of(int(token)), "probability": float(p)}
        for token, p in zip(ids, probability, strict=True)
        if token >= 0
    ]


def passages(
    columns: Columns,
    kl_n: np.ndarray,
    nll_n: np.ndarray,
    causes_n: np.ndarray,
    text_of: TextOf,
    document_labels: Sequence[str] | None,
) -> list[dict[str, object]]:
    """Of the PASSAGES documents with the hottest stretch, that stretch, hottest first."""
    document_n = columns["document"]
    rows = []
    for start, end in hottest_stretches(document_n, kl_n):
        document = int(document_n[start])
        tokens = [
            {
                "text": text_of(int(columns["token"][i])),
                "forward_kl": float(kl_n[i]),
                "nll": float(nll_n[i]),
                "teacher_nll": float(columns["teacher_nll"][i]),
                "class": causes_n[i] if causes_n[i] is None else str(causes_n[i]),
            }
            for i in range(start, end)
        ]
        label = str(document_labels[document]) if document_labels is not None else None
        rows.append({"document": document, "label": label, "tokens": tokens})
    return rows


def hottest_stretches(document_n: np.ndarray, kl_n: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of the PASSAGE tokens with the most KL in a document, the best documents."""
    summed = np.concatenate([[0.0], np.cumsum(kl_n)])
    edges = np.flatnonzero(np.diff(document_n)) + 1
    best = []
    for first, end in zip([0, *edges.tolist()], [*edges.tolist(), len(kl_n)], strict=True):
        length = min(PASSAGE, end - first)
        windows = summed[first + length : end + 1] - summed[first : end + 1 - length]
        start = first + int(np.argmax(windows))
        best.append((-float(windows.max()), start, start + length))
    return [(start, end) for heat, start, end in sorted(best)[:PASSAGES] if heat < 0]


def _median_seed(seeds: Sequence[Columns]) -> np.ndarray:
    """Which seed gives each label its (lower) median NLL, int [n]."""
    order = np.argsort(np.stack([columns["nll"] for columns in seeds]), axis=0, kind="stable")
    return order[(len(seeds) - 1) // 2]
