"""A verdict as JSON takes it."""

import json
from pathlib import Path

import jsonschema
import numpy as np

from distill_jax.report import verdict as report
from distill_jax.report.verdict import slice_dict, verdict_dict, verdict_page
from distill_jax.study.verdict import verdict
from tests.report import sample_report
from tests.report.html_walk import Walk, agrees, stray
from tests.study.simulated import sliced, sliced_table, study

MARGINS = {"margin": 0.0, "slice_margin": 0.0}


def test_json_holds_every_number_and_no_nan():
    table = sliced_table(*sliced(np.random.default_rng(17), slices=5, documents=60))
    nll, weight_KD = sliced(np.random.default_rng(13), effect=-0.3)
    nll[0, :, 2] += 0.9
    verdicts = [
        verdict(table, **MARGINS),
        verdict(sliced_table(nll, weight_KD), **MARGINS),
        verdict(study(np.random.default_rng(29), seeds=1), **MARGINS),
        verdict(table, invalid="no", **MARGINS),
    ]
    for v in verdicts:
        loaded = json.loads(json.dumps(verdict_dict(v), allow_nan=False))
        assert (loaded["label"], loaded["effect"]) == (v.label, v.effect)
        assert [loaded["low"], loaded["high"]] == list(v.interval)
        assert [f["slice"] for f in loaded["failures"]] == [f.slice for f in v.failures]
        drawn = json.loads(json.dumps([slice_dict(s) for s in v.slices], allow_nan=False))
        assert [r["weight"] for r in drawn] == [s.weight for s in v.slices]


def test_the_page_of_long_names_shows_what_its_report_holds():
    told = sample_report.verdict()
    schema = json.loads((Path(report.__file__).parent / "verdict.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(told)
    walk = Walk(verdict_page(told))
    assert not stray(walk)
    assert all(agrees(e, told) for e in walk.elements if "data-path" in e.attributes)
