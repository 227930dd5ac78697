"""A text is tokenised once: the next run opens it, and says why where it does not."""

import itertools
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from distill_jax.data import store_writer
from distill_jax.data.store import INDEX
from distill_jax.data.store_place import store_root
from distill_jax.setup import scanning, storing
from distill_jax.setup.hearing import Hear
from distill_jax.setup.reading import evaluation_documents
from distill_jax.types import UserError
from tests import cli
from tests.setup.test_reading import PROMPTED, config_of, tokenized, training_documents
from tests.tokens import tokenize_documents

TOKENIZER = cli.make_tiny_tokenizer()


@pytest.fixture
def c(tmp_path):
    source = cli.write_text(tmp_path / "text.jsonl", documents=200)
    return config_of(source, store=str(tmp_path / "store"))


def texts_of(c, said=None):
    hear = Hear(line=(said if said is not None else []).append)
    return [tokenized(chosen, TOKENIZER, 300, hear) for chosen in training_documents(c)]


def directories(c):
    return sorted(index.parent for index in store_root(c.data.store).glob(f"*/{INDEX}"))


def refuse(*_):
    raise AssertionError("the text is read again")


@pytest.mark.parametrize(
    "limits", [{}, {"max_documents": 9}, {"max_tokens": 50, "eval_max_tokens": 9}]
)
def test_the_second_time_nothing_is_read(c, limits, monkeypatch):
    c.data.update(limits)
    first = texts_of(c)
    monkeypatch.setattr(scanning, "read_documents", refuse)
    monkeypatch.setattr(storing, "encode_documents", refuse)
    second = texts_of(c)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.tokenized.tokens, b.tokenized.tokens)
        assert a[1:4] == b[1:4]
    tokenized(*evaluation_documents(c, own=True), TOKENIZER, 300)


def test_what_is_stored_is_what_was_chosen(c):
    for chosen, text in zip(training_documents(c), texts_of(c), strict=True):
        whole = tokenize_documents(chosen.documents(), TOKENIZER)
        assert np.array_equal(text.tokenized.tokens, whole.tokens)
        assert text.documents == chosen.count == len(whole.labels)


@pytest.mark.parametrize(
    "change",
    [
        {"held_out_fraction": 0.3},
        {"max_documents": 9},
        {"eval_max_tokens": 9},
        {"template": "chat", "source": "pairs"},
    ],
)
def test_what_changes_the_text_is_another_store(c, change, tmp_path):
    if "source" in change:
        pairs = tmp_path / "pairs.jsonl"
        pairs.write_text("".join(
            json.dumps({"prompt": f"the {i}", "completion": "dog"}) + "\n" for i in range(99)
        ))  # fmt: skip
        c.data.source = change["source"] = str(pairs)
    before = [text.fingerprint for text in texts_of(c)]
    c.data.update(change)
    tokenizer = TOKENIZER._replace(chat_template=PROMPTED)
    if "template" not in change:
        assert [text.fingerprint for text in texts_of(c)] != before
    else:
        assert tokenized(training_documents(c)[0], tokenizer, 300).fingerprint != before[0]


def test_a_changed_file_is_tokenised_again_and_a_touched_one_is_not(c, monkeypatch):
    [first, _], path = texts_of(c), Path(c.data.source)
    os.utime(path, ns=(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(storing, "encode_documents", refuse)
        assert texts_of(c)[0].fingerprint == first.fingerprint
    path.write_text(json.dumps({"text": "another"}) + "\n" + path.read_text())
    assert texts_of(c)[0].fingerprint != first.fingerprint


def test_a_damaged_store_is_written_again_with_a_line(c):
    first, said = [np.array(text.tokenized.tokens) for text in texts_of(c)], []
    for directory in directories(c):
        (directory / "tokens").write_bytes(b"")
    again = texts_of(c, said)
    assert len(said) == 2
    assert "is written again: tokens is lost or cut" in said[0]
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a, b.tokenized.tokens)


def test_a_writer_that_was_stopped_goes_on_with_a_line(c, monkeypatch):
    monkeypatch.setattr(store_writer, "PART_TOKENS", 100)
    first, said = texts_of(c), []
    for directory in directories(c):
        for file in directory.iterdir():
            file.unlink()
    encode = storing.encode_documents
    with monkeypatch.context() as patch:
        patch.setattr(storing, "encode_documents", lambda *a, **k: stop_after(60, encode(*a, **k)))
        with pytest.raises(KeyboardInterrupt):
            texts_of(c)
    again = texts_of(c, said)
    assert len(said) == 1
    assert said[0].startswith("tokenising goes on after ")
    assert [a.fingerprint for a in again] == [a.fingerprint for a in first]
    assert np.array_equal(again[0].tokenized.tokens, first[0].tokenized.tokens)


def stop_after(count, items):
    yield from itertools.islice(items, count)
    raise KeyboardInterrupt


def test_one_process_writes_and_the_others_wait(c, monkeypatch):
    """Two at once, as threads: the lock is one of files."""
    encode, begun, told = storing.encode_documents, threading.Event(), threading.Event()
    writers, found = [], []

    def slow(*args, **more):
        writers.append(args)
        begun.set()
        told.wait(20)
        return encode(*args, **more)

    monkeypatch.setattr(storing, "encode_documents", slow)
    train, _ = training_documents(c)
    how_far = lambda note, *_: told.set() if "for another process that writes" in note else None
    run = lambda: found.append(tokenized(train, TOKENIZER, 300, Hear(how_far=how_far)))
    threads = [threading.Thread(target=run) for _ in range(2)]
    threads[0].start()
    begun.wait(20)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(writers) == 1
    assert found[0].fingerprint == found[1].fingerprint


def test_a_file_that_changes_meanwhile_is_an_error(c, monkeypatch):
    train, _ = training_documents(c)
    encode = storing.encode_documents

    def changing(*args, **more):
        os.utime(c.data.source, ns=(1, 1))
        with open(c.data.source, "a") as file:
            file.write(json.dumps({"text": "more"}) + "\n")
        return encode(*args, **more)

    monkeypatch.setattr(storing, "encode_documents", changing)
    with pytest.raises(UserError, match="have changed while they were read"):
        tokenized(train, TOKENIZER, 300)
    assert not directories(c)


def test_a_directory_that_cannot_be_made_is_an_error(c, tmp_path):
    (tmp_path / "file").write_text("")
    c.data.store = str(tmp_path / "file" / "store")
    with pytest.raises(UserError, match=r"Not a directory\): give another .* --config.data.store"):
        training_documents(c)


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        ("x", "/y", "x"),
        ("", "/y", "/y/distill_jax/tokens"),
        ("", "", "/h/.cache/distill_jax/tokens"),
    ],
)
def test_where_stores_are(given, variable, expected, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", variable)
    monkeypatch.setenv("HOME", "/h")
    assert str(store_root(given)) == expected


def test_how_far_it_is_has_bytes_tokens_and_time(c, monkeypatch):
    monkeypatch.setattr(storing, "TELL_S", -1)
    told = []
    hear = Hear(how_far=lambda note, left_s, pace_s, more: told.append((note, left_s, more)))
    tokenized(training_documents(c)[0], TOKENIZER, 300, hear)
    note, left_s, more = told[-1]
    assert note.startswith("0/0 MB")
    assert (note.endswith("tokens/s"), more.endswith("MB/s")) == (True, True)
    assert left_s == 0


def test_a_flipped_byte_ends_a_run_and_the_next_one_mends_it(world, flags, tmp_path):
    """At the latest where the first row with it is read, here in a thread that reads ahead."""
    mine = (*flags, f"--config.data.store={tmp_path / 'store'}", "--config.steps=30")
    first = cli.run(f"--workdir={tmp_path / 'a'}", *mine)
    assert first.returncode == 0, first.stderr
    for index in (tmp_path / "store").glob(f"*/{INDEX}"):
        tokens = index.with_name("tokens")
        data = bytearray(tokens.read_bytes())
        data[len(data) // 2] ^= 1
        tokens.write_bytes(data)
    harmed = cli.run(f"--workdir={tmp_path / 'b'}", *mine)
    assert harmed.returncode == 70
    assert [line for line in harmed.stderr.split("\n") if "error" in line] == [
        line for line in harmed.stderr.split("\n") if "has changed on disk since it was" in line
    ]
    for _ in range(2):  # one store after the other
        again = cli.run(f"--workdir={tmp_path / 'b'}", *mine)
    assert again.returncode == 0, again.stderr
    batches = [
        [line["train/batch"] for line in cli.metrics(tmp_path / name) if "train/batch" in line]
        for name in ("a", "b")
    ]
    assert batches[0] == batches[1]
