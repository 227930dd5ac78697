"""What config.data.clean removes from the sources of a config, where, and what is said of it."""

import json
import random
from pathlib import Path

import pytest

from distill_jax.data.cleaning import Removed
from distill_jax.setup import cleaning, scanning
from distill_jax.setup.cleaning import cleaning_of, removed_line
from distill_jax.setup.reading import evaluation_documents, training_documents
from distill_jax.setup.storing import tokenized
from distill_jax.types import UserError
from tests import cli
from tests.setup.test_reading import config_of

FILTERS = """
import numpy as np

def short(text):
    return len(text) < 60

def numpy_short(text):
    return np.mean([len(text)]) < 60

def none(text):
    pass

def score(text):
    return 0.7

def fails(text):
    return text[10**6]

def leaves(text):
    raise SystemExit("I go")
"""


def _texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(300)]
    return [" ".join(rng.choices(vocabulary, k=40)) for _ in range(count)]


def _write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def _lines(path):
    return [json.loads(line)["text"] for line in Path(path).read_text().splitlines()]


def _changed(text: str) -> str:
    """A near copy: one word of forty is another."""
    return text.rsplit(" ", 1)[0] + " other"


@pytest.fixture
def c(tmp_path):
    texts = _texts(60)
    copies = [*texts, *texts[:5], *map(_changed, texts[10:20])]
    random.Random(1).shuffle(copies)
    source = _write(tmp_path / "text.jsonl", copies)
    (tmp_path / "mine.py").write_text(FILTERS)
    return config_of(source, store=str(tmp_path / "store"))


def _read(c):
    """Texts to train on, held-out texts, and what was removed."""
    (train,), (held,) = training_documents(c)
    assert held.removed == {}
    found = [[document.text for document in part.documents()] for part in (train, held)]
    assert list(map(len, found)) == [train.count, held.count]
    return *found, train.removed


def test_near_copies_are_gone_before_the_split(c):
    """So none of a held-out document is trained on."""
    with_copies, held, _ = _read(c)
    assert {text[:99] for text in with_copies} & {text[:99] for text in held}
    c.data.clean.near_duplicates = 0.8
    train, held, removed = _read(c)
    assert not {text[:99] for text in train} & {text[:99] for text in held}
    assert len(train) + len(held) == 60
    assert removed["near_duplicates"].documents == 15


def test_of_a_cluster_the_first_document_stays(c):
    c.data.clean.exact_duplicates, c.data.clean.near_duplicates = True, 0.8
    lines = _lines(c.data.source)
    first = [t for i, t in enumerate(lines) if all(t[:99] != u[:99] for u in lines[:i])]
    train, held, removed = _read(c)
    assert sorted(train + held) == sorted(first)
    assert [text for text in first if text in train] == train
    assert [removed[name].documents for name in removed] == [5, 10]


def test_several_sources_are_cleaned_as_one_also_where_one_is_known(c, tmp_path):
    more = _write(tmp_path / "more.jsonl", [*_texts(9, seed=7), *_texts(6)])
    c.data.clean.exact_duplicates = True
    alone = _read(c)
    both = (c.data.source, more)
    with c.unlocked():
        c.data.source = both
    train, held = training_documents(c)
    assert train[0].removed["exact_duplicates"] == alone[2]["exact_duplicates"]
    assert train[1].removed["exact_duplicates"].documents == 6
    assert train[1].count + held[1].count == 9
    text = tokenized(train, cli.make_tiny_tokenizer(), 300)
    assert text.removed["exact_duplicates"].documents == 11
    # The first is read once more to know its documents, and gives the same.
    _write(tmp_path / "more.jsonl", [*_texts(9, seed=7), *_texts(7)])
    again, _ = training_documents(c)
    assert [part.removed["exact_duplicates"].documents for part in again] == [5, 7]
    # What the first has lost, the second keeps.
    _write(tmp_path / "text.jsonl", _texts(60)[30:])
    again, _ = training_documents(c)
    assert [part.removed["exact_duplicates"].documents for part in again] == [0, 0]


def test_training_text_with_words_of_held_out_text_is_removed_alone(c, tmp_path):
    held = _texts(3, seed=5)
    words = held[1].split(" ")
    planted = " ".join([*_texts(1, seed=6)[0].split(" ")[:20], *words[7:20]])
    lines = _lines(c.data.source)
    _write(tmp_path / "text.jsonl", [*lines[:30], planted, *lines[30:]])
    c.data.eval_source = _write(tmp_path / "held.jsonl", [*held, held[0]])
    before, kept, _ = _read(c)
    c.data.clean.decontaminate = True
    train, same, removed = _read(c)
    assert planted in before
    assert [text for text in before if text != planted] == train
    assert kept == same == [*held, held[0]]
    assert removed == {"decontaminate": Removed(1, len(planted), (f"{c.data.source}:31",))}
    # A limit counts what stays.
    c.data.max_documents = 31
    assert _read(c)[0] == [*lines[:30], lines[30]]
    # Other held-out text, other training text.
    _write(tmp_path / "held.jsonl", held[:1])
    c.data.max_documents = 0
    assert _read(c)[0] == before


def test_what_is_held_out_of_the_same_source_counts_too(c):
    """A near copy in training shares its words."""
    _, before, _ = _read(c)
    c.data.clean.decontaminate = True
    train, held, removed = _read(c)
    assert held == before
    assert removed["decontaminate"].documents
    assert not {text[:99] for text in train} & {text[:99] for text in held}


def test_text_to_evaluate_on_is_never_cleaned(c):
    text = c.data.source
    c.data.eval_source, c.data.clean.min_characters = text, 10**6
    c.data.clean.exact_duplicates = True
    (chosen,) = evaluation_documents(c, own=False)
    assert chosen.count == 75
    with pytest.raises(UserError, match=r"all 75 documents of .* too short or too long: change"):
        training_documents(c)


@pytest.mark.parametrize("name", ["short", "numpy_short"])
def test_a_filter_of_ones_own(c, tmp_path, name):
    _write(tmp_path / "text.jsonl", [f"{i} {'long ' * (i % 2 * 20)}" for i in range(80)])
    c.data.clean.filter = f"{tmp_path / 'mine.py'}:{name}"
    train, held, removed = _read(c)
    assert len(train) + len(held) == removed["filter"].documents == 40


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none", r"gave None for .*text.jsonl:1: it must give True"),
        ("score", r"gave 0.7 for .*text.jsonl:1"),
        ("fails", r"failed on .*text.jsonl:1 \(IndexError"),
        ("leaves", r"failed on .*text.jsonl:1 \(SystemExit: I go"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_a_filter_that_fails_is_one_line(c, tmp_path, name, said):
    c.data.clean.filter = f"{tmp_path / 'mine.py'}:{name}"
    with pytest.raises(UserError, match=said) as error:
        training_documents(c)
    assert "\n" not in str(error.value)


def test_the_second_time_nothing_is_judged_until_something_changes(c, tmp_path, monkeypatch):
    c.data.clean.near_duplicates, c.data.clean.decontaminate = 0.8, True
    c.data.clean.filter = f"{tmp_path / 'mine.py'}:short"
    (tmp_path / "mine.py").write_text("short = lambda text: True")
    first = _read(c)
    scan = scanning.scan
    monkeypatch.setattr("distill_jax.setup.reading.scan", None)
    monkeypatch.setattr("distill_jax.setup.reading.scan_again", None)
    assert _read(c) == first
    (tmp_path / "mine.py").write_text("short = lambda text: ' w7 ' not in text")
    with pytest.raises(TypeError):
        _read(c)
    monkeypatch.setattr("distill_jax.setup.reading.scan", scan)
    monkeypatch.setattr("distill_jax.setup.reading.scan_again", scanning.scan_again)
    assert _read(c)[2]["filter"].documents > 0


@pytest.mark.parametrize(
    ("clean", "said"),
    [
        ({"min_characters": 9, "max_characters": 8}, "no document is as long as both"),
        ({"min_characters": 10**5}, "all 75 documents of .*: change config.data.clean.min_char"),
        ({"filter": "nowhere.py:f"}, "names no file"),
    ],
)
def test_what_keeps_nothing_is_one_line(c, clean, said):
    c.data.clean.update(clean)
    with pytest.raises(UserError, match=said):
        training_documents(c)


def test_what_was_removed_is_one_line():
    removed = {
        "length": Removed(),
        "exact_duplicates": Removed(1, 12, ("a:1",)),
        "near_duplicates": Removed(1234, 56789, ("a:2", "b:3", "c:4")),
    }
    assert removed_line({}) == ""
    assert removed_line(removed) == (
        "removed: 0 too short or too long; 1 copies (12 characters: a:1);"
        " 1,234 near copies (56,789 characters: a:2, b:3, c:4, ...)"
    )


def test_without_a_key_nothing_is_asked_for(c):
    assert cleaning_of(c) == cleaning.Cleaning()
    assert _read(c)[2] == {}


def test_a_run_says_what_was_removed_and_goes_on_with_the_same_alone(flags, world, tmp_path):
    lines = (world / "text.jsonl").read_text().splitlines()
    source = tmp_path / "text.jsonl"
    source.write_text("\n".join([*lines, *lines[:4], '{"text": "x"}']) + "\n")
    asked = (
        *(flag for flag in flags if "data.source" not in flag and "steps" not in flag),
        "--config.steps=2", f"--config.data.source={source}", f"--workdir={tmp_path / 'run'}",
        "--config.data.clean.exact_duplicates=true",
    )  # fmt: skip
    done = cli.run(*asked, "--config.data.clean.min_characters=5")
    assert done.returncode == 0, done.stderr
    told = f"1 too short or too long (1 characters: {source}:65); 4 copies"
    assert f"  removed: {told}" in done.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [(one["documents"], one["characters"]) for one in report["removed"]] == [
        (1, 1), (4, sum(len(json.loads(line)["text"]) for line in lines[:4]))
    ]  # fmt: skip
    kept = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert kept["data.train.removed.exact_duplicates.documents"] == 4
    assert kept["data.train.documents"] + kept["data.eval.documents"] == 60
    assert "Removed from the text to train on" in (tmp_path / "run" / "report.html").read_text()
    other = cli.run(*asked, "--config.data.clean.min_characters=6")
    assert other.returncode == 2
    assert "data.clean.min_characters (5 there, 6 here)" in other.stderr
    held = cli.run(f"--workdir={tmp_path / 'run'}", "--config.job=evaluate", config=None)
    assert held.returncode == 0, held.stderr
    assert f"text: {kept['data.eval.documents']} documents" in held.stdout
