"""Where documents come from: one entry of SOURCES for each kind of source."""

import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill_jax.data.compressed import SUFFIXES
from distill_jax.data.directories import files_of, left_out
from distill_jax.data.documents import Document
from distill_jax.data.files import read_all, read_files
from distill_jax.data.formats import FORMATS, TABLES, format_of, is_metadata
from distill_jax.data.python_docs import python_docs_files, read_python_docs
from distill_jax.data.rows import AS_NAMED, How, Read, Row, Tell, check_share, documents_of, line
from distill_jax.types import UserError
from distill_jax.words import first_line

# Fields of tfds records that may hold turns.
_TURNS = ("messages", "prompt", "completion", "conversations", "chosen", "rejected")


def read_documents(
    source: str,
    form: str = "",
    how: How = AS_NAMED,
    tell: Callable[[str], None] = lambda line: None,
) -> Generator[Document]:
    """The documents of a source, in the same order on every run. form: of files, see FORMATS.

    They are read as they are asked for, and not all held at once. how: records. tell: called with a
    line about what was read, and as what, when all are, or when the iterator is closed.

    `python_docs`                        the documentation of the running Python
    `tfds:name[:split][@directory]`      a TensorFlow dataset stored as ArrayRecord; the split is
                                         "train" unless given, the directory TFDS_DATA_DIR
    `hub:owner/name[:split][@revision]`  jsonl and parquet files of a Hugging Face dataset, or else
                                         its other records, or those of `form`: the files whose
                                         path has the split as a word ("train" unless given)
    anything else                        a path, a directory or a glob: records, or one document per
                                         file

    Raises UserError if the source does not exist, is malformed, holds no document, or has more bad
    records than may be left out.
    """
    kind, _, address = source.partition(":")
    known, reads = SOURCES.get(kind), []
    read, of = (known.read, address) if known else (read_files, source)
    try:
        yield from read(of, form, how, reads.append)
    except GeneratorExit:  # no more are wanted; of few records no share can be told
        if reads:
            tell(line(reads))
        raise
    check_share(reads, source)
    if not reads:
        raise UserError(f"data source {source!r} holds no document: check that it is not empty")
    left = [] if known else left_out(source, form)
    more = f" and {len(left) - 5:,} more" if len(left) > 5 else ""
    tell(line(reads) + (f"; files not read: {', '.join(left[:5])}{more}" if left else ""))


def files_of_source(source: str, form: str = "") -> list[Path]:
    """The files that its documents come from, in the same order on every run.

    Raises UserError as read_documents does where there are none.
    """
    kind, _, address = source.partition(":")
    known = SOURCES.get(kind)
    found = files_of(source, form) if known is None else known.files(address, form)
    inside = lambda path: sorted(p for p in path.rglob("*") if p.is_file())
    return [file for path in found for file in (inside(path) if path.is_dir() else [path])]


def check_source(source: str, form: str = "") -> None:
    """Raises UserError for files that are not there, or of no known format; reads their heads."""
    if source.partition(":")[0] not in SOURCES:
        for path in files_of(source, form):
            format_of(path, form)


def _read_python_docs(address: str, form: str, how: How, tell: Tell) -> Iterator[Document]:
    _check_python_docs(address)
    number = 0
    try:
        for document in read_python_docs():
            number += 1
            yield document
    finally:
        tell(Read("text", number))


def _files_python_docs(address: str, form: str) -> list[Path]:
    _check_python_docs(address)
    return python_docs_files()


def _check_python_docs(address: str) -> None:
    if address:
        raise UserError(f"'python_docs:{address}' is not a data set: write python_docs alone")


def _read_tfds(address: str, form: str, how: How, tell: Tell) -> Iterator[Document]:
    name, records = _tfds(address)
    named = ((f"tfds:{address}:{number}", record) for number, record in enumerate(records))
    rows = (Row(where, _plain(record, where)) for where, record in named)
    yield from documents_of(rows, name, how, tell)


def _files_tfds(address: str, form: str) -> list[Path]:
    return [Path(_tfds(address)[1].dataset_info.data_dir)]


def _tfds(address: str) -> tuple[str, Any]:
    """The name of a data set, and its records."""
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
    return name, records


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
            for name in _TURNS:
                turns = plain.get(name)
                if isinstance(turns, dict):
                    rows = zip(*turns.values(), strict=True)
                    plain[name] = [dict(zip(turns, row, strict=True)) for row in rows]
            return plain
    return value


def _read_hub(address: str, form: str, how: How, tell: Tell) -> Iterator[Document]:
    yield from read_all(_files_hub(address, form), form, how, tell)


def _files_hub(address: str, form: str) -> list[Path]:
    match = re.fullmatch(r"([^:@]+)(?::([^@]+))?(?:@(.+))?", address)
    if match is None:
        raise UserError(f"'hub:{address}' is not a data set: write hub:owner/name[:split]")
    name, split, revision = match.groups()
    import huggingface_hub  # here, because few runs need it

    groups = _hub_suffixes(form)
    for suffixes in groups:
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
        found = sorted(path for path in root.rglob("*") if path.name.endswith(suffixes))
        if files := [path.relative_to(root) for path in found if not is_metadata(path)]:
            break
    else:
        shown = ", ".join(suffix for suffixes in groups for suffix in suffixes)
        raise UserError(
            f"'hub:{address}' has no file with the suffix {shown}: use a data set that has, or say"
            " by config.data.format what its files are"
        )
    chosen = [file for file in files if (split or "train") in re.split(r"[^a-z0-9]+", str(file))]
    if split and not chosen:
        raise UserError(
            f"'hub:{address}': no file of {[str(file) for file in files][:20]} is of split "
            f"{split!r}: name a split that is a word of a file's path"
        )
    return [root / file for file in chosen or files]


def _hub_suffixes(form: str) -> list[tuple[str, ...]]:
    """Those of the files to download, or else of others, since many data sets have both.

    Text only where asked for: every data set has a README.md.
    """
    packed = lambda names: tuple(
        suffix + more
        for name in names
        if name not in TABLES
        for suffix in FORMATS[name]
        for more in SUFFIXES
    )
    if form:
        plain = {"jsonl": (*FORMATS["jsonl"], ".json"), "text": (".txt",)}.get(form, FORMATS[form])
        return [plain, packed([form])] if packed([form]) else [plain]
    others = [name for name in FORMATS if name not in ("text", "jsonl", "parquet")]
    more = tuple(suffix for name in others for suffix in FORMATS[name])
    return [FORMATS["jsonl"] + FORMATS["parquet"], more + packed(["jsonl", *others])]


class Source(NamedTuple):
    """A kind of source. read: its documents. files: those they come from, or their directories.

    Both are given what follows the kind and its colon, and the format of config.data.format; read
    also how records are read, and what is told of each file.
    """

    read: Callable[[str, str, How, Tell], Iterator[Document]]
    files: Callable[[str, str], list[Path]]


SOURCES = {
    "python_docs": Source(_read_python_docs, _files_python_docs),
    "tfds": Source(_read_tfds, _files_tfds),
    "hub": Source(_read_hub, _files_hub),
}
