"""Where stores lie, who writes there, and what is remembered of the files that texts come from."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distill_jax.data.formats import unreadable
from distill_jax.files import read_sealed, sealed, write_json
from distill_jax.seals import sha256_of
from distill_jax.types import UserError

LOOK_S = 0.5  # between looks at what another process writes


def store_root(given: str) -> Path:
    """The directory of all stores: the given one, or that of the user's cache."""
    if given:
        return Path(given).expanduser()
    return cache_root() / "tokens"


def cache_root() -> Path:
    """What this program keeps in the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "distill_jax"


def check_root(root: Path) -> None:
    """Makes the directory. Raises UserError where nothing can be written there."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{root}, where tokenised texts are kept, cannot be written"
            f" ({error.strerror or error}): give another directory as --config.data.store=DIR"
        ) from None


@contextmanager
def written_by_one(directory: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """While it lasts, no other process writes that store; waiting(): called while another does.

    The lock of a process that is gone is free.
    """
    lock = FileLock(f"{directory}.lock")
    while True:
        try:
            lock.acquire(timeout=LOOK_S)
            break
        except Timeout:
            waiting()
    try:
        yield
    finally:
        lock.release()


def remembered(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` made once, as a file keeps it. It has to be JSON."""
    known = read_sealed(path)
    if known is None:
        known = make()
        check_root(path.parent)
        write_json(path, sealed(known), shared=True)
    return known


def contents(files: Sequence[Path], memory: Path) -> list[list[str]]:
    """[name, sha256] of each file.

    A file whose path, size, times of change and inode are as they were is not read again: `memory`,
    a file, knows its hash.
    """
    known = {row[0]: row for row in (read_sealed(memory) or {}).get("files", [])}
    rows = []
    for state in map(_state, files):
        row = known.get(state[0])
        rows.append(row if row and row[:-1] == state else [*state, sha256_of(Path(state[0]))])
    if rows != [*known.values()]:
        check_root(memory.parent)
        write_json(memory, sealed({"files": rows}), shared=True)
    return [[Path(row[0]).name, row[-1]] for row in rows]


def states(files: Sequence[Path]) -> list[list[Any]]:
    """What tells a changed file without reading it: [path, size, times in ns, inode] of each."""
    return [_state(file) for file in files]


def _state(file: Path) -> list[Any]:
    try:
        found = file.stat()
    except OSError as error:
        raise unreadable(file, error) from None
    # Whoever sets the time of a file's content back changes the time of its inode.
    times = [found.st_mtime_ns, found.st_ctime_ns]
    return [str(file.absolute()), found.st_size, *times, found.st_ino]
