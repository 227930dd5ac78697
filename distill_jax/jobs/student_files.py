"""The files of a student: the directory that other jobs read, and a GGUF file if asked for."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.data.gguf_vocabulary import other_tokens, splits_as
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.export import directory_dtype, export_gguf, export_student
from distill_jax.models.binding import Model
from distill_jax.models.families import FAMILIES
from distill_jax.progress import say
from distill_jax.types import Params


def names(c: ConfigDict) -> tuple[str, ...]:
    """What a run writes in its workdir."""
    return (workdir.STUDENT, *((workdir.STUDENT_FILE,) if c.export.format == "gguf" else ()))


def write(
    c: ConfigDict, directory: Path, model: Model, params: Params, tokenizer: Tokenizer, step: int
) -> str:
    """Writes all of `names`, and notes of which step they are; says where they are, in words.

    Every process must call it.
    """
    for name in names(c):
        write_one(c, directory / name, model, params, tokenizer)
        if jax.process_index() == 0:
            workdir.write_exported(directory, step, name)
    return " and ".join(str(directory / name) for name in names(c))


def write_one(
    c: ConfigDict, path: Path, model: Model, params: Params, tokenizer: Tokenizer
) -> None:
    """Writes a directory, or a file where the name is that of one.

    Says where llama.cpp or transformers has no way to do as we do.
    """
    of = (path, model.config, params, tokenizer)
    if path.name == workdir.STUDENT_FILE:
        export_gguf(*of, dtype=c.export.dtype)
        if other := FAMILIES[model.config.family].gguf.differs(model.config):
            say(f"note: llama.cpp computes {other}")
        if texts := other_tokens(tokenizer):
            say(f"note: llama.cpp makes other tokens of {texts}")
    else:
        export_student(*of, dtype=directory_dtype(c.export.dtype))
        family = model.config.family
        only = FAMILIES[family].only_tokenizer
        if only and not splits_as(tokenizer, only):
            say(
                f"note: AutoTokenizer of transformers splits texts of a {family} model in its own"
                " way, other than this tokenizer: load it with"
                " PreTrainedTokenizerFast.from_pretrained"
            )


def damaged(c: ConfigDict, directory: Path) -> list[str]:
    """What is lost of them, or not as it was written."""
    return [file for name in names(c) for file in workdir.changed_student(directory, name)]
