"""The directory of one run: its lock, its owner, its metrics file. Written by process 0 only.

A job that trains or stores owns its directory from its first product on. Jobs that only read a
model own none: each answer has a directory of its own below the workdir, named after the question.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from distill_jax.files import (
    lack_of,
    opened,
    read_sealed,
    remove,
    sealed,
    write_json,
    write_text,
    written_whole,
)
from distill_jax.seals import Seal, changed, hashes
from distill_jax.types import UserError
from distill_jax.words import plural

CONFIG, CONFIG_DIFF, PROVENANCE = "config.json", "config_diff.txt", "provenance.json"
METRICS, CHECKPOINTS, STUDENT, REPORT = "metrics.jsonl", "checkpoints", "student", "report.json"
SAMPLES, PAGE = "samples.jsonl", "report.html"
STUDENT_FILE = "student.gguf"
EXPORTED = "student.json"  # which checkpoint of a run `student/` is of, and its hashes
EXPORTED_FILE = "student.gguf.json"  # the same of STUDENT_FILE
_NOTES = {STUDENT: EXPORTED, STUDENT_FILE: EXPORTED_FILE}
# By job, what is worth keeping, as globs: without it another config may have the directory.
PRODUCTS = {
    "train": (REPORT, f"{CHECKPOINTS}/step_*"),
    "study": ("arms/*/*/result.json", f"arms/*/*/{REPORT}", f"arms/*/*/{CHECKPOINTS}/step_*"),
    "cache": ("shard-*.array_record",),
    "export": (STUDENT, STUDENT_FILE),
    "verdict": (REPORT,),
}
# What of a reading job's answer also stands at the top of a workdir.
LATEST = (CONFIG, CONFIG_DIFF, PROVENANCE, METRICS, SAMPLES, REPORT, PAGE)
# By job, what an attempt that kept nothing may leave, and another config must not take for its own.
LEFTOVERS = {
    "study": ("study.json", "students", "arms", "cache"),
    "cache": ("manifest.json", "head.npz"),
}


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Creates the directory and locks it; the lock is released even if the process dies.

    Raises UserError if it cannot be written or another run holds the lock.
    """
    try:
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f"--workdir {workdir} is a file: give a directory")
        workdir.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(workdir / ".lock")
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"--workdir {workdir} is in use by another run: wait for it, or use another directory"
        ) from None
    except OSError as error:
        if lack_of(error, workdir):
            raise
        raise UserError(
            f"--workdir {workdir} cannot be written ({error.strerror}): use another directory"
        ) from None
    try:
        yield
    finally:
        lock.release()


def owner(directory: Path) -> dict[str, Any] | None:
    """The flat config of the job that a directory belongs to; None where it belongs to none.

    Jobs that only read a model own no directory, though their latest config stands in it. Raises
    UserError where config.json is another program's, such as a model's.
    """
    path = directory / CONFIG
    config = read_sealed(path)
    if config is not None and isinstance(config.get("job"), str):
        return config if config["job"] in PRODUCTS else None
    if config_lost(directory):
        raise UserError(
            f"{path} is missing or damaged, and {CONFIG_DIFF} does not tell what it was: put one of"
            " them back from a copy, or use another directory"
        )
    if path.exists():
        raise UserError(
            f"--workdir {directory} holds a config.json of something else, such as a model:"
            " use another directory"
        )
    return None


def config_lost(directory: Path) -> bool:
    """Whether a directory keeps what a config made, and its config.json is missing or damaged."""
    config = read_sealed(directory / CONFIG)
    if config is not None and ("job" in config or "model_type" in config):
        return False
    traces = [f"{CHECKPOINTS}/step_*", "arms/*/*/*"]
    if (directory / CONFIG).exists():
        traces += [CONFIG_DIFF, *(one for patterns in PRODUCTS.values() for one in patterns)]
    return any(True for pattern in traces for _ in directory.glob(pattern))


def kept(directory: Path) -> dict[str, Any] | None:
    """The config of the owner that has written something worth keeping; None without one."""
    config = owner(directory)
    patterns = PRODUCTS[config["job"]] if config else ()
    found = (path for pattern in patterns for path in directory.glob(pattern))
    # A checkpoint has orbax's mark in its name until it is whole.
    return config if any(".orbax" not in path.name for path in found) else None


def last_checkpoint(directory: Path) -> int:
    """The step of a run's last whole checkpoint; 0 where it has none."""
    names = (path.name.removeprefix("step_") for path in (directory / CHECKPOINTS).glob("step_*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def write_exported(directory: Path, step: int, name: str = STUDENT) -> None:
    """Notes that STUDENT, or STUDENT_FILE, is now of that step, how far the run is, hashes."""
    last = max(step, last_checkpoint(directory))
    files = hashes(directory, [name])
    note = {"step": step, "last_checkpoint": last, "files": files}
    write_json(directory / _NOTES[name], sealed(note))


def changed_student(directory: Path, name: str = STUDENT) -> list[str]:
    """The files of STUDENT that are lost or not as they were written, where that is noted.

    STUDENT_FILE is also lost where nothing is noted of it.
    """
    files = (read_sealed(directory / _NOTES[name]) or {}).get("files", {})
    if name == STUDENT_FILE and not files:
        return [name]
    return changed(directory, Seal({}, files))


def exported(directory: Path) -> tuple[int, int] | None:
    """The step that `student/` is of and the last checkpoint of that time; None if not known."""
    noted = read_sealed(directory / EXPORTED) or {}
    found = noted.get("step"), noted.get("last_checkpoint")
    return found if all(isinstance(step, int) for step in found) else None


def check(
    directory: Path,
    resolved: dict[str, Any],
    defaults: dict[str, Any],
    free: Callable[[str], bool],
) -> None:
    """Checks that what a directory keeps is of the same config.

    defaults: of keys that a former version did not know, by which it did the same. free(key):
    whether it may differ on a rerun. Raises UserError with the differing keys.
    """
    old = kept(directory)
    old = old and {**{key: defaults[key] for key in resolved if key in defaults}, **old}
    changed = [
        f"{key} ({old.get(key, 'absent')} there, {resolved.get(key, 'absent')} here)"
        for key in sorted((old or resolved).keys() | resolved.keys())
        if old is not None and old.get(key) != resolved.get(key) and not free(key)
    ]
    if changed:
        raise UserError(
            f"--workdir {directory} belongs to another config, which differs in"
            f" {', '.join(changed)}: use another directory, or the same config to resume"
        )


def claim(directory: Path, resolved: dict[str, Any], diff: str) -> None:
    """Makes a directory that of a config, once there is something to write.

    What an attempt of another config has left without a product goes, as do the copies of a reading
    job's answer.
    """
    old = read_sealed(directory / CONFIG) or resolved
    if old != resolved and kept(directory) is None:
        for name in (*LATEST, *LEFTOVERS.get(old.get("job"), ())):
            remove(directory / name)
    write_text(directory / CONFIG_DIFF, diff)
    write_json(directory / CONFIG, sealed(resolved))


def result_directory(directory: Path, job: str, title: str, question: dict[str, Any]) -> Path:
    """Where the answer to a question goes: `JOB/TITLE-HASH`, the same for the same question."""
    asked = json.dumps(question, sort_keys=True, default=str)
    short = re.sub(r"\W+", "-", title.lower())[:32].strip("-_") or "text"
    return directory / job / f"{short}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"


def publish(results: Path, directory: Path, resolved: dict[str, Any], diff: str) -> None:
    """Completes the result of a reading job, and copies it to the top of a directory without owner.

    What an owner has there is never touched.
    """
    write_text(results / CONFIG_DIFF, diff)
    write_json(results / CONFIG, sealed(resolved))
    if owner(directory) is not None:
        return
    if (results / REPORT).exists():
        remove(directory / PAGE)  # it would be of another report
    for name in LATEST:
        if (results / name).exists():
            with written_whole(directory / name) as part:
                shutil.copyfile(results / name, part)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file about steps; damaged lines are left out."""
    return whole_lines(path)[0]


def whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines, and how many others there are."""
    if not path.exists():
        return [], 0
    read = [_step_line(line) for line in path.read_bytes().split(b"\n") if line]
    whole = [line for line in read if line is not None]
    return whole, len(read) - len(whole)


def _step_line(text: bytes) -> dict[str, Any] | None:
    try:
        line = opened(json.loads(text.decode("utf-8")))
    except (ValueError, RecursionError):
        return None
    return line if line and isinstance(line.get("step"), int) else None


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Writes a JSON-lines file, completely or not at all."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def rewind(path: Path, step: int) -> str:
    """Drops the lines after `step`, which a resumed run writes again, and damaged ones.

    What was damaged or is lost up to there, in words; empty if nothing is.
    """
    whole, damaged = whole_lines(path)
    kept = [line for line in whole if line["step"] <= step]
    write_lines(path, map(sealed, kept))
    if step < 0:  # all of it is written again
        return ""
    lost = step + 1 - len({line["step"] for line in kept})
    parts = [f"{plural(damaged, 'damaged line')} cut out"] if damaged else []
    parts += [f"no line is left of {lost} of the steps 0 to {step}"] if lost else []
    return f"{path}: {', '.join(parts)}; the training itself goes on as it was" if parts else ""
