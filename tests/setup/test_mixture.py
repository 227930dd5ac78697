"""Several sources as one text: what is refused, and what a run says and writes of each."""

import json

import numpy as np
import pytest

from distill_jax.setup.data import packed, tokens_by_source
from distill_jax.setup.hearing import Hear
from distill_jax.setup.mixture import names_of, sources_of
from distill_jax.setup.reading import training_documents
from distill_jax.setup.storing import tokenized
from distill_jax.types import UserError
from tests import cli, tiny
from tests.setup.test_reading import config_of


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixture")
    (root / "sub").mkdir()
    return [
        str(cli.write_text(root / "a.jsonl", documents=120)),
        str(cli.write_text(root / "sub" / "b.jsonl", documents=30, seed=1)),
    ]


@pytest.mark.parametrize(
    ("source", "weights", "says"),
    [
        (("a", ""), (), "has an empty text"),
        (("a", "b", "a"), (), "has 'a' twice"),
        (("a", "b"), (1,), "has 1 numbers and config.data.source 2 sources"),
        ("a", (1, 2), "has 2 numbers and config.data.source 1 sources"),
        ((), (1,), "has 1 numbers and config.data.source 0 sources"),
    ],
)
def test_sources_and_weights_have_to_match(source, weights, says):
    with pytest.raises(UserError, match=says):
        sources_of(config_of(source, weights=weights))


def test_a_file_belongs_to_one_source_however_it_is_named(files, tmp_path):
    (tmp_path / "link.jsonl").symlink_to(files[0])
    (tmp_path / "sub").mkdir()
    same = (
        files[0].replace("a.jsonl", "sub/../a.jsonl"),
        str(tmp_path / "link.jsonl"),
        files[0].replace("a.jsonl", "*.jsonl"),
        files[0].removesuffix("/a.jsonl"),
    )
    for other in same:
        with pytest.raises(UserError, match=r"a\.jsonl' and in .*: give each file once"):
            training_documents(config_of((files[0], other)))


def test_held_out_files_that_are_trained_on_are_told(files):
    told = []
    c = config_of(tuple(files))
    c.data.eval_source = files[1]
    training_documents(c, Hear(line=told.append))
    assert [line.split(":")[0].split(", too")[0] for line in told if "trained on" in line] == [
        "1 of 1 file of config.data.eval_source are trained on"
    ]
    c = config_of(files[0])
    c.data.eval_source = files[1]
    training_documents(c, Hear(line=lambda line: pytest.fail(line)))


def test_one_source_is_a_tuple_of_one():
    assert sources_of(config_of("a")) == sources_of(config_of(("a",))) == ("a",)
    assert sources_of(config_of("")) == ()


def test_names_are_short_where_they_differ():
    assert names_of(("x/a.jsonl", "y/*.parquet")) == ("a.jsonl", "*.parquet")
    assert names_of(("x/a.jsonl", "y/a.jsonl")) == ("x/a.jsonl", "y/a.jsonl")


def test_each_source_has_the_documents_that_it_has_alone(files):
    tokenizer = cli.make_tiny_tokenizer()
    of = lambda source: [
        tokenized(some, tokenizer, 300) for some in training_documents(config_of(source))
    ]
    for both, *alone in zip(of(tuple(files)), *map(of, files), strict=True):
        assert [p.fingerprint for p in both.parts] == [one.fingerprint for one in alone]
        assert both.documents == sum(one.documents for one in alone)
        assert both.fingerprint not in {one.fingerprint for one in alone}
        assert tuple(both.tokenized.labels) == sum((tuple(t.tokenized.labels) for t in alone), ())


@pytest.mark.parametrize("extra", ["", "\n"])
def test_an_empty_source_is_named(files, tmp_path, extra):
    (tmp_path / "empty.jsonl").write_text(extra)
    c = config_of((files[0], str(tmp_path / "empty.jsonl")))
    with pytest.raises(UserError, match=r"empty.jsonl' holds no document"):
        training_documents(c)


def test_tokens_are_counted_by_the_documents_of_each_source(files):
    text = tokenized(training_documents(config_of(tuple(files)))[0], cli.make_tiny_tokenizer(), 300)
    part = packed(config_of(tuple(files)), text, seed=0)
    first = text.parts[0].documents
    batch = tiny.batch()._replace(
        document_BT=np.array([[0, first - 1, first, first, first + 1, -1]]),
        weight_BT=np.array([[1, 1, 1, 0, 1, 0]]),
    )
    assert tokens_by_source(part, batch) == {"a.jsonl": 2, "b.jsonl": 2}
    assert tokens_by_source(part._replace(parts=part.parts[:1]), batch) == {}


def run(world, directory, files, *more):
    return cli.run(
        f"--workdir={directory}", f"--config.teacher.path={world / 'teacher'}",
        f"--config.student.path={world / 'student'}", f"--config.data.source={json.dumps(files)}",
        *cli.SMALL, *more,
    )  # fmt: skip


@pytest.mark.parametrize("weights", ["(1, 0)", "(1, 2, 3)", "(1, -1)", "(nan, 1)"])
def test_wrong_weights_end_with_one_line_before_anything_is_read(world, tmp_path, files, weights):
    done = run(world, tmp_path / "run", files, f"--config.data.weights={weights}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "config.data.weights" in done.stderr


def test_a_run_counts_the_tokens_of_each_source(world, tmp_path, files):
    done = run(world, tmp_path / "run", files, "--config.data.weights=(1, 3)")
    assert done.returncode == 0, done.stderr
    assert "  b.jsonl: " in done.stdout
    assert " rows, 75.0% of those that are read" in done.stdout
    steps = [line for line in cli.metrics(tmp_path / "run") if "train/loss" in line]
    a, b = ([line[f"train/tokens/{name}"] for line in steps] for name in ("a.jsonl", "b.jsonl"))
    assert [x + y for x, y in zip(a, b, strict=True)] == [line["train/tokens"] for line in steps]
    assert 2 < sum(b) / sum(a) < 4
    known = json.loads((tmp_path / "run" / "provenance.json").read_text())
    documents = [known[f"data.train.{name}.documents"] for name in ("a.jsonl", "b.jsonl")]
    assert sum(documents) == known["data.train.documents"]
    again = cli.run(f"--workdir={tmp_path / 'run'}", "--config.steps=8", config=None)
    assert again.returncode == 0, again.stderr
    straight = run(world, tmp_path / "other", files, "--config.data.weights=(1, 3)")
    assert straight.returncode == 0
    both = [[x["train/batch"] for x in cli.metrics(tmp_path / n) if "train/batch" in x]
            for n in ("run", "other")]  # fmt: skip
    assert both[0][:6] == both[1]
    assert len(both[0]) == 8
