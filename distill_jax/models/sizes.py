"""The sizes of a model path, without its weights."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from distill_jax.models import gguf
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.families import read_config
from distill_jax.models.huggingface import read_json
from distill_jax.models.load import resolve
from distill_jax.types import UserError


def read_sizes(path: str) -> ModelConfig:
    """The architecture of a model path, of which only config.json or the metadata is read.

    A directory needs no more than its config.json; of hub:org/name that file alone is fetched.
    Raises UserError as load_checkpoint does.
    """
    prefix, _, name = path.partition(":")
    local = _config_from_hub(name) if prefix == "hub" and name else resolve(path)
    if local.is_dir():
        local = local / "config.json"
    if local.suffix == ".gguf":
        return gguf.read_sizes(local)
    if local.name != "config.json":
        raise UserError(
            f"model path {path} is neither a directory nor a .gguf file: give one of these"
        )
    return read_config(read_json(local), local)


def _config_from_hub(name: str) -> Path:
    try:
        return Path(huggingface_hub.hf_hub_download(name, "config.json"))
    except (OSError, HFValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot fetch config.json of hub:{name} ({reason}): check the name, the access and"
            " the network, or give a local path"
        ) from error
