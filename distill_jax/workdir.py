"""The directory of one run: its lock, its config, its metrics file. Written by process 0 only."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from distill_jax.files import write_json, write_text
from distill_jax.types import UserError

CONFIG, CONFIG_DIFF, PROVENANCE = "config.json", "config_diff.txt", "provenance.json"
METRICS, CHECKPOINTS, STUDENT, REPORT = "metrics.jsonl", "checkpoints", "student", "report.json"
SAMPLES, PAGE = "samples.jsonl", "report.html"


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Creates the directory and locks it; the lock is released even if the process dies.

    Raises UserError if it cannot be written or another run holds the lock.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(workdir / ".lock")
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"--workdir {workdir} is in use by another run: wait for it, or use another directory"
        ) from None
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be written ({error.strerror}): use a writable one"
        ) from None
    try:
        yield
    finally:
        lock.release()


def claim(workdir: Path, resolved: dict[str, Any], diff: str, free: set[str]) -> None:
    """Writes the config of a new workdir, or checks that an old one has the same config.

    free: keys that may differ on a rerun (those that do not change the result). Raises UserError
    with the differing keys otherwise.
    """
    path = workdir / CONFIG
    if path.exists():
        old = json.loads(path.read_text())
        changed = [
            f"{key} ({old.get(key, 'absent')} there, {resolved.get(key, 'absent')} here)"
            for key in sorted(old.keys() | resolved.keys())
            if old.get(key) != resolved.get(key) and key not in free
        ]
        if changed:
            raise UserError(
                f"--workdir {workdir} belongs to another config, which differs in"
                f" {', '.join(changed)}: use another directory, or the same config to resume"
            )
        return
    write_text(workdir / CONFIG_DIFF, diff)
    write_json(path, resolved)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line truncated by a crash is skipped."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Writes a JSON-lines file, completely or not at all."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def rewind(path: Path, step: int) -> None:
    """Drops the lines after `step`: a resumed run writes those steps again."""
    if path.exists():
        write_lines(path, [line for line in read_lines(path) if line["step"] <= step])
