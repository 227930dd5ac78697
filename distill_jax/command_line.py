"""The words of a command line as a config, a directory, and a place among the processes."""

import ast
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from flax import traverse_util
from ml_collections import ConfigDict

from distill_jax.config import OF_TEXTS, check_keys, config_of_diff, leaves, load_base
from distill_jax.config_file import load_config
from distill_jax.files import read_sealed
from distill_jax.key_names import OPEN, unknown_flag, unknown_key
from distill_jax.schema import check_values
from distill_jax.types import UserError
from distill_jax.words import cut
from distill_jax.workdir import CONFIG, CONFIG_DIFF

# Every flag but the keys of a config, with the type of its value.
FLAGS = {
    "config": str, "workdir": str, "coordinator": str, "processes": int, "process": int,
    "distributed": bool,
}  # fmt: skip
BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Command(NamedTuple):
    """A parsed command line."""

    config: ConfigDict
    base: ConfigDict
    workdir: Path
    coordinator: str
    processes: int
    process: int
    distributed: bool


def parse(argv: list[str]) -> Command:
    """Config, workdir and process flags; argv[0] is the program.

    The config is that of the file --config, or else that of the run whose directory --workdir is;
    the keys that are given change it. Raises UserError for anything unknown or malformed.
    """
    base = load_base()
    known = leaves(base)
    flags = {"config": "", "workdir": "", "coordinator": "", "processes": 1, "process": 0}
    flags["distributed"], given = False, {}
    kinds = FLAGS | {f"config.{key}": type(value) for key, value in known.items()}
    for name, text in _pairs(argv[1:], kinds, known):
        value = _value(name, text, kinds[name])
        key = name.removeprefix("config.")
        if name in FLAGS:
            flags[name] = value
        elif kinds[name] is tuple:  # --config.study.arms=kd --config.study.arms=sft
            given[key] = given.get(key, ()) + value
        else:
            given[key] = value
    # A shell leaves the ~ of --workdir=~/runs as it is.
    file, workdir = (os.path.expanduser(flags.pop(name)) for name in ("config", "workdir"))
    if not file and not workdir:
        raise UserError(
            "nothing says what to do: --config=configs/quickstart.py --workdir=runs/first starts a"
            " run, --workdir=DIR goes on with the run in DIR, and --help says more"
        )
    config = load_config(file) if file else _config_of_run(Path(workdir), load_base())
    check_keys(config, base)
    if not workdir:
        raise UserError("--workdir is missing: give a directory, such as --workdir=runs/first")
    if scheme := re.match(r"(\w+)://", workdir):
        raise UserError(
            f"--workdir {workdir} is an address of {scheme[1]}, which is not written to: give a"
            " directory, for several hosts one that all have mounted, such as of NFS"
        )
    # Who gives one of these means it, whatever the file or the run has of the other.
    if given.get("epochs") and "steps" not in given:
        given["steps"] = 0
    elif given.get("steps") and "epochs" not in given:
        given["epochs"] = 0.0
    config.update_from_flattened_dict(given)
    check_keys(config, base)
    check_values(leaves(config))
    return Command(config, base, Path(workdir), **flags)


def _pairs(words, kinds, known):
    """(name, text) of each flag: --name=text, --name text, --switch, --noswitch."""
    words, pairs = list(words), []
    while words:
        word = words.pop(0)
        found = re.fullmatch(r"--?([^\W\d][^=]*)(?:=(.*))?", word, re.DOTALL)
        if not found:
            raise UserError(f"{cut(repr(word))} is not a flag: flags look like --config.steps=100")
        name, text = found.groups()
        if text is None and kinds.get(name.removeprefix("no")) is bool and name not in kinds:
            name, text = name.removeprefix("no"), "false"
        if name.startswith("config.") and name not in kinds:
            raise unknown_key(name.removeprefix("config."), known)
        if name not in kinds:
            raise unknown_flag(name, [*FLAGS], known)
        if text is None and kinds[name] is bool:
            text = words.pop(0) if words and words[0].lower() in BOOLEANS else "true"
        if text is None and words and not words[0].startswith("--"):
            text = words.pop(0)
        if text is None:
            raise UserError(f"--{name} has no value: write --{name}=VALUE")
        pairs.append((name, text))
    return pairs


def _value(name: str, text: str, kind: type) -> Any:
    """The value that a flag's text means. Raises UserError with an example otherwise."""
    reads = {bool: _boolean, int: _integer, float: _number, tuple: _tuple, str: str}
    if name.removeprefix("config.") in OF_TEXTS and re.fullmatch(r"\(.*\)|\[.*\]", text.strip()):
        kind = tuple
    value = reads[kind](text)
    if value is None:
        raise UserError(
            f"{'--' * (name in FLAGS)}{name} is {cut(repr(text))}: {FORMS[kind].format(name=name)}"
        )
    return value


# What a value of each type looks like, for the error where one does not.
FORMS = {
    bool: "give true or false",
    int: "give a whole number, such as 100",
    float: "give a number, such as 0.5 or 1e-4",
    tuple: (
        "give strings in double quotes and the whole in single ones, such as"
        """ --{name}='("one", "another, with a comma")'"""
    ),
}


def _boolean(text):
    return BOOLEANS.get(text.lower())


def _integer(text):
    number = _number(text)
    if number is None or not number.is_integer():
        return None
    try:
        return int(text)  # exact beyond 2**53
    except ValueError:
        return int(number)  # 1e3


def _number(text):
    try:
        return float(text)
    except ValueError:
        return None


def _tuple(text):
    """A Python literal; without quotes and brackets one string, or words between commas."""
    text = text.strip()
    try:
        value = ast.literal_eval(text) if text else ()
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        bare = re.fullmatch(r"\((.*)\)|\[(.*)\]|(.*)", text, re.DOTALL)
        words = next(group for group in bare.groups() if group is not None)
        if re.fullmatch(r"""[^\s,"'()\[\]]+(,[^\s,"'()\[\]]+)*,?""", words):
            return tuple(word for word in words.split(",") if word)
        whole = text[0] not in "([\"'" and text[-1] not in ")]\"'"
        return (text,) if whole and "," not in text else None
    if isinstance(value, list | tuple):
        return tuple(value)
    return (value,) if isinstance(value, str | int | float) else None


def _config_of_run(workdir, base):
    """Base, changed to what the config.json of a run says."""
    path = workdir / CONFIG
    try:
        found = path.is_file()
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be read ({error.strerror}): give another directory"
        ) from None
    if not found:
        raise UserError(
            f"--config is missing, and {workdir} holds no run whose config could be read: give a"
            " file, such as --config=configs/quickstart.py, or the --workdir of a run"
        )
    try:
        values = read_sealed(path)
        if values is None:  # run_job writes it again
            diff = path.with_name(CONFIG_DIFF).read_text(encoding="utf-8")
            values = config_of_diff(diff, base)
        known = leaves(base)
        values = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key in known or key.startswith(OPEN)  # keys of other versions mean nothing here
        }
        base.update(traverse_util.unflatten_dict(values, sep="."))
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged, as is {CONFIG_DIFF} ({type(error).__name__}): give the file of the"
            " run's config as --config"
        ) from None
    return base
