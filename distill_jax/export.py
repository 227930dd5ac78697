"""The student as a Hugging Face directory that transformers loads without flags, or a GGUF file."""

from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from distill_jax.data.gguf_vocabulary import tokenizer_metadata
from distill_jax.data.tokenizer import Tokenizer, save_tokenizer
from distill_jax.models import gguf, huggingface
from distill_jax.models.architecture import ModelConfig
from distill_jax.types import NumbersBrokeDown, Params, path_name

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
    Raises NumbersBrokeDown for weights that are not finite in that dtype, before any is written.
    """
    host = to_host(params)
    _check_finite(host, np.dtype(jax.numpy.dtype(dtype)))
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


def export_gguf(
    path: Path, config: ModelConfig, params: Params, tokenizer: Tokenizer, *, dtype: str
) -> None:
    """Writes weights, tokenizer and chat templates as one file. Every process must call it.

    dtype: a key of models.gguf.KINDS. Raises as export_student does, and UserError for a model or
    tokenizer that such a file cannot say.
    """
    host = to_host(params)
    _check_finite(host, np.dtype(jax.numpy.dtype(directory_dtype(dtype))))
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"general.name": path.stem} | tokenizer_metadata(tokenizer, rows=config.vocab)
        gguf.write(path, config, host, metadata=metadata, kind=dtype)


def check_gguf(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError for a model or tokenizer that a GGUF file cannot say."""
    gguf.check(config)
    tokenizer_metadata(tokenizer, rows=config.vocab)


def directory_dtype(dtype: str) -> str:
    """What a directory is written in, of export.dtype: q8_0 is for GGUF files alone."""
    return "float32" if dtype == "q8_0" else dtype


def _check_finite(host: Params, dtype: np.dtype) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(host):
        with np.errstate(over="ignore"):
            finite = np.isfinite(leaf.astype(dtype, copy=False))
        if bad := leaf.size - int(np.count_nonzero(finite)):
            raise NumbersBrokeDown(
                f"the student's weight {path_name(path)} has {bad} of {leaf.size} numbers that are"
                f" not finite in {dtype.name}: lower config.optim.learning_rate, or write a wider"
                " --config.export.dtype"
            )
