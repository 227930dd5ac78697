"""The documents of a config: read by format, split, limited, put through a template.

storing.py tokenises them. They are read as streams, once to count them and to see what is wrong
with any, and again to be tokenised; neither is done for files that are as they were the last time.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from distill_jax import __version__
from distill_jax.config import choose, flatten
from distill_jax.data.alpaca import as_plain
from distill_jax.data.cleaning import Cleaner, Cleaning, Removed, added, asked, judge_of, staying
from distill_jax.data.documents import Document, as_chat
from distill_jax.data.limits import Limits
from distill_jax.data.sources import files_of_source
from distill_jax.data.store_place import contents, remembered, states, store_root
from distill_jax.seals import hash_of
from distill_jax.setup.cleaning import cleaning_of, identity_of
from distill_jax.setup.hearing import DEAF, Hear
from distill_jax.setup.mixture import sources_of, told_of_shared_files
from distill_jax.setup.scanning import FORM, part_of, read, removed_of, scan, scan_again
from distill_jax.types import UserError

TEMPLATES = {"plain": as_plain, "chat": as_chat}  # data.template

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
    read: a line on what the source was read as, where it was not said of another part. removed:
    what cleaning.py removed from a source, of the part to train on.
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
    removed: dict[str, Removed]


def training_documents(
    c: ConfigDict, hear: Hear = DEAF
) -> tuple[tuple[Chosen, ...], tuple[Chosen, ...]]:
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
    files = lambda source: files_of_source(source, c.data.format)
    if line := told_of_shared_files(sources, eval_source, files):
        hear.line(line)
    limits, eval_limits = _limits(c)
    cleaning = cleaning_of(c)
    cleaner = Cleaner(cleaning) if asked(cleaning) else None
    again = asked(cleaning, of_training=True)
    first = {"": Limits() if again else limits}
    if eval_source:
        train = [part for source in sources for part in _parts(c, source, first, hear, cleaner)]
        held = _parts(c, eval_source, {"eval_": eval_limits}, hear)
    else:
        both = first | {"eval_": eval_limits}
        train, held = zip(
            *(_parts(c, source, both, hear, cleaner) for source in sources), strict=True
        )
    if again:
        train = _without(c, train, held, cleaning, limits, hear)
    if c.data.template == "chat" and all(part.texts_only for part in (*train, *held)):
        raise UserError(
            "config.data.template is chat and every record is a text, which has no turns: give"
            " records with prompt and completion, or leave the template out"
        )
    return tuple(part.chosen for part in train), tuple(part.chosen for part in held)


def evaluation_documents(c: ConfigDict, hear: Hear = DEAF, *, own: bool) -> tuple[Chosen, ...]:
    """What a job that trains nothing measures: data.eval_source, or else data.source, limited.

    own: what a training run of this config holds out.
    """
    if own:
        return training_documents(c, hear)[1]
    sources = (c.data.eval_source,) if c.data.eval_source else sources_of(c)
    if not sources:
        raise UserError("config.data.eval_source is empty: give a path or glob, or python_docs")
    _, limits = _limits(c)
    parts = [part for source in sources for part in _parts(c, source, {"eval_": limits}, hear)]
    return tuple(part.chosen for part in parts)


def _limits(c: ConfigDict) -> tuple[Limits, Limits]:
    """Those of training and of evaluation."""
    return (
        Limits(c.data.max_documents, c.data.max_tokens),
        Limits(c.data.eval_max_documents, c.data.eval_max_tokens),
    )


class _Part(NamedTuple):
    """texts_only: no record has turns, or a prompt and a completion.

    plain: the documents before the template.
    """

    chosen: Chosen
    texts_only: bool
    plain: Callable[[], Iterator[Document]]


def _parts(
    c: ConfigDict,
    source: str,
    limits: dict[str, Limits],
    hear: Hear,
    cleaner: Cleaner | None = None,
) -> list[_Part]:
    """The documents of a source: all of them, or those to train on and those that are held out.

    limits: those of each part, by how its keys begin.
    """
    root = store_root(c.data.store)
    # What does not read all of a source should not hash all of it.
    whole = not all(map(any, limits.values()))
    fraction = c.data.held_out_fraction if len(limits) > 1 else None
    # What cleans a source, and the sources before it, of which it may hold copies.
    clean = [identity_of(c), *cleaner.before] if cleaner else []
    of = lambda: [_files(c, source, root, whole=whole), _settings(c), fraction, *clean]
    found = remembered(
        _scans(root, [of(), *limits.values()]),
        lambda: scan(c, source, fraction, [*limits.values()], cleaner, hear),
    )
    border, parts = found["border"], []
    if cleaner:
        judged = lambda: itertools.islice(read(c, source), found["judged"])
        cleaner.passed(hash_of(of()), judged)
    for number, (name, limit) in enumerate(limits.items()):
        count, size, texts_only = (found[key][number] for key in ("counts", "sizes", "texts_only"))

        def plain(number=number, count=count) -> Iterator[Document]:
            kept = staying(read(c, source), found["stay"]) if cleaner else read(c, source)
            belongs = lambda document: part_of(document, border) == number
            return itertools.islice(filter(belongs, kept), count)

        identity = lambda number=number, limit=limit: hash_of(
            [of(), number, limit, c.data.template]
        )
        key = f"config.data.{name}max_tokens"
        lines = tuple(f"{source}: {line}" for line in found["read"]) if number == 0 else ()
        removed = removed_of(found) if number == 0 else {}
        of_part = (count, size, limit.tokens, key, identity, root, lines, removed)
        parts.append(_Part(Chosen(source, _templated(c, plain), *of_part), texts_only, plain))
    return parts


def _without(
    c: ConfigDict,
    train: Sequence[_Part],
    held: Sequence[_Part],
    cleaning: Cleaning,
    limit: Limits,
    hear: Hear,
) -> list[_Part]:
    """The training parts of all sources without what has words of any held-out document."""
    known = functools.cache(
        lambda: judge_of(
            cleaning, itertools.chain(*(part.plain() for part in held)), of_training=True
        )
    )
    steps, parts = asked(cleaning, of_training=True), []
    for part in train:
        chosen = part.chosen
        of = lambda chosen=chosen: [
            "without", chosen.identity(), *(one.chosen.identity() for one in held), limit,
        ]  # fmt: skip
        found = remembered(
            _scans(chosen.root, of()),
            lambda part=part: scan_again(part.plain(), known(), steps, limit, hear),
        )
        [count], [size], [texts_only] = (found[k] for k in ("counts", "sizes", "texts_only"))

        def plain(part=part, found=found, count=count) -> Iterator[Document]:
            return itertools.islice(staying(part.plain(), found["stay"]), count)

        chosen = chosen._replace(
            documents=_templated(c, plain), count=count, size=size, max_tokens=limit.tokens,
            identity=lambda of=of: hash_of(of()),
            removed=added([chosen.removed, removed_of(found)]),
        )  # fmt: skip
        parts.append(_Part(chosen, texts_only, plain))
    return parts


def _templated(
    c: ConfigDict, plain: Callable[[], Iterator[Document]]
) -> Callable[[], Iterator[Document]]:
    # After the split, so that what is held out does not depend on the template.
    template = TEMPLATES[choose("data.template", c.data.template, TEMPLATES)]
    return lambda: map(template, plain())


def _scans(root: Path, identity: list[Any]) -> Path:
    return root / "scans" / f"{hash_of([FORM, *identity])}.json"


def _files(c: ConfigDict, source: str, root: Path, *, whole: bool) -> list[list[Any]]:
    files = files_of_source(source, c.data.format)
    memory = root / "files" / f"{hash_of([source, c.data.format])}.json"
    return contents(files, memory) if whole else states(files)


def _settings(c: ConfigDict) -> dict[str, Any]:
    """What else the documents of a source depend on; a key that nobody thought of is among it."""
    keys = {f"data.{name}" for name in (*_OF_ROWS, *_OF_PARTS)}
    data = {k: v for k, v in flatten(c).items() if k.startswith("data.") and k not in keys}
    return {"version": __version__, **{k: v for k, v in data.items() if ".clean." not in k}}
