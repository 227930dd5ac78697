"""A function of a user's own, in a Python file of theirs."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill_jax.types import UserError
from distill_jax.words import cut, first_line


def load_function(key: str, address: str, takes: str) -> Callable[..., Any]:
    """The function at FILE.py:FUNCTION, which config.KEY names. takes: its arguments, for errors.

    Raises UserError where there is none.
    """
    how = f"give --config.{key}=FILE.py:FUNCTION, a function of {takes}"
    file, _, name = address.rpartition(":")
    if not file or not Path(file).is_file():
        raise UserError(f"config.{key} is {cut(repr(address))}, which names no file: {how}")
    spec = importlib.util.spec_from_file_location("distill_jax_own", file)
    if spec is None or spec.loader is None:
        raise UserError(f"config.{key} {file} is no Python file: {how}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"config.{key} {file} cannot be run ({error_line(error)})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"config.{key} {file} has no function {name!r}: {how}")
    return function


def error_line(error: BaseException) -> str:
    """What somebody else's code raised, in one line."""
    return f"{type(error).__name__}: {first_line(error)}"
