"""What per-token records say of a student beside its baseline: calibration, and the diagnosis."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distill_jax.diagnosis.where import diagnose
from distill_jax.evals.aggregates import aggregate
from distill_jax.evals.calibration import reliability
from distill_jax.evals.records_file import Records

TEACHER = "teacher"


def findings(
    student: Sequence[Records],
    baseline: Sequence[Records],
    *,
    names: tuple[str, str],
    text_of: Callable[[int], str],
    document_labels: Sequence[str],
    kl_own: float | None,
    kl_data: float | None,
) -> dict[str, Any]:
    """The parts `calibration` and `diagnose` of report.json; the latter None without a teacher.

    student, baseline: one Records a seed, the baseline's may be none. names: theirs on the page.
    For the others see diagnose().
    """
    told = None
    if student and "forward_kl" in student[0].columns:
        told = diagnose(
            student,
            baseline or None,
            text_of=text_of,
            document_labels=document_labels,
            kl_own=kl_own,
            kl_data=kl_data,
        )
    models = zip(names, (student, baseline), strict=True)
    rows = [_calibrated(name, records, "") for name, records in models if records]
    if told is not None:
        # The teacher is the same in every record.
        rows.insert(0, _calibrated(TEACHER, student[:1], "teacher_"))
    return {"calibration": {"models": rows}, "diagnose": told}


def _calibrated(model: str, records: Sequence[Records], prefix: str) -> dict[str, Any]:
    """Means over seeds of the scores; the bins have the tokens of all seeds together."""
    columns = [r.columns for r in records]
    joined = lambda name: np.concatenate([c[name] for c in columns])
    scores = [aggregate(c) for c in columns]
    correct = joined(f"{prefix}top5")[:, 0] == joined("token")
    names = ("ece", "brier", "confident_and_wrong")
    return {
        "model": model,
        **{name: float(np.mean([s[prefix + name] for s in scores])) for name in names},
        "bins": reliability(joined(f"{prefix}confidence"), correct),
    }
