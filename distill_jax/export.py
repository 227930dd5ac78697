"""The student as a Hugging Face directory that transformers loads without flags, or a GGUF file."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.data.gguf_vocabulary import tokenizer_metadata
from distill_jax.data.tokenizer import Tokenizer, save_tokenizer
from distill_jax.models import gguf, huggingface
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.storage import on_host
from distill_jax.types import NumbersBrokeDown, Params, path_name

MAX_SHARD_BYTES = 5_000_000_000


def export_student(
    directory: Path,
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    *,
    dtype: str,
) -> None:
    """Writes weights, configs, tokenizer and chat templates. Every process must call it.

    One stored array after another is gathered and written. How the tokenizer's model pads, samples
    and stops is said as the tokenizer's files say it. Raises NumbersBrokeDown for weights that are
    not finite in that dtype, before any is written.
    """
    _check_finite(params, dtype)
    writes = jax.process_index() == 0
    huggingface.write(
        directory,
        config,
        params,
        generation={"eos_token_id": tokenizer.eos_id, **tokenizer.settings.generation},
        dtype=np.dtype(jnp.dtype(dtype)),
        max_shard_bytes=MAX_SHARD_BYTES,
        writes=writes,
    )
    if writes:
        save_tokenizer(tokenizer, directory, positions=config.max_positions)


def export_gguf(
    path: Path, config: ModelConfig, params: Params, tokenizer: Tokenizer, *, dtype: str
) -> None:
    """Writes weights, tokenizer and chat templates as one file. Every process must call it.

    dtype: a key of models.gguf.KINDS. Raises as export_student does, and UserError for a model or
    tokenizer that such a file cannot say.
    """
    _check_finite(params, directory_dtype(dtype))
    metadata = {"general.name": path.stem} | tokenizer_metadata(tokenizer, rows=config.vocab)
    of = (path, config, params)
    gguf.write(*of, metadata=metadata, kind=dtype, writes=jax.process_index() == 0)


def check_gguf(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError for a model or tokenizer that a GGUF file cannot say."""
    gguf.check(config)
    tokenizer_metadata(tokenizer, rows=config.vocab)


def directory_dtype(dtype: str) -> str:
    """What a directory is written in, of export.dtype: q8_0 is for GGUF files alone."""
    return "float32" if dtype == "q8_0" else dtype


def _check_finite(params: Params, dtype: str) -> None:
    """Counted where the weights lie: none of them moves."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if bad := int(np.sum(on_host(_not_finite(leaf, dtype)), dtype=np.int64)):
            raise NumbersBrokeDown(
                f"the student's weight {path_name(path)} has {bad} of {leaf.size} numbers that are"
                f" not finite in {dtype}: lower config.optim.learning_rate, or write a wider"
                " --config.export.dtype"
            )


@partial(jax.jit, static_argnums=1)
def _not_finite(leaf, dtype):
    """How many numbers of each row: of the whole array an int32 may not hold it."""
    return jnp.sum(~jnp.isfinite(leaf.astype(dtype)), axis=-1, dtype=jnp.int32)
