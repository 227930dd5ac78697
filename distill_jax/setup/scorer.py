"""A user's own scorer: a Python function in a file of theirs that judges a text."""

import math
from collections.abc import Callable

from distill_jax.setup.user_function import error_line, load_function
from distill_jax.types import UserError

Scorer = Callable[[str, str, str], float]  # (prompt, text, reference) -> score; higher is better


def load_scorer(address: str) -> Scorer:
    """The function at FILE.py:FUNCTION, checked at every call.

    Raises UserError where there is none, and, when called, where it raises or gives no finite
    number.
    """
    function = load_function("study.scorer", address, "(prompt, text, reference)")

    def score(prompt: str, text: str, reference: str) -> float:
        try:
            value = float(function(prompt, text, reference))
        except Exception as error:
            raise UserError(
                f"config.study.scorer {address} failed on the text {text[:40]!r}"
                f" ({error_line(error)}): it must give a number for any text"
            ) from error
        if not math.isfinite(value):
            raise UserError(
                f"config.study.scorer {address} gave {value} for the text {text[:40]!r}:"
                " it must give a finite number"
            )
        return value

    return score
