"""A run goes on with more steps, as if it had been planned so where its schedules allow it."""

import json
import shutil

import pytest

from distill_jax.config import load_base
from distill_jax.setup.growth import told
from distill_jax.setup.loss import make_recipe
from distill_jax.setup.owner import claim
from tests import cli
from tests.test_checkpoint_damage import arrays, flip

# Without cli.SMALL's warm-up: the default shrinks to fit.
FLAGS = (
    "--config.data.seq_len=32", "--config.data.batch_size=8", "--config.eval.every=3",
    "--config.data.held_out_fraction=0.2", "--config.model.block_tokens=64",
    "--config.generate.max_new_tokens=4",
)  # fmt: skip


def said(*arguments, code=0, config="configs/base.py"):
    done = cli.run(*arguments, config=config)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def losses(directory):
    return [m["train/loss"] for m in cli.metrics(directory) if "train/loss" in m]


def report(directory):
    return json.loads((directory / "report.json").read_text())


@pytest.fixture(scope="module")
def start(world):
    """All flags but the steps of a run of constant learning rate."""
    return (
        f"--config.teacher.path={world / 'teacher'}", f"--config.student.path={world / 'student'}",
        f"--config.data.source={world / 'text.jsonl'}", *FLAGS, "--config.optim.schedule=constant",
    )  # fmt: skip


@pytest.fixture(scope="module")
def grown(start, tmp_path_factory):
    """A run of 4 steps that went on to 8, and what was said."""
    where = tmp_path_factory.mktemp("grown") / "run"
    said(f"--workdir={where}", *start, "--config.steps=4")
    more = ("--config.eval.every=4", "--config.generate.prompts=('the quick',)")
    return where, said(f"--workdir={where}", "--config.steps=8", *more, config=None)


def test_a_grown_run_is_the_run_that_was_planned_so(start, grown, tmp_path):
    where, out = grown
    assert "config.steps is 8 now, and was 4: going on from step 4" in out
    assert "the learning rate stays 0.0005" in out
    said(f"--workdir={tmp_path}", *start, "--config.steps=8", "--config.optim.warmup_steps=0")
    assert losses(where) == losses(tmp_path)
    assert report(where)["eval/nll"] == report(tmp_path)["eval/nll"]
    config = json.loads((where / "config.json").read_text())
    kept = ("steps", "eval.every", "generate.prompts", "optim.warmup_steps")
    assert [config[key] for key in kept] == [8, 4, ["the quick"], 0]
    assert {line["prompt"] for line in report(where)["samples"]} == {"the quick"}


def test_defaults_that_were_fitted_to_fewer_steps_stay(start, grown, tmp_path):
    """The same command with more steps does not ask for another warm-up."""
    where = shutil.copytree(grown[0], tmp_path / "run")
    out = said(f"--workdir={where}", *start, "--config.steps=21")
    assert "going on from step 8" in out
    assert json.loads((where / "config.json").read_text())["optim.warmup_steps"] == 0
    assert len(losses(where)) == 21


def test_a_run_whose_last_checkpoint_is_damaged_says_from_where_it_goes_on(grown, tmp_path):
    where = shutil.copytree(grown[0], tmp_path / "run")
    flip(arrays(where / "checkpoints/step_8"), 300)
    out = said(f"--workdir={where}", "--config.steps=9", config=None)
    assert "the checkpoint of step 8 is damaged" in out
    assert "config.steps is 9 now, and was 8: going on from step 4" in out


def test_fewer_steps_than_are_done_are_refused(grown):
    where, _ = grown
    before = (where / "report.json").read_bytes()
    error = said(f"--workdir={where}", "--config.steps=5", code=2, config=None)
    assert "has trained 8 steps already: use more than 8" in error
    assert "is done" in said(f"--workdir={where}", config=None)
    assert (where / "report.json").read_bytes() == before


def test_a_run_without_checkpoints_cannot_go_on(grown, tmp_path):
    where = shutil.copytree(grown[0], tmp_path / "run", ignore=lambda *_: ["checkpoints"])
    error = said(f"--workdir={where}", "--config.steps=9", code=2, config=None)
    assert "has no checkpoint left to go on from" in error
    assert len(losses(where)) == 8


SCHEDULES = {
    "constant": ("the learning rate stays 0.0005",),
    "cosine": ("the schedule cosine spans 6 steps now: the learning rate is",),
    "linear": ("the schedule linear spans 6 steps now: the learning rate is",),
    "wsd": ("the schedule wsd spans 6 steps now, falling over the last 1 steps: the learning rate"
            " is 0.0005 at step 4, and was 5e-05 at step 3",),
}  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_becomes_of_schedules_is_said(tmp_path, schedule):
    c = load_base()
    keys = {"optim.schedule": schedule, "optim.warmup_steps": 0, "optim.decay_steps": 1, "steps": 3}
    c.update_from_flattened_dict(keys | {"terms.jsd.schedule": "linear:1"})
    claim(c, tmp_path)
    (tmp_path / "checkpoints" / "step_3").mkdir(parents=True)
    assert not list(told(c, tmp_path, make_recipe(c), 3))
    c.steps = 6
    lines = list(told(c, tmp_path, make_recipe(c), 3))
    assert lines[0] == "config.steps is 6 now, and was 3: going on from step 3"
    for line in SCHEDULES[schedule]:
        assert line in lines[1]
    assert "the weight is 0.6 at step 4, and was 1" in lines[2]


def test_a_pruned_run_that_is_resumed_is_the_run_without_interruption(world, tmp_path):
    flags = (
        f"--config.teacher.path={world / 'teacher'}",
        f"--config.data.source={world / 'text.jsonl'}",
        *FLAGS, "--config.steps=4", "--config.checkpoint.every=2", "--config.student.init=prune",
        "--config.student.prune.blocks=2", "--config.student.prune.neurons=24",
        "--config.student.prune.calibration_tokens=512",
        "--config.student.prune.ranking_tokens=256",
    )  # fmt: skip
    said(f"--workdir={tmp_path / 'whole'}", *flags)
    again = shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(again / "checkpoints" / "step_4")
    (again / "report.json").unlink()
    out = said(f"--workdir={again}", *flags)
    assert "resuming from step 2" in out
    assert "pruning" not in out
    assert losses(again) == losses(tmp_path / "whole")
    evaluated = lambda path: [m["eval/nll"] for m in cli.metrics(path) if "eval/nll" in m]
    assert evaluated(again) == evaluated(tmp_path / "whole")
    weights = [
        (p / "student" / "model.safetensors").read_bytes() for p in (again, tmp_path / "whole")
    ]
    assert weights[0] == weights[1]
