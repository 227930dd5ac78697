"""The directory of a checkpoint as it lies on the disk: its marker, its seal, and what is wrong.

The seal holds the fingerprints of the arrays (fingerprint.py) and a copy of the metrics. It is a
part of orbax's commit marker, so that there is none without the other.
"""

import json
from pathlib import Path
from typing import Any

STATE, METRICS = "state", "metrics"  # what a checkpoint has directories of
MARKER, SEAL, DONE = "_CHECKPOINT_METADATA", "custom_metadata", "commit_success.txt"


class Damaged(Exception):
    """A checkpoint that cannot be read, or not as it was written. The message is the reason."""


def place(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return directory / f"step_{step}"


def seal_of(path: Path) -> dict[str, Any] | None:
    """`arrays` (fingerprints by path) and `metrics`; None in a checkpoint of a former version.

    Raises Damaged for one without its marker, or of which a part is missing or altered. The arrays
    are not looked at.
    """
    marker = _read(path, MARKER)
    named, seal = (marker.get(key) for key in ("item_handlers", SEAL))
    if not named or not isinstance(seal, dict) or not marker.get("commit_timestamp_nsecs"):
        raise Damaged(f"{MARKER} is not of a commit")
    items = {STATE, *named, *([METRICS] if (path / METRICS).exists() else ())}
    if gone := sorted(name for name in items if not (path / name).is_dir()):
        raise Damaged(f"{gone[0]} is missing")
    # Some versions of orbax leave this file in every directory, others in none.
    if len({(each / DONE).exists() for each in (path, *(path / name for name in items))}) > 1:
        raise Damaged(f"{DONE} is missing")
    metrics = _read(path, METRICS, METRICS) if METRICS in items else None
    if not seal:
        return None
    if not isinstance(seal.get("arrays"), dict):
        raise Damaged(f"{MARKER} holds no fingerprints")
    same = lambda value: json.dumps(value, sort_keys=True)  # also where one is not a number
    if same(seal.get(METRICS)) != same(metrics):
        raise Damaged(f"{METRICS} are not as they were saved")
    return seal


def flaw(path: Path) -> str | None:
    """What seal_of finds wrong; None if nothing."""
    try:
        seal_of(path)
    except Damaged as error:
        return str(error)
    return None


def metric_of(path: Path, metric: str) -> float | None:
    """A metric of a whole checkpoint; None where it has none or is not whole."""
    if flaw(path) or not (path / METRICS).exists():
        return None
    return _read(path, METRICS, METRICS).get(metric)


def _read(path: Path, *names: str) -> dict[str, Any]:
    """An object of JSON."""
    name = "/".join(names)
    try:
        value = json.loads((path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Damaged(f"{name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{name} cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise Damaged(f"{name} is no object of JSON")
    return value
