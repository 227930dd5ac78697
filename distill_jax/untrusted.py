"""Files that others wrote: looked at before they are opened, and their JSON read within bounds.

A FIFO blocks whoever opens it, and a device may never end. Python's JSON reader makes up to 25
bytes of one, fails at deep nesting with an error of its own, and refuses long numbers.
"""

import json
import stat
from pathlib import Path
from typing import Any

from distill_jax.types import UserError

MOST_JSON = 2**25  # bytes of one JSON text: a whole file, or a line of one
DEEPEST = 100  # arrays and objects within each other

_DECODER = json.JSONDecoder()
_KINDS = {
    "a directory": stat.S_ISDIR,
    "a FIFO": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
}


def check_file(path: Path) -> None:
    """Raises UserError unless the path, or what it links to, is a regular file that is there."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}): give a file that can") from None
    for kind, is_kind in _KINDS.items():
        if is_kind(mode):
            raise UserError(f"{path} is {kind}: give a regular file")


def parse_json(text: str | bytes, where: str, remedy: str, most: int = MOST_JSON) -> Any:
    """The value of a JSON text, bytes being UTF-8.

    Raises UserError, as "`where`: not JSON (reason): `remedy`", for what is none, is longer than
    `most`, nested deeper than DEEPEST, or has a number of thousands of digits.
    """
    try:
        if len(text) > most:
            raise ValueError(f"it is longer than {most:,} bytes")
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(text)
        if text.count("[") + text.count("{") > DEEPEST:
            _check_depth(value)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        reason = f"{error.msg} at {line}column {error.colno}"
    except RecursionError:
        reason = f"it is nested deeper than {DEEPEST}"
    except ValueError as error:  # also of a long number, with advice for programmers after a ;
        reason = str(error).split(";")[0]
    else:
        return value
    raise UserError(f"{where}: not JSON ({reason}): {remedy}")


def parse_json_at(text: str, start: int) -> tuple[Any, int]:
    """The value of the JSON text that begins at a place of another text, and where it ends.

    Raises ValueError with one line as parse_json does, also where the text ends too early.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise ValueError(error.msg) from None
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST}") from None
    except ValueError as error:
        raise ValueError(str(error).split(";")[0]) from None
    if text.count("[", start, end) + text.count("{", start, end) > DEEPEST:
        _check_depth(value)
    return value, end


def read_json_object(
    path: Path, remedy: str = "restore the file", most: int = MOST_JSON
) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError for another file, see parse_json."""
    check_file(path)
    try:
        with path.open("rb") as file:
            text = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {remedy}") from None
    value = parse_json(text, str(path), remedy, most)
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: {remedy}")
    return value


def _check_depth(value: Any) -> None:
    """Raises ValueError for arrays and objects deeper than DEEPEST, level by level."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {DEEPEST}")
