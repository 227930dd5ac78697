"""What TensorBoard and W&B are given by a run, recorded by stand-ins for their clients."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill_jax.workdir import read_lines
from tests import cli


class FakeWandb(SimpleNamespace):
    """A client that records: runs is a list of what each wandb.init and its run were given."""

    class errors:
        class Error(Exception):
            pass

    def __init__(self, *, known=True, mode="online"):
        super().__init__(runs=[], last_steps={})
        self.known, self.mode = known, mode

    def setup(self):
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode))

    def login(self, *, prompt):
        assert not prompt
        if isinstance(self.known, Exception):
            raise self.known
        return self.known

    def Table(self, *, columns, data):
        return [dict(zip(columns, row, strict=True)) for row in data]

    def init(self, **given):
        start = self.last_steps.get(given["id"], -1) + 1
        run = SimpleNamespace(**given, logged=[], files={}, summary={}, exit_code=None)
        run.starting_step = start

        def log(values, *, step):
            assert step >= max([start, *(s for s, _ in run.logged)]), "W&B would drop this"
            run.logged.append((step, values))
            self.last_steps[given["id"]] = step

        run.log = log
        run.save = lambda path, *, base_path, policy: run.files.update(
            {path.removeprefix(base_path + "/"): Path(path).read_text()}
        )
        run.finish = lambda *, exit_code: setattr(run, "exit_code", exit_code)
        self.runs.append(run)
        return run


class FakeTensorBoard(SimpleNamespace):
    """A client that records scalars and texts as (step, tag, value)."""

    def __init__(self):
        super().__init__(writers=[])

    def SummaryWriter(self, directory, purge_step=0):
        of = SimpleNamespace(directory=directory, purge_step=purge_step, scalars=[], texts=[])
        of.closed = False
        of.add_scalar = lambda tag, value, step: of.scalars.append((step, tag, value))
        of.add_text = lambda tag, text, step: of.texts.append((step, tag, text))
        of.flush = lambda: None
        of.close = lambda: setattr(of, "closed", True)
        self.writers.append(of)
        return of


@pytest.fixture
def clients(monkeypatch):
    wandb, board = FakeWandb(), FakeTensorBoard()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "tensorboardX", board)
    return wandb, board


LOGGED = (
    "--config.log.wandb_project=p", "--config.log.tensorboard=true",
    "--config.generate.prompts=('the quick', 'a slow dog')", "--config.generate.max_new_tokens=4",
)  # fmt: skip


def test_a_run_gives_numbers_texts_and_its_report(clients, flags, tmp_path):
    wandb, board = clients
    done = cli.run(f"--workdir={tmp_path / 'first'}", *flags, *LOGGED)
    assert done.returncode == 0, done.stderr
    (run,), (events,) = wandb.runs, board.writers
    lines = read_lines(tmp_path / "first" / "samples.jsonl")
    numbers = {
        (line["step"], name, value)
        for line in cli.metrics(tmp_path / "first")
        for name, value in line.items()
        if "/" in name and name != "train/batch" and value is not None
    }
    logged = [(s, k, v) for s, values in run.logged for k, v in values.items()]
    tables = {(step, name): v for step, name, v in logged if isinstance(v, list)}
    assert {x for x in logged if not isinstance(x[2], list)} == numbers
    assert {(step, tag, value) for step, tag, value in events.scalars} == numbers
    assert tables[0, "samples"] == [line for line in lines if line["step"] == 0]
    assert tables[6, "samples"] == lines
    assert [row["name"] for row in tables[6, "final"]] == [
        "teacher", "student before", "student after",
    ]  # fmt: skip
    last = cli.metrics(tmp_path / "first")[-1]
    assert run.summary["final/student after/nll"] == last["eval/nll"]
    assert run.files.keys() == {"config.json", "report.html", "report.json"}
    assert (run.exit_code, run.name, run.config["steps"]) == (0, "first", 6)

    texts = {(step, tag): text for step, tag, text in events.texts}
    assert json.loads(texts[0, "config"])["steps"] == 6
    for line in lines:
        text = texts[line["step"], f"samples/{line['model'].replace(' ', '_')}"]
        assert f"    {line['prompt']}\n" in text
        assert all(f"    {part}" in text for part in line["text"].split("\n"))
    assert f"| student after | {tables[6, 'final'][2]['parameters']} |" in texts[6, "final"]
    assert not {tag for _, tag, _ in events.texts} & {tag for _, tag, _ in events.scalars}
    assert events.closed


def test_a_rerun_goes_on_in_the_same_run_and_a_namesake_does_not(clients, flags, tmp_path):
    wandb, board = clients
    for workdir in (tmp_path / "a" / "first", tmp_path / "b" / "first"):
        assert cli.run(f"--workdir={workdir}", *flags, *LOGGED).returncode == 0
    (workdir / "report.json").unlink()  # as if killed before the report
    assert cli.run(f"--workdir={workdir}", *flags, *LOGGED).returncode == 0
    one, other, again = wandb.runs
    assert one.name == other.name == again.name == "first"
    assert one.id != other.id == again.id
    assert [events.purge_step for events in board.writers] == [0, 0, 7]
    assert [name for _, values in again.logged for name in values] == ["samples", "final"]


def test_a_run_that_fails_is_marked_as_failed(clients, flags, tmp_path, monkeypatch):
    monkeypatch.setattr("distill_jax.command_line.check_values", lambda _: None)  # a rate too large
    wandb, board = clients
    failing = ("--config.optim.learning_rate=1e30", "--config.optim.max_skipped=2")
    assert cli.run(f"--workdir={tmp_path / 'w'}", *flags, *LOGGED, *failing).returncode == 76
    assert wandb.runs[0].exit_code == 1
    assert board.writers[0].closed


REFUSED = {
    "nobody": (FakeWandb(known=False), "nobody is logged in to W&B"),
    "wrong key": (FakeWandb(known=FakeWandb.errors.Error("no\nsuch key")), "(no such key)"),
    "no wandb": (None, "pip install wandb"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_without_access_nothing_is_read(case, monkeypatch, tmp_path):
    client, message = REFUSED[case]
    monkeypatch.setitem(sys.modules, "wandb", client)
    done = cli.run(
        f"--workdir={tmp_path / 'w'}", "--config.teacher.path=absent",
        "--config.student.path=none", "--config.data.source=absent",
        "--config.log.wandb_project=p",
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: log.wandb_project")
    assert message in done.stderr.splitlines()[-1]


def test_tensorboard_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    done = cli.run(f"--workdir={tmp_path / 'w'}", "--config.log.tensorboard=true")
    assert done.returncode == 2
    assert "pip install tensorboardX" in done.stderr.splitlines()[-1]


def test_offline_needs_no_login(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(known=False, mode="offline"))
    done = cli.run(f"--workdir={tmp_path / 'w'}", "--config.log.wandb_project=p")
    assert done.returncode == 2
    assert "W&B" not in done.stderr
