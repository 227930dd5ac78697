"""The files of a teacher cache: a manifest, and shards with an index each, all with checksums.

A shard is valid once it and its index both have their final names. Shapes: types.py.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from distill_jax.files import write_text
from distill_jax.types import UserError

MANIFEST, HEAD, SHARD, INDEX = "manifest.json", "head.npz", ".array_record", ".index.json"
VERSION = 1
AGAIN = "run the job cache again"


class Manifest(NamedTuple):
    """The content of a cache and its teacher.

    form: dtype, width, vocab, k, draws, temperatures, softcap and scale of the teacher's head.
    hashes: of the teacher's weights, the tokenizer and its chat template. seq_len: the window.
    """

    kind: str
    form: dict[str, Any]
    seq_len: int
    hashes: dict[str, str | None]
    version: int = VERSION
    complete: bool = False
    pieces: int = 0
    tokens: int = 0


def check_same(directory: Path, manifest: Manifest) -> None:
    """Raises UserError if a directory holds a cache of another manifest."""
    old = read_manifest(directory)
    flat = lambda m: {**m.form, **m.hashes, "kind": m.kind, "seq_len": m.seq_len}
    there, here = flat(old), json.loads(json.dumps(flat(manifest)))
    changed = sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))
    if changed:
        shown = ", ".join(f"{k} ({short(there.get(k))} there)" for k in changed)
        raise UserError(
            f"{directory} holds another cache, which differs in {shown}: use another directory"
        )


def read_manifest(directory: Path) -> Manifest:
    """The manifest. Raises UserError if it is absent or damaged."""
    if not (directory / MANIFEST).exists():
        raise UserError(f"{directory} holds no teacher cache: run the job cache with it as workdir")
    content = _read_sealed(directory / MANIFEST)
    if content.get("version") != VERSION:
        raise UserError(
            f"{directory} is a cache of version {content.get('version')} and this program reads"
            f" version {VERSION}: {AGAIN} in another directory"
        )
    return Manifest(**content)


def shard_names(directory: Path) -> list[str]:
    """The names of valid shards: the file and its index both have their final names."""
    names = (p.name.removesuffix(SHARD) for p in directory.glob(f"shard-*{SHARD}"))
    return sorted(name for name in names if (directory / f"{name}{INDEX}").exists())


def shard_keys(directory: Path) -> set[str]:
    """The keys of all pieces in valid shards, in hexadecimal."""
    return {key for name in shard_names(directory) for key in read_index(directory, name)["keys"]}


def read_index(directory: Path, name: str) -> dict[str, Any]:
    """A shard's digest, keys and tokens. Raises UserError if it is damaged."""
    return _read_sealed(directory / f"{name}{INDEX}")


def _seal(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, content: Any) -> None:
    """Writes JSON with a hash of itself, completely or not at all."""
    write_text(path, json.dumps({"seal": _seal(content), "content": content}))


def _read_sealed(path: Path) -> dict[str, Any]:
    try:
        whole = json.loads(path.read_text())
        if whole["seal"] == _seal(whole["content"]):
            return whole["content"]
    except (ValueError, KeyError, TypeError):
        pass
    raise damaged(path, "seal")


def damaged(path: Path, what: str) -> UserError:
    """The error for a file that has changed since it was written."""
    # Without a shard or index the job rewrites its pieces; without the manifest, all pieces.
    remove = "its directory" if path.name == MANIFEST else "this file"
    return UserError(f"{path} is damaged ({what}): remove {remove} and {AGAIN}")


def digest_of(path: Path) -> str:
    """A hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def short(value: Any) -> str:
    """The beginning of a hash or any other value, for an error, and what a hash is followed by.

    >>> short("files:" + 64 * "a" + ":int4/32")
    'files:aaaaaa:int4/32'
    """
    text = str(value)
    return text[:12] + "".join(re.findall(r"(?<=[0-9a-f]{32}):[\w/]+$", text))
