"""Where the divergence between a student and its teacher lives, and what it is made of.

Pure NumPy on per-token records (evals/records.py). The result is the part `diagnose` of
report.json: numbers are finite, and None where there is nothing to divide by.
"""

from collections.abc import Sequence

import numpy as np

from distill_jax.diagnosis.causes import (
    CAUSES,
    Evidence,
    classify,
    evidence_of,
    hot_mask,
    own_text_drift,
    possible_causes,
)
from distill_jax.diagnosis.examples import TextOf, passages, worst
from distill_jax.evals.records_file import Records
from distill_jax.types import UserError
from distill_jax.words import plural

VOCABULARY = 20  # labels listed
MINIMUM_COUNT = 5  # occurrences of a label before it is listed: fewer are single examples


def diagnose(
    kd: Sequence[Records],
    sft: Sequence[Records] | None = None,
    *,
    text_of: TextOf,
    document_labels: Sequence[str] | None = None,
    kl_own: float | None = None,
    kl_data: float | None = None,
) -> dict[str, object]:
    """The part `diagnose` of report.json.

    kd               records of the distilled (or any) student, one per seed.
    sft              records of plain fine-tuning on the same tokens, one per seed; without it
                     `capacity` and `distillation_made` are one cause, `student_wrong`.
    text_of          token id -> its text.
    document_labels  domain of each held-out document, by its index.
    kl_own, kl_data  KL to the teacher on the student's own and on the data's continuations of the
                     same prompts, nats per token; None: not measured, `exposure` is null.

    KL and NLL are means over seeds; causes follow from them and from majorities (causes.py).
    Raises UserError where there is no teacher, no token, or the records are of different tokens.
    """
    kd_columns = [_in_order(records.columns) for records in kd]
    sft_columns = [_in_order(records.columns) for records in sft] if sft else None
    _check(kd_columns, sft_columns or [])
    first = kd_columns[0]
    evidence = evidence_of(kd_columns, sft_columns)
    kl_n = evidence.forward_kl_n
    hot_n = hot_mask(kl_n)
    causes_n = np.where(hot_n, np.array(list(CAUSES))[classify(evidence)], None)
    return {
        "tokens": len(kl_n),
        "half_of_kl_share": float(hot_n.mean()) if hot_n.any() else None,
        "classes": cause_rows(evidence, causes_n),
        "slices": kl_by_slice(first, kd[0].names, kl_n),
        "vocabulary": vocabulary_rows(first["token"], kl_n, text_of),
        "positions": position_rows(first["position"], kl_n),
        "worst": worst(kd_columns, sft_columns, kl_n, causes_n, text_of),
        "passages": passages(first, kl_n, evidence.nll_n, causes_n, text_of, document_labels),
        "exposure": own_text_drift(kl_own, kl_data),
    }


def cause_rows(evidence: Evidence, causes_n: np.ndarray) -> list[dict[str, object]]:
    """The causes of the hot tokens, with shares of all tokens and of all KL."""
    kl_n = evidence.forward_kl_n
    rows = []
    for name in possible_causes(evidence):
        here = causes_n == name
        rows.append(
            {
                "class": name,
                "what": CAUSES[name].what,
                "tokens": int(here.sum()),
                "share_of_tokens": float(here.mean()),
                "share_of_kl": fraction(kl_n[here].sum(), kl_n.sum()),
            }
        )
    return rows


def kl_by_slice(
    columns: dict[str, np.ndarray], names: dict[str, tuple[str, ...]], kl_n: np.ndarray
) -> list[dict[str, object]]:
    """Every slice with a token, in the order of its codes; the slices of one kind share all KL."""
    rows = []
    for kind, values in names.items():
        codes_n = columns.get(f"slice_{kind}")
        if codes_n is None:
            continue
        for code in np.unique(codes_n[codes_n >= 0]):
            here = codes_n == code
            rows.append(
                {
                    "slice": f"{kind}:{values[code]}",
                    "share_of_tokens": float(here.mean()),
                    "share_of_kl": fraction(kl_n[here].sum(), kl_n.sum()),
                    "mean_kl": float(kl_n[here].mean()),
                }
            )
    return rows


def vocabulary_rows(
    token_n: np.ndarray, kl_n: np.ndarray, text_of: TextOf
) -> list[dict[str, object]]:
    """The labels with the largest share of the KL, of those seen at least MINIMUM_COUNT times."""
    ids, inverse, count = np.unique(token_n, return_inverse=True, return_counts=True)
    total = np.bincount(inverse, kl_n, len(ids))
    order = np.argsort(-total, kind="stable")
    order = order[(count[order] >= MINIMUM_COUNT) & (total[order] > 0)]
    return [
        {
            "text": text_of(int(ids[i])),
            "count": int(count[i]),
            "mean_kl": float(total[i] / count[i]),
            "share_of_kl": fraction(total[i], kl_n.sum()),
        }
        for i in order[:VOCABULARY]
    ]


def position_rows(position_n: np.ndarray, kl_n: np.ndarray) -> list[dict[str, object]]:
    """Mean KL by position in the document, in buckets 1, 2-3, 4-7, ..."""
    # frexp is exact where log2 rounds.
    bucket_n = np.frexp(position_n.astype(np.float64))[1] - 1
    return [
        {
            "low": int(2**bucket),
            "high": int(2 ** (bucket + 1) - 1),
            "mean_kl": float(kl_n[bucket_n == bucket].mean()),
        }
        for bucket in np.unique(bucket_n).tolist()
    ]


def fraction(part: float, whole: float) -> float | None:
    """A part of the whole; None of nothing."""
    return float(part / whole) if whole > 0 else None


def _in_order(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns sorted by document and position."""
    order = np.lexsort((columns["position"], columns["document"]))
    return {name: values[order] for name, values in columns.items()}


def _check(kd: Sequence[dict[str, np.ndarray]], sft: Sequence[dict[str, np.ndarray]]) -> None:
    if not kd or not len(kd[0]["token"]):
        raise UserError("the student's records hold 0 tokens: evaluate it on held-out text first")
    first = kd[0]
    places = np.stack([first["document"], first["position"]])
    twice = (np.diff(places) == 0).all(0).sum()
    if twice:
        raise UserError(
            f"the student's records hold {plural(int(twice), 'token')} twice: give the"
            " records of each seed apart"
        )
    for number, columns in enumerate([*kd, *sft]):
        if number < len(kd) and "forward_kl" not in columns:
            raise UserError(
                f"record {number} of the student has no column forward_kl: a diagnosis needs a"
                " teacher, config.teacher.path"
            )
        for key in ("document", "position", "token"):
            if not np.array_equal(columns[key], first[key]):
                raise UserError(
                    f"record {number} holds {len(columns[key])} tokens that differ in {key} from"
                    f" the first record's {len(first[key])}: evaluate every model on the same text"
                )
        for key in ("forward_kl", "nll", "teacher_nll"):
            bad = np.count_nonzero(~np.isfinite(columns.get(key, 0.0)))
            if bad:
                raise UserError(
                    f"record {number} holds {bad} values of {key} that are not finite: evaluate"
                    " this model again, in float32"
                )
