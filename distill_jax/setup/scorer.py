"""A user's own scorer: a Python function in a file of theirs that judges a text."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

from distill_jax.types import UserError
from distill_jax.words import first_line

Scorer = Callable[[str, str, str], float]  # (prompt, text, reference) -> score; higher is better

HOW = "give --config.study.scorer=FILE.py:FUNCTION, a function of (prompt, text, reference)"


def load_scorer(address: str) -> Scorer:
    """The function at FILE.py:FUNCTION, checked at every call.

    Raises UserError where there is none, and, when called, where it raises or gives no finite
    number.
    """
    file, _, name = address.rpartition(":")
    if not file or not Path(file).is_file():
        raise UserError(f"config.study.scorer is {address!r}, which names no file: {HOW}")
    spec = importlib.util.spec_from_file_location("distill_jax_scorer", file)
    if spec is None or spec.loader is None:
        raise UserError(f"config.study.scorer {file} is no Python file: {HOW}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"config.study.scorer {file} cannot be run ({_line(error)})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"config.study.scorer {file} has no function {name!r}: {HOW}")

    def score(prompt: str, text: str, reference: str) -> float:
        try:
            value = float(function(prompt, text, reference))
        except Exception as error:
            raise UserError(
                f"config.study.scorer {address} failed on the text {text[:40]!r}"
                f" ({_line(error)}): it must give a number for any text"
            ) from error
        if not math.isfinite(value):
            raise UserError(
                f"config.study.scorer {address} gave {value} for the text {text[:40]!r}:"
                " it must give a finite number"
            )
        return value

    return score


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
