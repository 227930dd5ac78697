"""The student as a Hugging Face directory that transformers loads without extra flags."""

from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from distill_jax.data.tokenizer import Tokenizer, save_tokenizer
from distill_jax.models import huggingface
from distill_jax.models.architecture import ModelConfig
from distill_jax.types import Params

MAX_SHARD_BYTES = 5_000_000_000


def to_host(params: Params) -> Params:
    """Complete arrays on every process's host, gathered from all devices."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, params)
    return multihost_utils.process_allgather(params, tiled=True)


def export_student(
    directory: Path,
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    *,
    dtype: str,
) -> None:
    """Writes weights, configs, tokenizer and chat templates. Every process must call it.

    How the tokenizer's model pads, samples and stops is said as the tokenizer's files say it.
    """
    host = to_host(params)
    if jax.process_index() == 0:
        huggingface.write(
            directory,
            config,
            host,
            generation={"eos_token_id": tokenizer.eos_id, **tokenizer.settings.generation},
            dtype=np.dtype(jax.numpy.dtype(dtype)),
            max_shard_bytes=MAX_SHARD_BYTES,
        )
        save_tokenizer(tokenizer, directory, positions=config.max_positions)
