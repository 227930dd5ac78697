"""A config file of a user's own, or one that comes with the package."""

import importlib.machinery
import importlib.util
import inspect
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flax import traverse_util
from ml_collections import ConfigDict

from distill_jax.config import BASE, check_keys, leaves, load_base
from distill_jax.files import SEAL
from distill_jax.key_names import OPEN, unknown_key
from distill_jax.types import UserError
from distill_jax.untrusted import read_json_object
from distill_jax.words import first_line

# Keys, also those of an ablation, that name Python to be run; a JSON file may not set them.
RUN_CODE = ("study.scorer", "eval.task_path", "data.clean.filter")


def load_config(address: str) -> ConfigDict:
    """The config of FILE.py or FILE.py:VARIANT, or of a FILE.json, which executes nothing.

    A file configs/NAME.py that is not there is the one that comes with the package. In the file,
    `configs` is the package's own directory first, whatever the current one holds. Raises
    UserError for a file that does not exist, cannot be run, or gives no config.
    """
    if address.endswith(".json") and Path(address).is_file():
        return _of_json(Path(address))
    path, variant = _find(address)
    name = importlib.machinery.SourceFileLoader("distill_jax_config", str(path))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader("distill_jax_config", name)
    )
    with _configs_are_ours():
        _run(path, lambda: name.exec_module(module))
        make = getattr(module, "get_config", None)
        if not callable(make):
            raise UserError(
                f"--config {path} has no function get_config: begin with"
                " `from configs.base import get_config as base_config`, as configs/quickstart.py"
            )
        if variant and not inspect.signature(make).parameters:
            raise UserError(f"--config {path} has no variants: leave :{variant} away")
        config = _run(path, lambda: make(variant) if variant else make())
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config of --config {path} gives a {type(config).__name__}: return the config"
            " that configs.base.get_config() gives, changed"
        )
    return config


def _of_json(path):
    """Base, changed to what a JSON object says of keys, as the config.json of a run does."""
    said = read_json_object(path, 'give an object, such as {"steps": 100}')
    values = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in traverse_util.flatten_dict(said, sep=".").items()
        if key != SEAL
    }
    config = load_base()
    known = leaves(config)
    for key, value in values.items():
        if key not in known and not key.startswith(OPEN):
            raise unknown_key(key, known)
        if value and key.endswith(RUN_CODE):
            raise UserError(
                f"--config {path} sets {key}, which names a program to run: give it as a flag of"
                " the command, if you trust it"
            )
        if type(known.get(key)) is int and isinstance(value, float) and value.is_integer():
            values[key] = int(value)  # 1000.0, as of a flag
    try:
        nested = traverse_util.unflatten_dict(values, sep=".")
        check_keys(ConfigDict(nested), config, whole=False)
        config.update(nested)
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(
            f"--config {path} cannot be read ({type(error).__name__}): give a value of the kind"
            " that --help shows for each key"
        ) from None
    return config


def _find(address):
    """The file and the variant of an address. A colon may be part of a path."""
    file, _, variant = address.rpartition(":")
    parts = [(address, ""), (file, variant)] if file else [(address, "")]
    own = BASE.parents[1]
    for path, variant in parts:
        for place in (
            [Path(path), own / path] if Path(path).parts[:1] == ("configs",) else [Path(path)]
        ):
            if place.is_file() and place.suffix == ".py":
                return place, variant
    path = Path(parts[-1][0])
    there = ", ".join(sorted(f"configs/{file.name}" for file in BASE.parent.glob("*.py")))
    if Path(address).exists():
        path = Path(address)
    if path.is_dir():
        problem = f"is a directory: give a file, such as {there}"
        if (path / "config.json").is_file():
            problem = f"is the directory of a run: give --workdir={path} alone to use its config"
    elif path.exists():
        problem = "is no Python file: a config is a .py file with a function get_config, or .json"
    else:
        problem = f"does not exist: give a file of your own, or one of {there}"
    raise UserError(f"--config {path} {problem}")


def _run(path, call):
    """Runs the user's code. Raises UserError with the line where it fails."""
    try:
        return call()
    except SyntaxError as error:
        where = (
            f"line {error.lineno or 1}" if error.filename in (None, str(path)) else error.filename
        )
        raise UserError(f"--config {path} cannot be read ({where}): {error.msg}") from None
    except (Exception, SystemExit) as error:
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)
        ]
        where = f"line {lines[-1]}" if lines else "get_config"
        raise UserError(
            f"--config {path} cannot be run ({where}): {type(error).__name__}: {first_line(error)}"
        ) from None


@contextmanager
def _configs_are_ours() -> Iterator[None]:
    """`configs` is the package's directory while a config file runs; others follow it."""
    theirs = {name: sys.modules.pop(name) for name in _configs()}
    package = types.ModuleType("configs")
    package.__path__ = [str(BASE.parent)]
    for directory in map(Path, sys.path):
        if (directory / "configs").is_dir() and (directory / "configs").resolve() != BASE.parent:
            package.__path__.append(str((directory / "configs").resolve()))
    sys.modules["configs"] = package
    try:
        yield
    finally:
        for name in _configs():
            del sys.modules[name]
        sys.modules.update(theirs)


def _configs():
    return [name for name in sys.modules if name == "configs" or name.startswith("configs.")]
