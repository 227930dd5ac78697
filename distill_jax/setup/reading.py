"""The documents of a config: read by format, split, limited, put through a template.

storing.py tokenises them. They are read as streams, once to count them and to see what is wrong
with any, and again to be tokenised; neither is done for files that are as they were the last time.
"""

import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from distill_jax import __version__
from distill_jax.config import choose, flatten
from distill_jax.data.alpaca import as_plain
from distill_jax.data.documents import Document, as_chat, border_of, place_of
from distill_jax.data.formats import FORMATS
from distill_jax.data.limits import Limits, filled_by, size_of
from distill_jax.data.rows import ON_ERROR, How
from distill_jax.data.shapes import parse_fields
from distill_jax.data.sources import files_of_source, read_documents
from distill_jax.data.store_place import contents, remembered, states, store_root
from distill_jax.seals import hash_of
from distill_jax.setup.mixture import sources_of
from distill_jax.types import UserError

TEMPLATES = {"plain": as_plain, "chat": as_chat}  # data.template

# Fixed: every seed of a study holds out the same documents.
SPLIT_SEED = 0
# Keys of data.* that do not change what the documents of a source are: what is made of their
# tokens, and what a Part says by itself.
_OF_ROWS = ("seq_len", "batch_size", "microbatches", "prefetch", "weights")
_OF_PARTS = (
    "store", "source", "eval_source", "template", "held_out_fraction",
    "max_documents", "max_tokens", "eval_max_documents", "eval_max_tokens",
)  # fmt: skip


class Chosen(NamedTuple):
    """Documents of one source, and how many of their tokens are predicted at most (0: all).

    source: as it is given. documents: gives them, from the first one on at every call. count: their
    number. size: of their content in bytes. key: of the limit of tokens, for errors. identity:
    gives what identifies the documents by the files as they are now. root: the directory of stores.
    read: a line on what the source was read as, where it was not said of another part.
    """

    source: str
    documents: Callable[[], Iterator[Document]]
    count: int
    size: int
    max_tokens: int
    key: str
    identity: Callable[[], str]
    root: Path
    read: tuple[str, ...]


def training_documents(c: ConfigDict) -> tuple[tuple[Chosen, ...], tuple[Chosen, ...]]:
    """Documents to train on and to evaluate on, source by source.

    What is evaluated on is data.eval_source, or what is held out of each source of data.source.

    The split comes before the limits: what is held out does not depend on how much is trained on.
    """
    sources, eval_source = sources_of(c), c.data.eval_source
    if not sources:
        raise UserError(
            "config.data.source is empty: give a path or glob of jsonl, parquet or text,"
            " tfds:name, hub:name or python_docs"
        )
    limits, eval_limits = _limits(c)
    if eval_source:
        train = [part for source in sources for part in _parts(c, source, {"": limits})]
        held = _parts(c, eval_source, {"eval_": eval_limits})
    else:
        both = {"": limits, "eval_": eval_limits}
        train, held = zip(*(_parts(c, source, both) for source in sources), strict=True)
    if c.data.template == "chat" and all(part.texts_only for part in (*train, *held)):
        raise UserError(
            "config.data.template is chat and every record is a text, which has no turns: give"
            " records with prompt and completion, or leave the template out"
        )
    return tuple(part.chosen for part in train), tuple(part.chosen for part in held)


def evaluation_documents(c: ConfigDict, *, own: bool) -> tuple[Chosen, ...]:
    """What a job that trains nothing measures: data.eval_source, or else data.source, limited.

    own: what a training run of this config holds out.
    """
    if own:
        return training_documents(c)[1]
    sources = (c.data.eval_source,) if c.data.eval_source else sources_of(c)
    if not sources:
        raise UserError("config.data.eval_source is empty: give a path or glob, or python_docs")
    _, limits = _limits(c)
    parts = [part for source in sources for part in _parts(c, source, {"eval_": limits})]
    return tuple(part.chosen for part in parts)


def _limits(c: ConfigDict) -> tuple[Limits, Limits]:
    """Those of training and of evaluation."""
    return (
        Limits(c.data.max_documents, c.data.max_tokens),
        Limits(c.data.eval_max_documents, c.data.eval_max_tokens),
    )


class _Part(NamedTuple):
    chosen: Chosen
    texts_only: bool  # no record has turns, or a prompt and a completion


def _parts(c: ConfigDict, source: str, limits: dict[str, Limits]) -> list[_Part]:
    """The documents of a source: all of them, or those to train on and those that are held out.

    limits: those of each part, by how its keys begin.
    """
    root = store_root(c.data.store)
    template = TEMPLATES[choose("data.template", c.data.template, TEMPLATES)]
    # What does not read all of a source should not hash all of it.
    whole = not all(map(any, limits.values()))
    fraction = c.data.held_out_fraction if len(limits) > 1 else None
    of = lambda: [_files(c, source, root, whole=whole), _settings(c), fraction]
    scan = remembered(
        root / "scans" / f"{hash_of([of(), *limits.values()])}.json",
        lambda: _scan(c, source, fraction, [*limits.values()]),
    )
    border, found = scan["border"], []
    for number, (name, limit) in enumerate(limits.items()):
        belongs = lambda document, number=number: _part_of(document, border) == number
        count, size, texts_only = (scan[key][number] for key in ("counts", "sizes", "texts_only"))

        def documents(belongs=belongs, count=count) -> Iterator[Document]:
            kept = itertools.islice(filter(belongs, _read(c, source)), count)
            # After the split, so that what is held out does not depend on the template.
            return map(template, kept)

        identity = lambda number=number, limit=limit: hash_of(
            [of(), number, limit, c.data.template]
        )
        key = f"config.data.{name}max_tokens"
        read = tuple(f"{source}: {line}" for line in scan["read"]) if number == 0 else ()
        of_part = (count, size, limit.tokens, key, identity, root, read)
        chosen = Chosen(source, documents, *of_part)
        found.append(_Part(chosen, texts_only))
    return found


def _files(c: ConfigDict, source: str, root: Path, *, whole: bool) -> list[list[Any]]:
    files = files_of_source(source, c.data.format)
    memory = root / "files" / f"{hash_of([source, c.data.format])}.json"
    return contents(files, memory) if whole else states(files)


def _settings(c: ConfigDict) -> dict[str, Any]:
    """What else the documents of a source depend on; a key that nobody thought of is among it."""
    keys = {f"data.{name}" for name in (*_OF_ROWS, *_OF_PARTS)}
    data = {k: v for k, v in flatten(c).items() if k.startswith("data.") and k not in keys}
    return {"version": __version__, **data}


def _scan(
    c: ConfigDict, source: str, fraction: float | None, limits: list[Limits]
) -> dict[str, Any]:
    """Reads a source up to the document with which the limits of all parts are reached, if any.

    Gives the number of documents of each part, cut at its limit, their bytes, and whether all are
    texts, the border between the parts, and a line on what the source was read as.
    """
    border, read = None, []
    if fraction is not None:
        places = (place_of(document, SPLIT_SEED) for document in _read(c, source))
        border = border_of(places, fraction)
    counts, sizes = [0] * len(limits), [0] * len(limits)
    texts_only, full = [True] * len(limits), [False] * len(limits)
    filled = [filled_by(some) for some in limits]
    with closing(_read(c, source, read.append)) as documents:
        for document in documents:
            part = _part_of(document, border)
            full[part] = filled[part](document)
            if not 0 < limits[part].documents <= counts[part]:
                counts[part] += 1
                sizes[part] += size_of(document)
                texts_only[part] &= document.text is not None
            if all(full):
                break
    found = {"border": border, "counts": counts, "sizes": sizes, "texts_only": texts_only}
    return found | {"read": read}


def _part_of(document: Document, border: float | None) -> int:
    """0, or 1 where it is held out."""
    return 0 if border is None else int(place_of(document, SPLIT_SEED) < border)


def _read(
    c: ConfigDict, source: str, tell: Callable[[str], None] = lambda line: None
) -> Generator[Document]:
    form = c.data.format and choose("data.format", c.data.format, FORMATS)
    return read_documents(source, form, how_of(c), tell)


def how_of(c: ConfigDict) -> How:
    """How the records of a config's sources are read. Raises UserError for what is no shape."""
    skip = choose("data.on_error", c.data.on_error, ON_ERROR) == "skip"
    return How(parse_fields(c.data.fields), skip)
