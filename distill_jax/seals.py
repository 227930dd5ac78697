"""A seal: hashes of a directory's files and what they belong to, as one JSON file written last.

Whoever reads the files again asks `changed` which of them are not what they were.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from distill_jax.files import read_sealed, sealed, write_json

SEAL = "seal.json"


class Seal(NamedTuple):
    """of: what the files belong to, by name. files: the sha256 of each, by its path inside."""

    of: Mapping[str, Any]
    files: Mapping[str, str]


def write_seal(directory: Path, names: Iterable[str], of: Mapping[str, Any]) -> None:
    """Seals those of the named files that there are, and all files of a named directory."""
    write_json(directory / SEAL, sealed({"of": dict(of), "files": hashes(directory, names)}))


def hashes(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """The sha256 of those of the named files that there are, and of all in a named directory."""
    places = [directory / name for name in names]
    found = [f for p in places for f in (p.rglob("*") if p.is_dir() else (p,)) if f.is_file()]
    return {str(file.relative_to(directory)): sha256_of(file) for file in sorted(found)}


def read_seal(directory: Path) -> Seal | None:
    """The seal of a directory; None where it has none, or one that is damaged."""
    value = read_sealed(directory / SEAL) or {}
    of, files = value.get("of"), value.get("files")
    return Seal(of, files) if isinstance(of, dict) and isinstance(files, dict) else None


def changed(directory: Path, seal: Seal, below: str = "") -> list[str]:
    """The sealed files, of those `below` a directory, that are lost or not what they were."""
    known = {name: digest for name, digest in seal.files.items() if name.startswith(below)}
    is_whole = lambda name: (directory / name).is_file() and sha256_of(directory / name)
    return [name for name, digest in known.items() if is_whole(name) != digest]


def hash_of(value: Any) -> str:
    """A hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """The sha256 of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
