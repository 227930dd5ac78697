"""Weights in files are read by parts: no more than was asked for, and the same as all of it."""

import math

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from distill_jax.models import huggingface, stored
from distill_jax.models.gguf import read as read_gguf
from distill_jax.models.safetensors_file import read_safetensors
from distill_jax.models.storage import flatten
from distill_jax.models.stored import Stored, boxes, read_box
from tests.models.conftest import FIRST


@pytest.fixture
def read_bytes(monkeypatch):
    """Every piece of a file that is read, as (path, first byte, byte after the last)."""
    found, into = [], stored._read_into

    def spy(row, file, at, path):
        found.append((path, at, at + row.nbytes))
        into(row, file, at, path)

    monkeypatch.setattr(stored, "_read_into", spy)
    return found


def total(pieces):
    return sum(end - first for _, first, end in pieces)


def some_box(r, shape):
    ends = [sorted(r.choice(size + 1, 2, replace=False)) for size in shape]
    return tuple((int(first), int(end)) for first, end in ends)


def cut(array, box):
    return array[tuple(slice(*ends) for ends in box)]


def tiny_boxes(monkeypatch, most=64):
    monkeypatch.setattr(stored, "MOST", most)
    monkeypatch.setattr(stored, "RUN", 1)


@pytest.mark.parametrize("most", [64, 2**24])
def test_any_part_is_that_of_the_whole(case, checkpoint, most, monkeypatch):
    """Of every family's first variant and those that lie fused; read whole by safetensors."""
    read = flatten(huggingface.read(case.directory, dtype="float32").params)
    tiny_boxes(monkeypatch, most)
    r = np.random.default_rng(0)
    for path, whole in flatten(checkpoint.params).items():
        wanted = [some_box(r, whole.shape) for _ in range(3)]
        for box, part in zip(wanted, read[path].read(wanted), strict=True):
            np.testing.assert_array_equal(part, cut(whole, box), err_msg=path, strict=True)


def halves(shape, axis):
    """The two boxes of a parameter over two devices."""
    half = shape[axis] // 2
    whole = [(0, size) for size in shape]
    return [(*whole[:axis], ends, *whole[axis + 1 :]) for ends in ((0, half), (half, shape[axis]))]


@pytest.mark.parametrize("case", FIRST, indirect=True)
def test_each_device_reads_what_it_holds(case, checkpoint, read_bytes, monkeypatch):
    """Halves of a parameter over any axis: each reads its own half, and both every byte once.

    Where outputs of a fused array lie in turns, what lies between them is read with them.
    """
    monkeypatch.setattr(stored, "RUN", 1)
    read = flatten(huggingface.read(case.directory, dtype=None).params)

    def bytes_of(parameter, boxes):
        read_bytes.clear()
        parameter.read(boxes)
        return total(read_bytes)

    for path, whole in flatten(checkpoint.params).items():
        parameter, in_file = read[path], whole.size * read[path].dtype.itemsize
        for axis in (axis for axis, size in enumerate(whole.shape) if size % 2 == 0):
            both = halves(whole.shape, axis)
            counts = [bytes_of(parameter, [box]) for box in both]
            if all(in_one_go(piece.rows) for piece in parameter.pieces):
                assert counts == [in_file // 2] * 2, (path, axis)
                assert bytes_of(parameter, both) == in_file, (path, axis)
            else:
                arrays = sum(math.prod(piece.source.shape) for piece in parameter.pieces)
                assert max(counts) <= bytes_of(parameter, both), (path, axis)
                assert bytes_of(parameter, both) <= arrays * parameter.dtype.itemsize
            assert bytes_of(parameter, both * 4) == bytes_of(parameter, both)  # copies


def in_one_go(rows):
    return rows is None or int(np.ptp(rows)) + 1 == len(rows)


def test_nothing_is_read_before_it_is_asked_for(read_bytes, tmp_path, world):
    read = huggingface.read(world / "teacher", dtype=None)
    assert total(read_bytes) == 0
    read.whole()
    assert total(read_bytes) > 0


def on_disk(tmp_path, array):
    """A plain array in a file, as it is read by parts."""
    path = tmp_path / "array"
    path.write_bytes(b"head" + array.tobytes())
    width = array.dtype.itemsize
    decode = lambda data: data.view(array.dtype)
    return Stored(path, 4, array.shape, array.dtype.name, (1, width), decode)


def read_hull(of, box):
    with of.path.open("rb") as file:
        return [(part, read_box(of, file.fileno(), part)) for part in boxes(of, box)]


def test_boxes_are_small_and_short_pieces_are_read_with_what_lies_between(
    tmp_path, read_bytes, monkeypatch
):
    array = np.arange(6 * 40 * 512, dtype=np.float32).reshape(6, 40, 512)
    of = on_disk(tmp_path, array)
    monkeypatch.setattr(stored, "MOST", 2**14)
    for box, pieces, run in (
        (((1, 3), (0, 40), (0, 512)), 2 * 40 * 512, None),
        (((0, 6), (5, 15), (0, 512)), 6 * 10 * 512, 10 * 512),
        (((0, 6), (5, 15), (0, 5)), 6 * 10 * 512, None),  # 20 bytes at a time: whole rows
    ):
        read_bytes.clear()
        seen = np.zeros(array.shape, int)
        for part, values in read_hull(of, box):
            np.testing.assert_array_equal(values, cut(array, part))
            assert values.nbytes <= 2**14
            cut(seen, part)[...] += 1
        assert cut(seen, box).min() == 1
        assert seen.max() == 1
        assert total(read_bytes) == 4 * pieces
        assert run is None or max(end - at for _, at, end in read_bytes) <= 4 * run


@pytest.mark.parametrize("kept", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("case", ["llama-untied"], indirect=True)
def test_every_dtype_becomes_every_other_as_the_whole_does(case, checkpoint, kept, tmp_path):
    of = {"generation": {}, "dtype": kept, "max_shard_bytes": 20_000}
    huggingface.write(tmp_path, checkpoint.config, checkpoint.params, **of)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    for wanted in (None, "float32", "float16", "bfloat16"):
        read = flatten(huggingface.read(tmp_path, dtype=wanted).whole().params)
        for path, whole in flatten(checkpoint.params).items():
            same = whole.astype(jnp.dtype(kept)).astype(jnp.dtype(wanted or kept))
            np.testing.assert_array_equal(read[path], same, err_msg=path, strict=True)


def readable_kinds():
    """Every kind of tensor that the gguf package dequantizes."""
    for kind, (_, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros(size, np.uint8), kind)
        except NotImplementedError:
            continue
        yield kind


@pytest.mark.parametrize("kind", [*readable_kinds()], ids=lambda kind: kind.name)
def test_blocks_of_every_kind_are_dequantized_by_parts(kind, tmp_path, monkeypatch, read_bytes):
    """Random bytes as blocks, of which a part reads its own blocks alone."""
    tiny_boxes(monkeypatch, 4096)
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    r = np.random.default_rng(0)
    data = r.integers(0, 60, (3, 10, 4 * size), np.uint8)
    path = tmp_path / "blocks"
    path.write_bytes(data.tobytes())
    decode = lambda given: gguf.dequantize(given, kind)
    of = Stored(path, 0, (3, 10, 4 * numbers), "float32", (numbers, size), decode)
    whole = gguf.dequantize(data.reshape(-1, 4 * size), kind).reshape(of.shape)
    box = ((1, 3), (2, 9), (numbers, 3 * numbers))
    found = np.full(whole.shape, -1, np.float32)
    for part, values in read_hull(of, box):
        cut(found, part)[...] = values
    np.testing.assert_array_equal(cut(found, box), cut(whole, box))
    assert total(read_bytes) == 2 * 7 * 2 * size


def test_a_file_that_became_shorter_is_named(tmp_path):
    of = on_disk(tmp_path, np.arange(100.0))
    of.path.write_bytes(of.path.read_bytes()[:-1])
    with pytest.raises(stored.UserError, match="has become shorter while it was read: copy it"):
        read_hull(of, ((0, 100),))


@pytest.mark.parametrize("shard", [20_000, 1 << 30])
@pytest.mark.parametrize("case", ["llama-untied", "gpt_oss-plain"], indirect=True)
def test_files_are_what_the_safetensors_package_reads(checkpoint, shard, tmp_path):
    of = {"generation": {}, "dtype": "bfloat16", "max_shard_bytes": shard}
    huggingface.write(tmp_path, checkpoint.config, checkpoint.params, **of)
    for path in tmp_path.glob("*.safetensors"):
        theirs, ours = load_file(path), read_safetensors(path)
        assert theirs.keys() == ours.keys()
        assert sum(array.nbytes for array in theirs.values()) <= shard or len(theirs) == 1
        for name, array in theirs.items():
            assert math.prod(ours[name].shape) == array.size
            np.testing.assert_array_equal(stored.read_whole(ours[name]), array, strict=True)


def test_gguf_metadata_alone_is_read_first(tmp_path, read_bytes, world):
    from tests.models.test_gguf import written

    path = written(tmp_path / "m.gguf", huggingface.read(world / "teacher", dtype=None).whole())
    read_bytes.clear()
    read_gguf(path, dtype=None)
    assert total(read_bytes) == 0
