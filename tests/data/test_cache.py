"""A teacher cache gives back what was written, for the tokens it was written for, or says why not.

The teacher here is arithmetic on the tokens, so that every stored number says where it belongs.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from distill_jax.data import cache_writer
from distill_jax.data.cache import CachedRows, check_match, open_cache, piece_key, pieces_of
from distill_jax.data.cache_files import Manifest
from distill_jax.data.cache_records import KINDS, quantized, to_record
from distill_jax.data.encode import Tokenized
from distill_jax.data.pack import pack
from distill_jax.data.pipeline import eval_batches
from distill_jax.types import UserError
from tests.cli import ROOT

SEQ, WIDTH, K, DRAWS, VOCAB = 16, 6, 4, 20, 500
HASHES = {"teacher": "t" * 8, "tokenizer": "k" * 8, "chat template": None}
FORM = {
    "width": WIDTH, "vocab": VOCAB, "k": K, "draws": DRAWS, "temperatures": [1.0, 2.0],
    "softcap": None, "scale": 1.0, "dtype": "float32",
}  # fmt: skip


def manifest(kind="hidden", dtype="float32", **more):
    hashes = HASHES | more.pop("hashes", {})
    return Manifest(kind, FORM | {"dtype": dtype} | more, SEQ, hashes)


def text(seed=0, documents=12):
    r = np.random.default_rng(seed)
    lengths = r.integers(2, 40, documents)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = r.integers(0, VOCAB, offsets[-1]).astype(np.uint32)
    return Tokenized(tokens, np.ones(offsets[-1], np.uint8), offsets, ("x",) * documents)


def signals(kind, tokens):
    """What a teacher would say of a piece: a function of the token and its place."""
    n = len(tokens)
    base = tokens[:, None] + np.arange(n)[:, None] / 64
    if kind == "hidden":
        return {"hidden": (base * np.linspace(-1, 1, WIDTH)).astype(np.float32)}
    slots = DRAWS if kind != "top_k" else K
    ids = (tokens[:, None] + np.arange(slots)) % VOCAB
    ids = np.where(np.arange(slots) < 3, ids, -1)
    if kind == "sampled":
        counts = np.where(ids >= 0, [5, 10, 5, *[0] * (slots - 3)], 0)
        return {"ids": ids.astype(np.int32), "counts": counts}
    logits = np.where(ids >= 0, base / 32, 0).astype(np.float32)
    return {"ids": ids.astype(np.int32), "logits": logits, "rest": np.stack([base[:, 0]] * 2, -1)}


def write(directory, made, tokenized, *, process=0, processes=1, seed=None, shard_tokens=64):
    directory.mkdir(exist_ok=True)
    if process == 0:
        cache_writer.claim(directory, made)
    writer = cache_writer.Writer(directory, made, process, shard_tokens)
    rows = pack(tokenized, seq_len=SEQ, seed=seed)
    for i in range(process, len(rows), processes):
        row = rows[i]
        for place, key in pieces_of(row):
            if writer.missing([key]):
                writer.add(key, signals(made.kind, row.tokens_BT[place]))
    writer.commit()
    return {key for i in range(len(rows)) for _, key in pieces_of(rows[i])}


def made(directory, kind="hidden", dtype="float32", **more):
    form = manifest(kind, dtype, **({"k": DRAWS} if kind.startswith("sampled") else {}))
    cache_writer.finish(directory, write(directory, form, text(), **more))
    return directory


@pytest.mark.parametrize(
    ("kind", "dtype"), [(kind, dtype) for kind in KINDS for dtype in KINDS[kind].dtypes]
)
def test_what_was_written_comes_back_at_the_same_tokens_of_any_packing(tmp_path, kind, dtype):
    cache = open_cache(made(tmp_path / "c", kind, dtype))
    rows = CachedRows(pack(text(), seq_len=SEQ, seed=7), cache)
    bound = {"float32": 0.0, "bfloat16": 2**-8, "int8": 0.5 / 127, "float16": 2**-11}[dtype]
    for i in range(len(rows)):
        row = rows[i]
        for place, _ in pieces_of(row):
            want = signals(kind, row.tokens_BT[place])
            found = {name: value[place] for name, value in row.targets.items()}
            if kind == "hidden":
                units = found["hidden"].astype(np.float32)
                units = units * found["scale"][:, None] if "scale" in found else units
                largest = np.abs(want["hidden"]).max(-1, keepdims=True)
                assert np.all(np.abs(units - want["hidden"]) <= bound * largest + 1e-9)
            elif kind == "sampled":
                np.testing.assert_array_equal(found["ids"][:, :3], want["ids"][:, :3])
                np.testing.assert_allclose(found["probability"], want["counts"] / DRAWS)
            else:
                np.testing.assert_array_equal(found["ids"], want["ids"])
                np.testing.assert_allclose(found["logits"], want["logits"], rtol=bound)
        padding = row.segment_BT == 0
        assert all(np.all(v[padding] == KINDS[kind].padding[n]) for n, v in row.targets.items())


def test_the_pipeline_batches_targets_and_fills_up_with_nothing(tmp_path):
    rows = CachedRows(pack(text(), seq_len=SEQ, seed=None), open_cache(made(tmp_path / "c")))
    batches = list(eval_batches(rows, batch_size=5, prefetch=2))
    assert all(batch.targets["hidden"].shape == (5, SEQ, WIDTH) for batch in batches)
    assert np.all(batches[-1].targets["hidden"][batches[-1].segment_BT == 0] == 0)


def test_int8_keeps_the_largest_entry_and_a_token_of_zeros():
    stored = quantized(np.array([[1.0, -2.0], [0.0, 0.0]]))
    np.testing.assert_allclose(stored["hidden"] * stored["scale"][:, None], [[1, -2], [0, 0]], 1e-2)
    assert np.abs(stored["hidden"]).max() == 127


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_a_token_are_those_of_the_files(tmp_path, kind):
    form = manifest(kind, "float32", **({"k": DRAWS} if kind.startswith("sampled") else {}))
    keys = write(tmp_path / "c", form, text(documents=2000), shard_tokens=10**6)
    written = cache_writer.finish(tmp_path / "c", keys)
    said = KINDS[kind].bytes_per_token(form.form, 3.0) * written.tokens
    stored = (tmp_path / "c" / "shard-00000-00000.array_record").stat().st_size
    # Key, length and checksum of a record are 24 bytes; ArrayRecord adds 60 to 90, and fills up
    # a file to blocks of 64 KiB.
    assert said + 24 * len(keys) <= stored <= said + 120 * len(keys) + 2**17


def contents(directory):
    cache = open_cache(directory)
    return {key: cache._read(key)["hidden"].tobytes() for key in cache.places}


def test_processes_and_order_change_nothing(tmp_path):
    alone = contents(made(tmp_path / "a"))
    both = tmp_path / "b"
    keys = write(both, manifest(), text(), process=0, processes=2, seed=3)
    keys |= write(both, manifest(), text(), process=1, processes=2, seed=3)
    assert cache_writer.finish(both, keys).pieces == len(alone)
    assert contents(both) == alone


def test_renamed_shards_are_the_same_cache(tmp_path):
    directory = made(tmp_path / "c")
    before, names = contents(directory), sorted(p.name[:17] for p in directory.glob("*.index.json"))
    assert len(names) > 2
    for i, name in enumerate(names):
        for path in directory.glob(f"{name}*"):
            new = f"shard-{900 - i:05d}-00000"
            path.rename(directory / path.name.replace(name, new))
    assert contents(directory) == before


KILLED = """
import sys, time
from pathlib import Path
from tests.data import test_cache as t
original = t.signals
t.signals = lambda kind, tokens: (time.sleep(0.004), original(kind, tokens))[1]
t.write(Path(sys.argv[1]), t.manifest(), t.text(documents=60), shard_tokens=48)
"""


@pytest.mark.parametrize("wait_s", [0.05, 0.2, 0.4])
def test_a_killed_writer_loses_and_doubles_nothing(tmp_path, wait_s):
    directory = tmp_path / "c"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(directory)], cwd=ROOT, env=os.environ
    )
    while not (directory / "manifest.json").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(wait_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = sorted(p.name for p in directory.glob("shard-*.array_record"))
    keys = write(directory, manifest(), text(documents=60))
    assert cache_writer.finish(directory, keys).pieces == len(keys)
    assert not list(directory.glob("*.part"))
    assert before == [n for n in before if (directory / n).exists()]
    whole = tmp_path / "whole"
    cache_writer.finish(whole, write(whole, manifest(), text(documents=60)))
    assert contents(directory) == contents(whole)


def test_an_unfinished_cache_is_refused(tmp_path):
    directory = tmp_path / "c"
    keys = write(directory, manifest(), text())
    with pytest.raises(UserError, match="not complete: run the job cache again"):
        open_cache(directory)
    with pytest.raises(UserError, match="lacks 1 of"):
        cache_writer.finish(directory, keys | {b"x" * 16})


@pytest.mark.parametrize("pattern", ["shard-00001*.array_record", "shard-00001*.json", "manifest*"])
def test_any_flipped_byte_is_refused(tmp_path, pattern):
    directory = made(tmp_path / "c")
    (path,) = directory.glob(pattern)
    whole = path.read_bytes()
    r = np.random.default_rng(0)
    for place in {0, len(whole) - 1, *r.integers(0, len(whole), 40).tolist()}:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(r.integers(0, 7))
        path.write_bytes(bytes(damaged))
        with pytest.raises(UserError, match="is damaged"):
            contents(directory)
    path.write_bytes(whole)
    assert contents(directory)


def test_absent_and_doubled_shards_are_seen(tmp_path):
    directory = made(tmp_path / "c")
    aside = tmp_path / "aside"
    (path,) = directory.glob("shard-00001*.array_record")
    shutil.move(path, aside)
    with pytest.raises(UserError, match="pieces of"):
        open_cache(directory)
    shutil.move(aside, path)
    with pytest.raises(UserError, match="no teacher cache"):
        open_cache(tmp_path)


def test_other_text_window_teacher_or_tokenizer_is_refused_in_one_line(tmp_path):
    directory = made(tmp_path / "c")
    cache = open_cache(directory)
    other = pack(text(seed=9), seq_len=SEQ, seed=None)
    assert cache.missing([other[0]])[0] > 0
    with pytest.raises(UserError, match="has no signals for a piece"):
        cache.attach(other[0])
    check = lambda hashes, seq_len=SEQ: check_match(cache.manifest, directory, hashes, seq_len)
    check(HASHES)
    check({"tokenizer": HASHES["tokenizer"]})
    for name in HASHES:
        with pytest.raises(UserError, match=f"another {name}"):
            check(HASHES | {name: "z"})
    with pytest.raises(UserError, match=r"windows of 16 tokens and config\.data\.seq_len is 8"):
        check(HASHES, 8)


def test_a_directory_of_another_cache_is_not_written_to(tmp_path):
    directory = made(tmp_path / "c")
    with pytest.raises(UserError, match="differs in dtype"):
        cache_writer.claim(directory, manifest(dtype="int8"))
    with pytest.raises(UserError, match="differs in teacher"):
        cache_writer.claim(directory, manifest(hashes={"teacher": "other"}))


def test_the_key_is_of_the_tokens_and_of_nothing_else():
    tokens = np.arange(5)
    assert piece_key(tokens.astype(np.int32)) == piece_key(tokens.astype(np.int64))
    little = b"".join(int(token).to_bytes(4, "little") for token in tokens)
    assert piece_key(tokens) == hashlib.blake2b(little, digest_size=16).digest()
    assert piece_key(tokens) != piece_key(tokens[:-1])


@pytest.mark.parametrize(("logit", "says"), [(1e6, "use float32"), (np.nan, "are not finite")])
def test_logits_that_a_dtype_cannot_hold_are_refused(logit, says):
    given = signals("top_k", np.arange(3)) | {"logits": np.full((3, K), logit)}
    with pytest.raises(UserError, match=says):
        to_record("top_k", b"k" * 16, given, FORM | {"dtype": "float16"})


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path):
    cache_writer.check_disk(tmp_path, 1)
    with pytest.raises(UserError, match=r"needs 1000000\.00 GB and .* free"):
        cache_writer.check_disk(tmp_path, 10**15)


def test_the_head_is_checked_too(tmp_path):
    directory = tmp_path / "c"
    directory.mkdir()
    weight = np.arange(WIDTH * 3.0).reshape(WIDTH, 3)
    content, digest = cache_writer.head_file(weight, None)
    cache_writer.write_head(directory, content)
    keys = write(directory, manifest(hashes={"head": digest}), text())
    cache_writer.finish(directory, keys)
    np.testing.assert_array_equal(open_cache(directory).head()[0], weight)
    path = directory / "head.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"head\.npz is damaged"):
        open_cache(directory).head()


def test_many_threads_read_the_same(tmp_path):
    cache = open_cache(made(tmp_path / "c"))
    rows = CachedRows(pack(text(), seq_len=SEQ, seed=None), cache)
    alone = [rows[i].targets["hidden"] for i in range(len(rows))]
    with ThreadPoolExecutor(8) as pool:
        order = list(range(len(rows))) * 20
        found = list(pool.map(lambda i: rows[i].targets["hidden"], order))
    for i, value in zip(order, found, strict=True):
        np.testing.assert_array_equal(value, alone[i])
