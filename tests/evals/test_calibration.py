"""Calibration: known values, borders of bins, and sums that merge."""

import numpy as np
import pytest

from distill_jax.evals.calibration import BINS, Bins, bins, calibration_error, ece, reliability
from distill_jax.losses.tokens import finish


def error(confidence, correct):
    return finish(calibration_error(bins(np.array(confidence), np.array(correct))))


@pytest.mark.parametrize(
    ("confidence", "correct", "expected"),
    [
        ([1.0, 1.0], [True, True], 0.0),
        ([1.0, 1.0], [False, False], 1.0),
        ([1.0] * 4, [True, True, True, False], 0.25),
        ([0.5] * 2, [True, False], 0.0),
        # Two bins, |0.9 - 0.5| for two tokens and |0.1 - 0| for two.
        ([0.9, 0.9, 0.1, 0.1], [True, False, False, False], 0.25),
        # In one bin (0.6 to 0.667), errors of opposite signs cancel: that is what bins do.
        ([0.62, 0.66], [True, False], 0.14),
    ],
)
def test_known_values(confidence, correct, expected):
    assert error(confidence, correct) == pytest.approx(expected, abs=1e-12)


def test_equals_the_formula_over_a_loop():
    r = np.random.default_rng(0)
    confidence, correct = r.random(1000).astype(np.float32), r.random(1000) < 0.5
    expected = 0.0
    for m in range(BINS):
        inside = (confidence > np.float64(m) / BINS) & (confidence <= np.float64(m + 1) / BINS)
        if inside.any():
            gap = correct[inside].mean() - confidence[inside].astype(np.float64).mean()
            expected += inside.mean() * abs(gap)
    assert error(confidence, correct) == pytest.approx(expected, rel=1e-9)
    columns = {
        "confidence": confidence,
        "token": np.zeros(1000, int),
        "top5": np.where(correct, 0, 1)[:, None].repeat(5, 1),
    }
    assert finish(ece(columns)) == pytest.approx(expected, rel=1e-9)


def test_borders_belong_to_the_bin_below_and_ends_have_a_bin():
    edges = np.arange(BINS + 1) / BINS
    count = bins(edges, np.ones(BINS + 1)).count
    np.testing.assert_array_equal(count, [2, *[1] * (BINS - 1)])


def test_sums_of_two_texts_add_up():
    r = np.random.default_rng(1)
    confidence, correct = r.random(300), r.random(300) < 0.7
    parts = bins(confidence[:100], correct[:100]), bins(confidence[100:], correct[100:])
    for a, b, whole in zip(*parts, bins(confidence, correct), strict=True):
        np.testing.assert_allclose(a + b, whole)
    merged = Bins(*(a + b for a, b in zip(*parts, strict=True)))
    assert finish(calibration_error(merged)) == pytest.approx(error(confidence, correct))


def test_what_is_drawn_from_its_own_confidence_is_calibrated():
    r = np.random.default_rng(2)
    confidence = r.random(200_000)
    assert error(confidence, r.random(200_000) < confidence) < 0.01
    assert error(confidence, r.random(200_000) < confidence**2) > 0.1


def test_rows_of_the_diagram():
    r = np.random.default_rng(3)
    confidence, correct = 0.5 + r.random(500) / 2, r.random(500) < 0.8
    rows = reliability(confidence, correct)
    assert len(rows) == BINS
    assert sum(row["count"] for row in rows) == 500
    assert [row["high"] for row in rows[:-1]] == [row["low"] for row in rows[1:]]
    assert (rows[0]["low"], rows[-1]["high"]) == (0.0, 1.0)
    for row in rows:
        if row["count"]:
            assert row["low"] < row["confidence"] <= row["high"]
        else:
            assert row["confidence"] is None
            assert row["accuracy"] is None
    hits = sum(row["count"] * row["accuracy"] for row in rows if row["count"])
    assert hits == pytest.approx(correct.sum())
    gaps = [r["count"] * abs(r["accuracy"] - r["confidence"]) for r in rows if r["count"]]
    assert sum(gaps) / 500 == pytest.approx(error(confidence, correct))
