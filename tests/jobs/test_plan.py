"""The job plan as a user meets it: from two config.json files to an answer, a file and a page."""

import json
import shlex
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import jsonschema
import pytest

from distill_jax.config import as_flags, flatten, load_base
from distill_jax.jobs.plan import PLAN, PLAN_PAGE
from distill_jax.report import plan as report
from distill_jax.setup import planning
from distill_jax.setup.compiling import Compiled
from tests import cli
from tests.planning import pairs
from tests.report.html_walk import Walk, agrees, stray

SCHEMA = json.loads((Path(report.__file__).parent / "plan.schema.json").read_text())


def run(directory, *more, **keys):
    """The completed command, and plan.json where it wrote one."""
    c = pairs.config(directory, **{"plan__compile": False, **keys})
    flags = as_flags(flatten(c), flatten(load_base()))
    done = cli.run(f"--workdir={directory / 'w'}", "--config.job=plan", *flags, *more)
    path = directory / "w" / PLAN
    return done, json.loads(path.read_text()) if path.exists() else None


def test_it_fits_and_the_page_shows_what_the_plan_holds(tmp_path):
    done, found = run(tmp_path, plan__price_per_hour=2.5, plan__tokens=10_000)
    assert (done.returncode, done.stderr) == (0, "")
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    assert found["verdict"] == "FITS"
    given, *others = found["layouts"]
    assert given["flags"] == ""
    assert all(one["flags"] and one["fits"] for one in others)
    assert given["bytes"]["total"] == pytest.approx(sum(given["bytes"]["owners"].values()))
    steps = -(-10_000 // (32 * 32))
    assert given["hours"] == pytest.approx(steps * given["step_seconds"] / 3600)
    assert given["cost"] == pytest.approx(given["hours"] * 8 * 2.5)
    assert done.stdout.count("FITS") >= 2
    assert found["headline"] in done.stdout
    walk = Walk((tmp_path / "w" / PLAN_PAGE).read_text())
    assert not stray(walk)
    placed = [one for one in walk.elements if "data-path" in one.attributes]
    assert all(agrees(one, found) for one in placed)
    shown = {one.attributes["data-path"] for one in placed}
    assert {"headline", "layouts.0.bytes.total", "topology.source"} <= shown


def test_what_does_not_fit_is_an_answer_with_a_change_that_does(tmp_path):
    _, fits = run(tmp_path)
    limit = 0.9 * fits["layouts"][0]["bytes"]["total"]
    with mock.patch.object(planning, "memory_limit", return_value=limit):
        done, found = run(tmp_path)
    assert done.returncode == 0
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    assert found["verdict"] == "DOES NOT FIT"
    smallest = found["layouts"][1]
    assert smallest["name"] == "smallest change"
    assert smallest["bytes"]["total"] <= limit < found["layouts"][0]["bytes"]["total"]
    assert smallest["flags"] in found["headline"]
    again, after = run(tmp_path, *shlex.split(smallest["flags"]))
    assert again.returncode == 0
    assert after["layouts"][0]["bytes"] == smallest["bytes"]


def test_where_nothing_fits_it_says_so(tmp_path):
    with mock.patch.object(planning, "memory_limit", return_value=10.0):
        done, found = run(tmp_path)
    assert done.returncode == 0
    assert "Nothing that was tried does" in found["headline"]
    assert len(found["layouts"]) == 1


def test_what_the_compiler_refuses_is_not_chosen(tmp_path):
    answers = iter([Compiled(None, 9.0, "no room"), Compiled(None, None, "its compiler ended")])

    def compile_process(topology):
        return nullcontext(lambda c: next(answers, Compiled(50.0, 9.0)))

    with mock.patch("distill_jax.jobs.plan.compile_process", compile_process):
        done, found = run(tmp_path, plan__compile=True)
    assert done.returncode == 0
    assert found["verdict"] == "DOES NOT COMPILE"
    assert found["headline"].startswith("DOES NOT COMPILE: no room. It does with")
    assert found["layouts"][1]["compiled"]["total"] == 50
    assert any("the compiler refused 1 layout" in note for note in found["notes"])


def test_on_simulated_devices_it_compiles_what_it_chooses(tmp_path):
    keys = {"plan__topology": "cpu:2", "mesh__fsdp": 2, "plan__compile": True}
    done, found = run(tmp_path, **keys)
    assert (done.returncode, done.stderr) == (0, "")
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    given = found["layouts"][0]
    assert given["compiled"]["refused"] == ""
    assert given["compiled"]["total"] > given["compiled"]["arguments"] > 0
    lasting = sum(given["bytes"]["owners"][name] for name in ("student", "optimizer", "teacher"))
    assert given["compiled"]["arguments"] == pytest.approx(lasting, rel=0.2)
    assert given["times"] is given["hours"] is given["cost"] is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"plan__topology": ""}, "config.plan.topology is empty"),
        ({"plan__topology": "v5e:3"}, "config.plan.topology is 'v5e:3'"),
        ({"mesh__fsdp": 3}, "the product must equal the 8 device"),
        ({"data__batch_size": 12}, "config.data.batch_size is 12"),
        ({"data__seq_len": 4096}, "config.data.seq_len is 4096"),
        ({"epochs": 2.0, "steps": 0}, "config.epochs is 2"),
        ({"student__init": "checkpoint", "student__path": ""}, "would be a copy of its teacher"),
        ({"model__remat": "some"}, "config.model.remat is 'some'"),
        ({"teacher__more": ("x",)}, "one teacher"),
        ({"teacher__path": "/nowhere"}, "/nowhere does not exist"),
        ({"teacher__path": "", "student__path": ""}, "config.teacher.path is empty"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, keys, message):
    done, found = run(tmp_path, **keys)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert found is None


def test_it_plans_in_the_directory_of_a_run_and_owns_none(tmp_path):
    """The run that is planned may begin in the same place."""
    done, _ = run(tmp_path)
    assert done.returncode == 0
    assert not (tmp_path / "w" / "config.json").exists()
