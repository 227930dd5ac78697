"""What identifies a model: the hashes of its files, and the dtype that they are read in.

In full it is `files:HASH:DTYPE`; of one file, HASH is what sha256sum prints. The same weights in
other files, such as shards of another size, are another model. Former versions hashed all
parameters, which gives 64 hexadecimal digits and no more: where one of these is written in a cache,
the former hash is computed, and compared with that.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from distill_jax.data.store_place import cache_root, states
from distill_jax.files import read_sealed, sealed, write_json
from distill_jax.seals import sha256_of

FORM = "files:"
HASHERS = min(8, os.cpu_count() or 1)  # threads, each with a file
_FORMER = re.compile("[0-9a-f]{64}")


def digests(files: Sequence[Path]) -> np.ndarray:
    """uint8 [files, 32]: the sha256 of this process's share of some files, and 0 of the others."""
    found = np.zeros((len(files), 32), np.uint8)
    mine = range(jax.process_index(), len(files), jax.process_count())
    with ThreadPoolExecutor(HASHERS) as threads:
        for i, digest in zip(mine, threads.map(lambda i: file_hash(files[i]), mine), strict=True):
            found[i] = np.frombuffer(bytes.fromhex(digest), np.uint8)
    return found


def identity(shares: np.ndarray, dtype: str) -> str:
    """The identity of a model, from the digests of its files. Every process must call it."""
    if jax.process_count() > 1:
        shares = multihost_utils.process_allgather(shares).sum(axis=0, dtype=np.uint8)
    hashes = sorted(row.tobytes().hex() for row in shares)
    whole = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return f"{FORM}{whole}:{dtype}"


def as_known(known: Any, identity: str, former: Callable[[], str] | None) -> str:
    """The identity in the form in which another is known, so that equal models compare equal.

    former() computes the hash over all parameters; None where the identity is of no files.
    """
    of_before = former and isinstance(known, str) and _FORMER.fullmatch(known)
    return former() if of_before else identity


def file_hash(path: Path) -> str:
    """The sha256 of a file: remembered until its size, its times or its inode are others."""
    state = states([path])[0]
    name = hashlib.sha256(state[0].encode(errors="surrogateescape")).hexdigest()[:32]
    note = cache_root() / "weights" / f"{name}.json"
    known = read_sealed(note) or {}
    if known.get("state") == state:
        return known["sha256"]
    digest = sha256_of(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written: hashed again next time
        write_json(note, sealed({"state": state, "sha256": digest}))
    return digest
