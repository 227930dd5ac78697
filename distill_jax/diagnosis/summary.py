"""The parts of report.json that per-token records of a student and its baseline give."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from distill_jax.diagnosis.examples import TextOf
from distill_jax.diagnosis.where import diagnose
from distill_jax.evals.aggregates import aggregate
from distill_jax.evals.calibration import reliability, right
from distill_jax.evals.records_file import Records


class Summary(NamedTuple):
    """Two parts of report.json by their names there; diagnose is None without a teacher."""

    calibration: dict[str, Any]
    diagnose: dict[str, Any] | None


def summarise(
    student: Sequence[Records],
    baseline: Sequence[Records],
    *,
    names: tuple[str, str],
    text_of: TextOf,
    document_labels: Sequence[str],
    kl_own: float | None,
    kl_data: float | None,
) -> Summary:
    """Calibration of all models, and the diagnosis of the student.

    student, baseline: records, one per seed; the baseline may have none. names: theirs on the page.
    For the others see diagnose().
    """
    models = zip(names, (student, baseline), strict=True)
    rows = [_calibration(name, records, "") for name, records in models if records]
    if not (student and "forward_kl" in student[0].columns):
        return Summary({"models": rows}, None)
    # The teacher is the same in every record.
    rows.insert(0, _calibration("teacher", student[:1], "teacher_"))
    found = diagnose(
        student,
        baseline or None,
        text_of=text_of,
        document_labels=document_labels,
        kl_own=kl_own,
        kl_data=kl_data,
    )
    return Summary({"models": rows}, found)


def _calibration(model: str, records: Sequence[Records], prefix: str) -> dict[str, Any]:
    """Means over seeds of the scores; the bins have the tokens of all seeds together."""
    columns = [r.columns for r in records]
    scores = [aggregate(c) for c in columns]
    confidence = np.concatenate([c[f"{prefix}confidence"] for c in columns])
    correct = np.concatenate([right(c, prefix) for c in columns])
    names = ("ece", "brier", "confident_and_wrong")
    return {
        "model": model,
        **{name: float(np.mean([s[prefix + name] for s in scores])) for name in names},
        "bins": reliability(confidence, correct),
    }
