"""Checks of a config, and its differences from base as text or as flags."""

import difflib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from distill_jax.types import UserError

BASE = Path(__file__).resolve().parents[1] / "configs" / "base.py"
OPEN = "study.ablations."  # the one group whose keys are the user's own


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


def unknown_key(key: str, known: Iterable[str]) -> UserError:
    """The error for a key that base does not have, with the nearest one that it has."""
    if f"{key}.".startswith(OPEN):
        return UserError(
            f"config.{key} cannot be given on the command line: set"
            f" c.{OPEN}NAME = {{'optim': {{'learning_rate': (1e-4, 1e-3)}}}} in a"
            " config file of your own (README, Did it help?) and pass that file as --config"
        )
    known = list(known)
    # Either the group is missing (batch_size), or something is misspelt (data.batchsize).
    near = [name for name in known if name.rsplit(".", 1)[-1] == key]
    group, _, name = key.rpartition(".")
    within = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == group}
    if not near and group and within:  # compared without the group, which is alike in any case
        near = [within[n] for n in difflib.get_close_matches(name, within, n=1, cutoff=0.6)]
        if not near:
            return UserError(f"config.{key} is not a key: config.{group} has {', '.join(within)}")
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    names = " or ".join(f"config.{name}" for name in near)
    hint = f"did you mean {names}?" if near else "configs/base.py lists every key"
    return UserError(f"config.{key} is not a key: {hint}")


def check_keys(config: ConfigDict, base: ConfigDict) -> None:
    """Raises UserError for a key that base lacks or a value of another type than base's."""
    known = flatten(base)
    for key, value in flatten(config).items():
        if key.startswith(OPEN):
            continue  # names of the user's own; study/arms.py checks what they change
        if key not in known:
            raise unknown_key(key, known)
        default = known[key]
        number = isinstance(default, float) and isinstance(value, int)
        if type(value) is not type(default) and not number:
            raise UserError(
                f"config.{key} is {value!r}, a {type(value).__name__}:"
                f" give a {type(default).__name__}, such as {default!r}"
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
        raise UserError(f"config.{key} is {value!r}: {hint}")
    return value


def at_least(key: str, value: float, least: float) -> float:
    """Returns `value` if it is at least `least`. Raises UserError otherwise."""
    if not value >= least:
        raise UserError(f"config.{key} is {value}: use at least {least}")
    return value
