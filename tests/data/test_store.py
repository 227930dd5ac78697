"""A store gives what was tokenised, goes on after a stop, and says when it is not whole."""

import itertools
import json

import numpy as np
import pytest

from distill_jax.data import store_writer
from distill_jax.data.documents import Document, fingerprint
from distill_jax.data.encode import encode_documents
from distill_jax.data.pack import describe, pack
from distill_jax.data.store import (
    BLOCK,
    BLOCKS,
    FILES,
    INDEX,
    Damaged,
    join,
    open_store,
    token_type,
)
from distill_jax.data.store_writer import PARTS, StoreWriter
from distill_jax.files import sealed
from distill_jax.types import ChangedOnDisk
from tests.tokens import tokenize_documents

DOCUMENTS = [
    Document(f"n{i}", f"label {i % 7}", pair=("p " * (i % 9), "c" * (i % 5))) if i % 3 else
    Document(f"n{i}", "x", text="wörd 12 " * (i % 400))
    for i in range(300)
]  # fmt: skip


def written(directory, tokenizer, documents, *, stop=None, start=0):
    writer = StoreWriter(directory, token_type(tokenizer.vocab_size))
    for one in encode_documents(documents[writer.counts["documents"] :][:stop], tokenizer):
        writer.add(one)
    if stop is not None:
        writer.close()
        return None
    writer.finish()
    return open_store(directory)


@pytest.fixture(scope="module")
def store(smollm_like, tmp_path_factory):
    return written(tmp_path_factory.mktemp("store") / "s", smollm_like, DOCUMENTS)


def same(a, b):
    assert np.array_equal(a.tokens, b.tokens)
    assert np.array_equal(a.trained, b.trained)
    assert a.offsets.tolist() == b.offsets.tolist()
    assert tuple(a.labels) == tuple(b.labels)


def test_a_store_holds_what_was_tokenised(store, smollm_like):
    whole = tokenize_documents(DOCUMENTS, smollm_like)
    same(store.tokenized, whole)
    assert len(whole.tokens) > 3 * BLOCK / 2  # several blocks
    assert store.index["sha256"] == fingerprint(DOCUMENTS)
    assert store.index["highest"] == whole.tokens.max()
    assert store.index["pairs"] == 200
    packed = [pack(text, seq_len=16, seed=0) for text in (store.tokenized, whole)]
    assert describe(packed[0]) == describe(packed[1])
    for i in range(0, len(packed[0]), 97):
        for a, b in zip(packed[0][i][:-1], packed[1][i][:-1], strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("part", [(0, 1), (0, 0), (5, 9), (BLOCK, BLOCK + 2), (7, 3 * BLOCK // 2)])
def test_slices_are_those_of_the_array(store, part):
    for blocks in (store.tokenized.tokens, store.tokenized.trained):
        whole, part = np.asarray(blocks), slice(*part) if isinstance(part, tuple) else part
        assert blocks[part].tolist() == whole[part].tolist()
        assert blocks[part].dtype == whole.dtype
        assert len(blocks) == len(whole)


@pytest.mark.parametrize(("vocab", "bytes_"), [(2**16, 2), (2**16 + 1, 4)])
def test_tokens_take_two_bytes_where_they_fit(vocab, bytes_):
    assert token_type(vocab).itemsize == bytes_


@pytest.mark.parametrize("stops", [[0], [1], [40, 3, 120], [300]])
@pytest.mark.parametrize("size", [1, 900])
def test_a_stopped_writer_goes_on(tmp_path, smollm_like, store, stops, size, monkeypatch):
    """Also where what it had not put on disk is half there."""
    monkeypatch.setattr(store_writer, "PART_TOKENS", size)
    for stop in stops:
        assert written(tmp_path / "s", smollm_like, DOCUMENTS, stop=stop) is None
        assert open_store(tmp_path / "s") is None
        for name in (*FILES, PARTS):
            with (tmp_path / "s" / name).open("ab") as file:
                file.write(b"{half")
    again = written(tmp_path / "s", smollm_like, DOCUMENTS)
    same(again.tokenized, store.tokenized)
    assert again.index == store.index


@pytest.mark.parametrize("name", ["tokens", "trained", "tokens.crc"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_parts_that_were_harmed_are_written_again(
    tmp_path, smollm_like, store, name, harm, monkeypatch
):
    monkeypatch.setattr(store_writer, "PART_TOKENS", 900)
    written(tmp_path / "s", smollm_like, DOCUMENTS, stop=200)
    path = tmp_path / "s" / name
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data if harm == "flip" else data[:10])
    if harm == "remove":
        path.unlink()
    again = written(tmp_path / "s", smollm_like, DOCUMENTS)
    assert again.index == store.index
    same(again.tokenized, store.tokenized)


@pytest.mark.parametrize("name", [*FILES, *(f"{name}.crc" for name in BLOCKS), INDEX])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_damage_is_seen(tmp_path, smollm_like, name, harm):
    """A flipped byte of the tokens where it is read, and everything else at the start."""
    found = written(tmp_path / "s", smollm_like, DOCUMENTS[:50])
    path = tmp_path / "s" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if harm == "flip" else data[:-1])
    if harm == "remove":
        path.unlink()
    if (name, harm) == (INDEX, "remove"):
        assert open_store(tmp_path / "s") is None
    elif harm != "flip" or name not in (*BLOCKS, "hashes"):
        with pytest.raises(Damaged):
            open_store(tmp_path / "s")
    elif name in BLOCKS:
        text = open_store(tmp_path / "s").tokenized
        with pytest.raises(
            ChangedOnDisk, match=rf"{name} has changed on disk .* run the same command"
        ):
            np.asarray(getattr(text, name))
        assert open_store(tmp_path / "s") is None  # so that the next run writes it again
    assert found is not None


def test_an_index_of_another_version_is_written_again(tmp_path, smollm_like):
    written(tmp_path / "s", smollm_like, DOCUMENTS[:5])
    path = tmp_path / "s" / INDEX
    index = json.loads(path.read_text()) | {"version": 0}
    index.pop("seal")
    path.write_text(json.dumps(sealed(index)))
    with pytest.raises(Damaged):
        open_store(tmp_path / "s")


def test_joined_texts_are_one_after_the_other(tmp_path, smollm_like, store):
    cut = (0, 100, 101, 300)
    parts = [
        written(tmp_path / str(a), smollm_like, DOCUMENTS[a:b]).tokenized
        for a, b in itertools.pairwise(cut)
    ]
    both = join(parts)
    same(both, store.tokenized)
    assert both.trained_tokens == store.tokenized.trained_tokens
    for part in (
        slice(0, 3),
        slice(5, 5),
        slice(0, len(both.tokens)),
        slice(*both.offsets[99:102]),
    ):
        assert both.tokens[part].tolist() == store.tokenized.tokens[part].tolist()
