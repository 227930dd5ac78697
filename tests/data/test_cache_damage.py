"""What a teacher cache refuses to store or to give back, and what survives damage."""

import resource
import signal
import sys

import numpy as np
import pytest

from distill_jax.data import cache as cache_module
from distill_jax.data import cache_writer
from distill_jax.data.cache import open_cache, piece_key
from distill_jax.data.cache_records import from_record, to_record
from distill_jax.types import OutOfRoom, UserError
from tests.data.test_cache import (
    DRAWS,
    FORM,
    VOCAB,
    WIDTH,
    K,
    contents,
    made,
    manifest,
    signals,
    text,
    write,
)

BASE = {"ids": np.arange(K)[None], "logits": np.ones((1, K)), "rest": np.ones((1, 2))}
DRAWN = {"ids": np.arange(K)[None], "counts": np.full((1, K), 5)}


def test_a_piece_of_two_processes_is_one_and_the_same_under_any_names(tmp_path):
    form, tokens = manifest("sampled", k=DRAWS), np.arange(5)
    cache_writer.claim(tmp_path, form)
    both = [cache_writer.Writer(tmp_path, form, p, shard_tokens=99) for p in (0, 1)]
    for writer in both:  # draws differ from process to process
        drawn = signals("sampled", tokens + 50 * writer.process)
        writer.add(piece_key(tokens), drawn)
        writer.commit()
    assert cache_writer.finish(tmp_path, {piece_key(tokens)}).pieces == 1
    found = [open_cache(tmp_path)._read(piece_key(tokens))["ids"]]
    for old, new in ((0, 2), (1, 0), (2, 1)):
        for path in tmp_path.glob(f"shard-*-0000{old}.*"):
            path.rename(path.with_name(path.name.replace(f"-0000{old}.", f"-0000{new}.")))
    found.append(open_cache(tmp_path)._read(piece_key(tokens))["ids"])
    np.testing.assert_array_equal(*found)


def test_what_a_dead_process_of_a_larger_job_left_is_removed(tmp_path):
    directory = made(tmp_path / "c")
    left = [directory / f"shard-00000-00003{end}" for end in (".array_record.part", ".index.json")]
    left.append(directory / "shard-00000-00000.index.json.part")  # beside a whole shard
    for path in left:
        path.write_bytes(b"half")
    before = contents(directory)
    cache_writer.claim(directory, manifest())
    assert not any(path.exists() for path in left)
    assert contents(directory) == before


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    directory = made(tmp_path / "c", shard_tokens=1)
    before = contents(directory)
    monkeypatch.setattr(cache_module, "READERS", 2)
    cache = open_cache(directory)
    for key in [*cache.places, *cache.places]:
        assert cache._read(key)["hidden"].tobytes() == before[key]
        assert len(cache.readers) <= 2


def read_or_error(cache, key):
    try:
        return cache._read(key)["hidden"].tobytes()
    except UserError as error:
        return str(error)


def test_a_byte_flipped_after_opening_gives_no_other_numbers(tmp_path):
    directory = made(tmp_path / "c", shard_tokens=10**6)
    before, refused = contents(directory), 0
    (path,) = directory.glob("*.array_record")
    whole, r = path.read_bytes(), np.random.default_rng(0)
    end = max(i for i, byte in enumerate(whole[: 2**16]) if byte)  # the rest is fill
    for place in [*r.integers(0, end, 60), len(whole) - 40, len(whole) - 1]:
        cache = open_cache(directory)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        for key, value in before.items():
            found = read_or_error(cache, key)
            assert found == value or "is damaged" in found
            refused += found != value
        path.write_bytes(whole)
    assert refused >= 30


@pytest.mark.parametrize(
    ("kind", "change", "form", "error"),
    [
        ("hidden", {"hidden": np.full((1, WIDTH), np.nan)}, {"dtype": "int8"}, "are not finite"),
        ("hidden", {"hidden": np.full((1, WIDTH), -np.inf)}, {}, "are not finite"),
        ("hidden", {"hidden": np.ones((1, 2 * WIDTH))}, {}, "other shapes"),
        ("top_k", BASE | {"logits": np.full((1, K), np.nan)}, {}, "are not finite"),
        ("top_k", BASE | {"rest": np.full((1, 2), np.inf)}, {}, "are not finite"),
        ("top_k", BASE | {"ids": BASE["ids"] + VOCAB - 1}, {}, "of 500 entries"),
        ("top_k", BASE | {"rest": np.ones((1, 1))}, {}, "other shapes"),
        ("sampled", DRAWN, {"draws": 256}, "more than 255 draws"),
    ],
)
def test_what_would_come_back_as_other_numbers_is_not_stored(kind, change, form, error):
    with pytest.raises((UserError, ValueError), match=error):
        to_record(kind, b"k" * 16, change, FORM | form)


def test_an_entry_of_no_probability_is_a_logit():
    given = BASE | {"logits": np.array([[-np.inf, 1, 2, 3]]), "rest": np.full((1, 2), -np.inf)}
    found = from_record("top_k", b"k" * 16, to_record("top_k", b"k" * 16, given, FORM), FORM)
    for name, value in given.items():
        np.testing.assert_array_equal(found[name], value)


def test_every_byte_of_a_record_is_checked_and_so_is_whose_it_is():
    record = to_record("top_k", b"k" * 16, BASE, FORM)
    for place in range(len(record)):
        damaged = record[:place] + bytes([record[place] ^ 1]) + record[place + 1 :]
        with pytest.raises(ValueError, match="checksum"):
            from_record("top_k", b"k" * 16, damaged, FORM)
    with pytest.raises(ValueError, match="key"):
        from_record("top_k", b"z" * 16, record, FORM)


@pytest.mark.parametrize("vocab", [2**16 - 2, 2**16 - 1, 2**16, 2**16 + 1, 2**18])
@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_the_last_id_of_a_vocabulary_is_not_an_empty_slot(kind, vocab):
    form = FORM | {"vocab": vocab}
    given = (BASE if kind == "top_k" else DRAWN) | {"ids": np.array([[0, vocab - 1, 1, -1]])}
    found = from_record(kind, b"k" * 16, to_record(kind, b"k" * 16, given, form), form)
    assert set(found["ids"].ravel()) == {0, vocab - 1, 1, -1}


def test_a_record_of_another_form_is_refused():
    record = to_record("top_k", b"k" * 16, BASE, FORM)
    with pytest.raises(ValueError, match="length"):
        from_record("top_k", b"k" * 16, record, FORM | {"k": K - 1})


@pytest.mark.parametrize("end", [".array_record", ".index.json"])
def test_one_damaged_file_costs_its_own_pieces_alone(tmp_path, end):
    directory = made(tmp_path / "c")
    before, path = contents(directory), directory / f"shard-00001-00000{end}"
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(UserError, match=r"is damaged .*: remove this file and run the job"):
        open_cache(directory)
    path.unlink()
    kept = {p: p.stat().st_mtime_ns for p in directory.glob("shard-0000[02]-*")}
    cache_writer.finish(directory, write(directory, manifest(), text()))
    assert contents(directory) == before
    assert all(p.stat().st_mtime_ns == written for p, written in kept.items())


def test_shards_without_a_manifest_are_nobodys(tmp_path):
    directory = made(tmp_path / "c")
    (directory / "manifest.json").unlink()
    with pytest.raises(UserError, match="their teacher is unknown: use another directory"):
        cache_writer.claim(directory, manifest(hashes={"teacher": "another"}))


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_is_one_line_and_the_rest_is_written_later(tmp_path):
    directory = tmp_path / "c"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(OutOfRoom, match="make room and run the job") as error:
            write(directory, manifest(), text())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(error.value)
    assert not list(directory.glob("shard-*"))
    cache_writer.finish(directory, write(directory, manifest(), text()))
    assert contents(directory) == contents(made(tmp_path / "whole"))
