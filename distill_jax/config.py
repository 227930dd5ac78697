"""Checks of a config, and its differences from base as text or as flags."""

import ast
import difflib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from distill_jax.key_names import OPEN, unknown_key
from distill_jax.types import UserError
from distill_jax.words import cut

BASE = Path(__file__).resolve().parents[1] / "configs" / "base.py"

OF_NUMBERS = ("teacher.weights", "data.weights")  # the other tuples hold strings
OF_TEXTS = ("data.source",)  # a string, or a tuple of them
# What a value of each type is called, and one where the default would not help.
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a tuple",
}
EXAMPLES = {str: "text", list: ["one", "two"]}


def load_base() -> ConfigDict:
    """configs/base.py with every default, whatever the current directory."""
    spec = importlib.util.spec_from_file_location("distill_jax_base", BASE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def leaves(config: ConfigDict) -> dict[str, Any]:
    """Nested keys as `a.b.c`, in order, values unchanged."""
    return traverse_util.flatten_dict(config.to_dict(), sep=".")


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Nested keys as `a.b.c`, in order; tuples as lists, as JSON has them."""
    return {
        key: list(value) if isinstance(value, tuple | list) else value
        for key, value in leaves(config).items()
    }


def check_keys(config: ConfigDict, base: ConfigDict, *, whole: bool = True) -> None:
    """Raises UserError for a key that base lacks, one that is missing, or a value that cannot be.

    A value has the type of base's; an integer may stand for a float. whole: every key of base has
    to be there.
    """
    known, values = flatten(base), flatten(config)
    for key, value in values.items():
        if key.startswith(OPEN):
            continue  # names of the user's own; study/arms.py checks what they change
        if key not in known:
            raise unknown_key(key, known)
        default = known[key]
        stands = isinstance(default, float) and type(value) is int
        stands |= key in OF_TEXTS and type(value) is list
        if type(value) is not type(default) and not stands:
            kind = KINDS.get(type(value), type(value).__name__)
            raise UserError(
                f"config.{key} is {cut(repr(value))}, {kind}:"
                f" give {KINDS[type(default)]}, such as {EXAMPLES.get(type(default), default)!r}"
            )
        for part in value if isinstance(value, list) else [value]:
            kinds = (int, float) if key in OF_NUMBERS else (str,)
            if isinstance(value, list) and not isinstance(part, kinds):
                words = (
                    "numbers, such as (0.5, 1)" if key in OF_NUMBERS else 'strings, as ("text",)'
                )
                raise UserError(f"config.{key} has {cut(repr(part))} in it: give {words}")
    missing = [key for key in known if key not in values]
    if whole and missing:
        raise UserError(
            f"config.{missing[0]} is missing from the config: begin with configs.base.get_config()"
            " and take no key away"
        )


def config_diff(config: ConfigDict, base: ConfigDict) -> str:
    """One line `key: value (base: default)` for each key that differs from base."""
    defaults = flatten(base)
    lines = [
        f"config.{key}: {value!r} (base: {defaults.get(key, 'absent')!r})\n"
        for key, value in flatten(config).items()
        if key not in defaults or value != defaults[key]
    ]
    return "".join(lines)


def config_of_diff(text: str, base: ConfigDict) -> dict[str, Any] | None:
    """The flat config that config_diff wrote `text` of; None where it is not whole.

    Nor where another version, with other defaults in its base, has written it.
    """
    values = flatten(base)
    if not text.endswith("\n"):
        return None
    for line in text.split("\n")[:-1]:
        key, colon, rest = line.removeprefix("config.").partition(": ")
        default = f" (base: {values.get(key, 'absent')!r})"
        try:
            values[key] = ast.literal_eval(rest.removesuffix(default))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
        if not (line.startswith("config.") and colon and rest.endswith(default)):
            return None
    return values


def as_flags(config: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """One flag `--config.key=value` for each key that differs from base, both flat as by flatten().

    The command line parses each flag back to the same value; shlex.join makes one string of them.
    Keys that base lacks (a study's ablations) are left out: only a config file can set them.
    """
    return [
        f"--config.{key}={_flag_text(value)}"
        for key, value in config.items()
        if key in base and value != base[key]
    ]


def _flag_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, tuple | list):
        # Strings in double quotes, since a shell's are single.
        quoted = lambda x: json.dumps(x, ensure_ascii=False) if isinstance(x, str) else repr(x)
        return f"({''.join(quoted(entry) + ',' for entry in value)})"
    return str(value)


def choose(key: str, value: str, choices: Iterable[str]) -> str:
    """Returns `value` if it is one of `choices`. Raises UserError otherwise."""
    choices = list(choices)
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(choices)}"
        raise UserError(f"config.{key} is {cut(repr(value))}: {hint}")
    return value
