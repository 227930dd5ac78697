"""Where documents come from: one entry of SOURCES for each kind of source."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.data.documents import Document
from distill_jax.data.files import files_of, read_all, read_files
from distill_jax.data.formats import FORMATS, OF_SUFFIX, format_of
from distill_jax.data.python_docs import read_python_docs
from distill_jax.data.records import document_from_record
from distill_jax.types import UserError
from distill_jax.words import first_line


def read_documents(source: str, form: str = "") -> Iterator[Document]:
    """The documents of a source, in the same order on every run. form: of files, see FORMATS.

    They are read as they are asked for, and not all held at once.

    `python_docs`                        the documentation of the running Python
    `tfds:name[:split][@directory]`      a TensorFlow dataset stored as ArrayRecord; the split is
                                         "train" unless given, the directory TFDS_DATA_DIR
    `hub:owner/name[:split][@revision]`  jsonl and parquet files of a Hugging Face dataset, or
                                         those of `form`: the files whose path has the split as a
                                         word ("train" unless given)
    anything else                        a path or a glob: jsonl, parquet, or one document per file

    Raises UserError if the source does not exist, is malformed, or holds no document.
    """
    kind, _, address = source.partition(":")
    read, empty = SOURCES.get(kind), True
    for document in read_files(source, form) if read is None else read(address, form):
        empty = False
        yield document
    if empty:
        raise UserError(f"data source {source!r} holds no document: check that it is not empty")


def check_source(source: str, form: str = "") -> None:
    """Raises UserError for files that are not there, or of no known format; reads their heads."""
    if source.partition(":")[0] not in SOURCES:
        for path in files_of(source):
            format_of(path, form)


def _read_python_docs(address: str, form: str) -> Iterator[Document]:
    if address:
        raise UserError(f"'python_docs:{address}' is not a data set: write python_docs alone")
    return read_python_docs()


def _read_tfds(address: str, form: str) -> Iterator[Document]:
    # A colon before a version (name:1.2.3) belongs to the name.
    match = re.fullmatch(r"([^:@]+(?::\d+\.\d+\.\d+)?)(?::([^@]+))?(?:@(.+))?", address)
    if match is None:
        raise UserError(f"'tfds:{address}' is not a data set: write tfds:name[:split][@directory]")
    name, split, directory = match.groups()
    import tensorflow_datasets as tfds  # here, because few runs need it and it is slow to import

    try:
        records = tfds.data_source(name, split=split or "train", data_dir=directory)
    # Raised by tfds for an unknown data set or split, another file format, a builder that needs
    # TensorFlow, or a failed download.
    except (ValueError, NotImplementedError, ImportError, OSError, AssertionError) as error:
        reason = first_line(error)
        raise UserError(
            f"'tfds:{address}': {reason}: check name and split, and prepare the data set with "
            "file_format='array_record'"
        ) from error
    for number, record in enumerate(records):
        where = f"tfds:{address}:{number}"
        yield document_from_record(_plain(record, where), where=where, label=name)


def _plain(value: Any, where: str) -> Any:
    """A tfds record as Python values: bytes become str, arrays lists, a dict of lists its rows."""
    match value:
        case bytes():
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where}: byte {error.start} is not UTF-8: build the data set from UTF-8 text"
                ) from error
        case np.ndarray() | np.generic():
            return _plain(value.tolist(), where)
        case list() | tuple():
            return [_plain(item, where) for item in value]
        case dict():
            plain = {key: _plain(item, where) for key, item in value.items()}
            for name in ("messages", "prompt", "completion"):
                turns = plain.get(name)
                if isinstance(turns, dict):
                    rows = zip(*turns.values(), strict=True)
                    plain[name] = [dict(zip(turns, row, strict=True)) for row in rows]
            return plain
    return value


def _read_hub(address: str, form: str) -> Iterator[Document]:
    match = re.fullmatch(r"([^:@]+)(?::([^@]+))?(?:@(.+))?", address)
    if match is None:
        raise UserError(f"'hub:{address}' is not a data set: write hub:owner/name[:split]")
    name, split, revision = match.groups()
    import huggingface_hub  # here, because few runs need it

    suffixes = _hub_suffixes(form)
    try:
        folder = huggingface_hub.snapshot_download(
            name,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[f"*{suffix}" for suffix in suffixes],
        )
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(
            f"'hub:{address}': {reason}: check the name, the network and the access token"
        ) from error
    root = Path(folder)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.suffix in suffixes)
    if not files:
        raise UserError(
            f"'hub:{address}' has no file with the suffix {', '.join(suffixes)}: use a data set"
            " that has, or say by config.data.format what its files are"
        )
    chosen = [file for file in files if (split or "train") in re.split(r"[^a-z0-9]+", str(file))]
    if split and not chosen:
        raise UserError(
            f"'hub:{address}': no file of {[str(file) for file in files][:20]} is of split "
            f"{split!r}: name a split that is a word of a file's path"
        )
    yield from read_all([root / file for file in chosen or files], form)


def _hub_suffixes(form: str) -> tuple[str, ...]:
    """Those of the files to download. Text only where asked for: every data set has a README.md."""
    if not form:
        return tuple(suffix for suffix, name in OF_SUFFIX.items() if name != "text")
    return {"jsonl": (*FORMATS["jsonl"], ".json"), "text": (".txt",)}.get(form, FORMATS[form])


SOURCES = {
    "python_docs": _read_python_docs,
    "tfds": _read_tfds,
    "hub": _read_hub,
}
