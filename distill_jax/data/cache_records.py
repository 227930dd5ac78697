"""Encodes a teacher's signals for one piece of text as bytes, and decodes them.

A kind of signal is one entry of KINDS. Shapes: types.py, with the n positions of a piece instead of
[B, T].
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from distill_jax.types import UserError

Signals = dict[str, np.ndarray]
# hidden:  "hidden" [n, D], and "scale" [n] where it is int8
# top_k:   "ids" [n, K] (-1: empty), "logits" [n, K], "rest" [n, N] (types.TopK)
# sampled: "ids" [n, K] (-1: empty), "counts" [n, K]; read again as "probability"
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
}
KEY_BYTES = 16


class Kind(NamedTuple):
    """encode(signals, form) -> parts; decode(reader, n, form) -> signals; padding per field.

    form: the manifest's options and sizes in one dict: dtype, width, vocab, k, draws, temperatures.
    """

    encode: Callable[[Signals, dict[str, Any]], list[np.ndarray]]
    decode: Callable[["_Reader", int, dict[str, Any]], Signals]
    padding: dict[str, float]
    dtypes: tuple[str, ...]
    bytes_per_token: Callable[[dict[str, Any], float], float]  # form, mean of distinct ids


def quantized(hidden_nD: np.ndarray) -> Signals:
    """int8 with one scale per token: symmetric, the largest entry becomes 127."""
    hidden_nD = hidden_nD.astype(np.float32)
    scale_n = np.abs(hidden_nD).max(-1) / 127
    safe = np.where(scale_n > 0, scale_n, 1.0)[:, None]
    return {"hidden": np.rint(hidden_nD / safe).astype(np.int8), "scale": scale_n}


def to_record(kind: str, key: bytes, signals: Signals, form: dict[str, Any]) -> bytes:
    """Key, length, fields, and a checksum over all of them.

    Raises UserError for signals that are not finite or overflow the form's dtype, ValueError for
    ids, counts or shapes that do not match the form.
    """
    n = len(next(iter(signals.values())))
    _check(signals, form)
    parts = KINDS[kind].encode(signals, form)
    distinct = float((signals["ids"] >= 0).sum() / n) if "ids" in signals else 0.0
    size = round(n * KINDS[kind].bytes_per_token(form, distinct))
    if sum(part.nbytes for part in parts) != size:
        raise ValueError(f"{kind} signals of other shapes than {form}")
    body = key + np.uint32(n).tobytes() + b"".join(np.ascontiguousarray(p).tobytes() for p in parts)
    return body + np.uint32(zlib.crc32(body)).tobytes()


def _check(signals, form):
    """Raises for values that a record cannot hold."""
    for name, value in signals.items():
        # -inf is valid for a logit (an entry of probability 0) and for a rest (there is none).
        allowed = (value == -np.inf) & (name in ("logits", "rest"))
        if not np.all(np.isfinite(value) | allowed):
            raise UserError(
                f"the teacher's {name} are not finite for a piece of {len(value)} tokens:"
                " use config.model.compute_dtype=float32, or other weights"
            )
    if "ids" in signals and signals["ids"].max(initial=-1) >= form["vocab"]:
        raise ValueError(f"id {signals['ids'].max()} of {form['vocab']} entries")
    if "counts" in signals and max(form["draws"], signals["counts"].max(initial=0)) > 255:
        raise ValueError("more than 255 draws, which a byte does not count")


def from_record(kind: str, key: bytes, record: bytes, form: dict[str, Any]) -> Signals:
    """The arrays of a record. Raises ValueError if it is damaged or has another key."""
    body, seal = record[:-4], record[-4:]
    if len(record) < KEY_BYTES + 8 or np.uint32(zlib.crc32(body)).tobytes() != seal:
        raise ValueError("checksum")
    if body[:KEY_BYTES] != key:
        raise ValueError("key")
    n = int(np.frombuffer(body, np.uint32, 1, KEY_BYTES)[0])
    reader = _Reader(memoryview(body)[KEY_BYTES + 4 :])
    signals = KINDS[kind].decode(reader, n, form)
    if reader.at != len(reader.data):
        raise ValueError("length")
    return signals


class _Reader:
    """Reads arrays one after another from bytes."""

    def __init__(self, data: memoryview):
        self.data, self.at = data, 0

    def take(self, dtype: np.dtype, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        found = np.frombuffer(self.data, dtype, count, self.at)
        self.at += found.nbytes
        return found.reshape(shape)


def _encode_hidden(signals, form):
    if form["dtype"] == "int8":
        signals = quantized(signals["hidden"])
        return [signals["hidden"], signals["scale"].astype(np.float32)]
    return [signals["hidden"].astype(DTYPES[form["dtype"]])]


def _decode_hidden(reader, n, form):
    signals = {"hidden": reader.take(DTYPES[form["dtype"]], n, form["width"])}
    if form["dtype"] == "int8":
        signals["scale"] = reader.take(np.dtype(np.float32), n)
    return signals


def _id_dtype(form) -> np.dtype:
    """The narrowest dtype for every id and one more value, for an empty slot."""
    return np.dtype(np.uint16 if form["vocab"] < 2**16 - 1 else np.uint32)


def _encode_ids(ids, form):
    dtype = _id_dtype(form)
    return np.where(ids < 0, np.iinfo(dtype).max, ids).astype(dtype)


def _decode_ids(stored):
    empty = np.iinfo(stored.dtype).max
    return np.where(stored == empty, -1, stored.astype(np.int64)).astype(np.int32)


def _encode_top_k(signals, form):
    dtype, finite = DTYPES[form["dtype"]], np.isfinite(signals["logits"])
    largest = np.abs(signals["logits"]).max(initial=0.0, where=finite)
    if largest > np.finfo(dtype).max:
        raise UserError(
            f"config.cache.dtype {form['dtype']} overflows on the teacher's logits, of which the"
            f" largest is {largest:.0f}: use float32"
        )
    logits = signals["logits"].astype(dtype)
    return [_encode_ids(signals["ids"], form), logits, signals["rest"].astype(np.float32)]


def _decode_top_k(reader, n, form):
    return {
        "ids": _decode_ids(reader.take(_id_dtype(form), n, form["k"])),
        "logits": reader.take(DTYPES[form["dtype"]], n, form["k"]).astype(np.float32),
        "rest": reader.take(np.dtype(np.float32), n, len(form["temperatures"])),
    }


def _encode_sampled(signals, form):
    held = signals["ids"] >= 0
    return [
        held.sum(-1).astype(np.uint8),
        _encode_ids(signals["ids"][held], form),
        signals["counts"][held].astype(np.uint8),
    ]


def _decode_sampled(reader, n, form):
    sizes = reader.take(np.dtype(np.uint8), n).astype(np.int64)
    total = int(sizes.sum())
    ids = _decode_ids(reader.take(_id_dtype(form), total))
    counts = reader.take(np.dtype(np.uint8), total)
    held = np.arange(form["draws"]) < sizes[:, None]
    signals = {"ids": np.full(held.shape, -1, np.int32), "probability": np.zeros(held.shape)}
    signals["ids"][held] = ids
    signals["probability"][held] = counts / form["draws"]
    return {"ids": signals["ids"], "probability": signals["probability"].astype(np.float32)}


def _hidden_bytes(form, distinct):
    return form["width"] * DTYPES[form["dtype"]].itemsize + 4 * (form["dtype"] == "int8")


def _top_k_bytes(form, distinct):
    each = _id_dtype(form).itemsize + DTYPES[form["dtype"]].itemsize
    return form["k"] * each + 4 * len(form["temperatures"])


def _sampled_bytes(form, distinct):
    return 1 + distinct * (_id_dtype(form).itemsize + 1)


_TOP_K = Kind(
    _encode_top_k,
    _decode_top_k,
    {"ids": -1, "logits": 0.0, "rest": -np.inf},
    ("float32", "float16"),
    _top_k_bytes,
)
KINDS: dict[str, Kind] = {
    "hidden": Kind(
        _encode_hidden,
        _decode_hidden,
        {"hidden": 0, "scale": 0.0},
        ("float32", "bfloat16", "int8"),
        _hidden_bytes,
    ),
    "top_k": _TOP_K,
    "sampled": Kind(
        _encode_sampled,
        _decode_sampled,
        {"ids": -1, "probability": 0.0},
        ("float32", "bfloat16", "int8", "float16"),
        _sampled_bytes,
    ),
    # Stored as the logits of the drawn entries, like top_k.
    "sampled_renormalised": _TOP_K,
}
