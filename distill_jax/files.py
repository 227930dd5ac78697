"""Files and directories that are written completely or not at all, and JSON that knows itself."""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SEAL = "seal"  # of a JSON object: a hash of all its other entries
DAMAGED = "damaged_"  # before the name of what was set aside


@contextmanager
def written_whole(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is written there is then renamed to `path`.

    The directory around it is made where it is missing.

    The content is flushed to disk before the rename, so that even a power cut leaves either the old
    content or the new. A process that dies in between leaves `NAME.part`, which nothing reads and
    the next write replaces. shared: others may write the same path at the same time; the last one
    stays, and what a process leaves that dies in between is NAME.HEX.part, which nothing replaces.

        with written_whole(Path("table.csv")) as part:
            part.write_text("a,b\\n")
    """
    own = f".{secrets.token_hex(8)}" if shared else ""
    part = path.with_name(f"{path.name}{own}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(part)
    part.touch()
    mode = part.stat().st_mode & 0o777  # of the umask: some libraries write for their user alone
    part.unlink()
    try:
        yield part
        for file in sorted(part.rglob("*")) if part.is_dir() else [part]:
            if file.is_file():
                file.chmod(mode)
                _sync(file)
        os.replace(part, path)
    except BaseException:
        remove(part)
        raise


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Writes a UTF-8 file, completely or not at all. shared: as in written_whole."""
    with written_whole(path, shared=shared) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, shared: bool = False) -> None:
    """Writes indented JSON, completely or not at all. shared: as in written_whole."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text, shared=shared)


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """The same with its seal, by which `opened` sees whether it has changed since."""
    return value | {SEAL: _seal_of(value)}


def opened(value: Any) -> dict[str, Any] | None:
    """A sealed object without its seal; None for what is no object, or has changed.

    One without a seal is of an earlier version of this program, and taken as it is.
    """
    if not isinstance(value, dict):
        return None
    inside = {key: entry for key, entry in value.items() if key != SEAL}
    return inside if value.get(SEAL, _seal_of(inside)) == _seal_of(inside) else None


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The object of a JSON file, without its seal; None where there is none, or it is damaged."""
    try:
        return opened(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None


def _seal_of(value):
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def set_aside(path: Path) -> Path:
    """Renames what is damaged to damaged_NAME, damaged_NAME_2, ...; gives where it is now."""
    number, aside = 1, path.with_name(f"{DAMAGED}{path.name}")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{DAMAGED}{path.name}_{number}")
    return path.rename(aside)


def lack_of(error: BaseException | None, directory: Path | None) -> str:
    """What ran out where this error came from, with the remedy; empty where it was nothing.

    directory: the workdir, for an error that names no file.
    """
    while error is not None:
        for number, (what, remedy) in LACKS.items():
            # Of a background save the reason is left in the text alone.
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                place = getattr(error, "filename", None) or directory
                said = what.format(place="this machine" if place is None else place)
                return f"{said}: {remedy} and {AGAIN}"
        error = error.__cause__ or error.__context__
    return ""


AGAIN = "run the same command again, which goes on from what is saved"
LACKS = {
    errno.ENOSPC: ("the disk of {place} is full", "make room (df -h, df -i)"),
    errno.EDQUOT: ("the disk quota of {place} is used up", "make room"),
    errno.EFBIG: ("{place} has a file as large as this process may write", "raise ulimit -f"),
    errno.EMFILE: ("this process may open no more files", "raise ulimit -n"),
    errno.ENFILE: ("this machine may open no more files", "close some"),
}


def remove(path: Path) -> None:
    """Removes a file or a whole directory, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
