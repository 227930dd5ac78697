"""Whoever kills an export leaves the former model, the new one, or none; the next one mends it."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_jax.models import gguf, huggingface
from distill_jax.models.weights import Checkpoint, fingerprint
from distill_jax.types import UserError
from tests import tiny


class Killed(BaseException):
    """Nothing that comes after it is done."""


@pytest.fixture
def kill_at(monkeypatch):
    """kill_at(n): the n-th change of a name in a directory, and all after it, are not made."""
    made = {"replace": os.replace, "unlink": Path.unlink}

    def kill(n):
        count = 0

        def unless_killed(change):
            def changed(*arguments, **how):
                nonlocal count
                count += 1
                if count > n:
                    raise Killed
                return change(*arguments, **how)

            return changed

        monkeypatch.setattr(os, "replace", unless_killed(made["replace"]))
        monkeypatch.setattr(Path, "unlink", unless_killed(made["unlink"]))

    return kill


def student(seed):
    model = tiny.model()
    return Checkpoint(model.config, jax.tree.map(np.asarray, tiny.params(model, seed)), None)


def export(directory, checkpoint, shard):
    of = (directory, checkpoint.config, checkpoint.params)
    huggingface.write(*of, generation={}, dtype=None, max_shard_bytes=shard)


def read(directory):
    try:
        return fingerprint(huggingface.read(directory, dtype=None).params)
    except UserError:
        return None


WAYS = {"shards": (8_000, 8_000), "fewer": (4_000, 8_000), "one": (8_000, 10**9),
        "more": (10**9, 8_000)}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_leaves_no_half_of_a_model(way, tmp_path, kill_at, monkeypatch):
    before, after = student(0), student(1)
    known = {None, fingerprint(before.params), fingerprint(after.params)}
    found, n = [], 0
    while True:
        directory = tmp_path / str(n)
        export(directory, before, WAYS[way][0])
        kill_at(n)
        try:
            export(directory, after, WAYS[way][1])
        except Killed:
            pass
        else:
            break
        finally:
            monkeypatch.undo()
        found.append(read(directory))
        assert found[-1] in known, n
        export(directory, after, WAYS[way][1])
        files = {f.name: f.read_bytes() for f in directory.iterdir()}
        export(tmp_path / "fresh", after, WAYS[way][1])
        assert files == {f.name: f.read_bytes() for f in (tmp_path / "fresh").iterdir()}
        n += 1
    assert read(directory) == fingerprint(after.params)
    assert {fingerprint(before.params), None} <= set(found)


def test_a_kill_leaves_the_former_gguf_file(tmp_path, kill_at, monkeypatch):
    path, before, after = tmp_path / "m.gguf", student(0), student(1)
    write = lambda of: gguf.write(path, of.config, of.params, metadata={}, kind="float32")
    write(before)
    whole = path.read_bytes()
    kill_at(1)  # what prepares the file may be done, and its name not be taken
    with pytest.raises(Killed):
        write(after)
    monkeypatch.undo()
    assert path.read_bytes() == whole
    write(after)
    assert path.read_bytes() != whole
    assert [f.name for f in tmp_path.iterdir()] == ["m.gguf"]
