"""What identifies a model: the hashes of its files, remembered while the files stay the same."""

import hashlib
import os

import numpy as np
import pytest

from distill_jax.models.load import load_checkpoint
from distill_jax.models.weights import fingerprint
from distill_jax.setup import identity as identities
from distill_jax.setup.identity import as_known, digests, file_hash, identity


@pytest.fixture
def hashed(monkeypatch, tmp_path):
    """The files that are read to be hashed; nothing is remembered from elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found, sha256_of = [], identities.sha256_of
    monkeypatch.setattr(identities, "sha256_of", lambda path: found.append(path) or sha256_of(path))
    return found


def files_of(tmp_path, *contents):
    paths = [tmp_path / f"{i}.safetensors" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def named(paths, dtype="float32"):
    return identity(digests(paths), dtype)


def test_of_one_file_it_is_what_sha256sum_prints(tmp_path, hashed):
    paths = files_of(tmp_path, b"weights")
    assert named(paths) == f"files:{hashlib.sha256(b'weights').hexdigest()}:float32"


def test_it_is_of_the_contents_and_the_dtype_and_nothing_else(tmp_path, hashed):
    first = named(files_of(tmp_path, b"one", b"two"))
    assert named(files_of(tmp_path, b"two", b"one")) == first
    others = [(b"one", b"twp"), (b"one",), (b"onetwo",), (b"one", b"two", b"")]
    found = {named(files_of(tmp_path, *contents)) for contents in others}
    assert len(found | {first, named(files_of(tmp_path, b"one", b"two"), "bfloat16")}) == 6


def test_a_file_is_hashed_once_until_it_changes(tmp_path, hashed):
    paths = files_of(tmp_path, b"one", b"two")
    assert named(paths) == named(paths)
    assert sorted(hashed) == paths
    paths[1].write_bytes(b"twelve")
    named(paths)
    assert hashed[2:] == [paths[1]]


def test_a_file_whose_time_was_set_back_is_hashed_again(tmp_path, hashed):
    (path,) = files_of(tmp_path, b"one")
    before, times = file_hash(path), path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (times.st_mtime_ns, times.st_size)
    assert file_hash(path) == hashlib.sha256(b"two").hexdigest() != before


def test_a_file_put_in_the_place_of_another_is_hashed_again(tmp_path, hashed):
    one, two = files_of(tmp_path, b"one", b"two")
    times = one.stat()
    file_hash(one)
    os.utime(two, ns=(times.st_atime_ns, times.st_mtime_ns))
    two.replace(one)
    assert file_hash(one) == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(tmp_path, hashed, monkeypatch):
    (path,) = files_of(tmp_path, b"one")
    sha256_of = identities.sha256_of

    def slow(path):
        digest = sha256_of(path)
        path.write_bytes(b"changed meanwhile")
        return digest

    with monkeypatch.context() as patched:
        patched.setattr(identities, "sha256_of", slow)
        file_hash(path)
    assert file_hash(path) == hashlib.sha256(b"changed meanwhile").hexdigest()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"state": 1, "sha256": "x"}'])
def test_a_damaged_note_is_made_again(tmp_path, hashed, damage):
    (path,) = files_of(tmp_path, b"one")
    wanted = file_hash(path)
    (note,) = (tmp_path / "cache").rglob("*.json")
    note.write_bytes(damage)
    assert file_hash(path) == wanted
    assert len(hashed) == 2
    assert file_hash(path) == wanted
    assert len(hashed) == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, hashed):
    (tmp_path / "cache").write_text("no directory")
    (path,) = files_of(tmp_path, b"one")
    assert file_hash(path) == file_hash(path) == hashlib.sha256(b"one").hexdigest()
    assert len(hashed) == 2


def test_processes_share_the_work(tmp_path, hashed, monkeypatch):
    paths = files_of(tmp_path, b"a", b"b", b"c", b"d", b"e")
    whole = digests(paths)
    monkeypatch.setattr(identities.jax, "process_count", lambda: 2)
    shares = []
    for number in range(2):
        monkeypatch.setattr(identities.jax, "process_index", lambda number=number: number)
        shares.append(digests(paths))
    assert all(share.any(axis=1).sum() in (2, 3) for share in shares)
    gathered = lambda share: np.stack(shares)
    monkeypatch.setattr(identities.multihost_utils, "process_allgather", gathered)
    both = identity(shares[0], "float32")
    monkeypatch.undo()
    assert both == identity(whole, "float32")


def test_what_former_versions_wrote_is_compared_as_they_did(world):
    read = load_checkpoint(str(world / "teacher"), dtype="float32")
    former = lambda: fingerprint(read.params)
    ours = named(read.files)
    known = fingerprint(read.whole().params)
    assert as_known(known, ours, former) == known
    assert as_known("0" * 64, ours, former) == known  # another's, which it is not
    for other in (None, ours, "random:0", 7):
        assert as_known(other, ours, former) == ours
    assert as_known(known, ours, None) == ours
