"""The documents of a config as tokens, from a store that is written once."""

import hashlib
import itertools
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from distill_jax.data.cleaning import Removed, added
from distill_jax.data.encode import Tokenized, check_vocabulary, encode_documents
from distill_jax.data.limits import size_of
from distill_jax.data.store import Damaged, Store, join, open_store, token_type
from distill_jax.data.store_place import check_root, written_by_one
from distill_jax.data.store_writer import StoreWriter
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.files import remove
from distill_jax.report.number_formats import FORMATS, THIN
from distill_jax.seals import hash_of
from distill_jax.setup.hearing import DEAF, TELL_S, Hear
from distill_jax.setup.mixture import names_of
from distill_jax.setup.reading import Chosen
from distill_jax.types import UserError

LARGE = 10**8  # bytes of a store that are worth a line


class Part(NamedTuple):
    """What a text has of one source. name: a short one of the source. tokens: predicted ones."""

    name: str
    tokenized: Tokenized
    documents: int
    tokens: int
    fingerprint: str


class Text(NamedTuple):
    """Tokenized documents, what identifies them, and what should be known of how they were read.

    read: a line on what each source was read as. parts: of each source, in their order; tokenized
    has all of them, one after another. removed: by reason, of all sources.
    """

    tokenized: Tokenized
    documents: int
    fingerprint: str
    note: str
    read: tuple[str, ...]
    parts: tuple[Part, ...]
    removed: dict[str, Removed]


def tokenized(
    several: Sequence[Chosen], tokenizer: Tokenizer, vocab: int, hear: Hear = DEAF
) -> Text:
    """The tokens of documents; `vocab` is the smallest number of embedding rows among the models.

    Raises UserError where no token of a source within the limit would be trained.
    """
    names = names_of(tuple(chosen.source for chosen in several))
    found = [_part(c, tokenizer, vocab, hear, n) for c, n in zip(several, names, strict=True)]
    parts, notes = zip(*found, strict=True)
    identity = parts[0].fingerprint if len(parts) == 1 else hash_of([p.fingerprint for p in parts])
    documents, whole = sum(part.documents for part in parts), join([p.tokenized for p in parts])
    read = tuple(line for chosen in several for line in chosen.read)
    removed = added(chosen.removed for chosen in several)
    return Text(whole, documents, identity, max(notes), read, parts, removed)


def _part(
    chosen: Chosen, tokenizer: Tokenizer, vocab: int, hear: Hear, name: str
) -> tuple[Part, str]:
    """What is tokenized of a source, and a note on it."""
    store, limit = _stored(chosen, tokenizer, hear), chosen.max_tokens
    index = store.index
    check_vocabulary(index["highest"], tokenizer, vocab_size=vocab)
    if limit and index["predicted"] and not index["trained"]:
        raise UserError(
            f"{chosen.key} is {limit}: all of these tokens are of prompts, which are not trained:"
            " use more"
        )
    identity, note = index["sha256"], ""
    if index["predicted"] == limit:  # the last document may be cut
        identity = hashlib.sha256(f"{identity}:{limit}".encode()).hexdigest()
    if tokenizer.chat_template and index["pairs"]:
        note = "prompts and completions are joined as they are (data.template=chat: as turns)"
    return Part(name, store.tokenized, index["documents"], index["predicted"], identity), note


def _stored(chosen: Chosen, tokenizer: Tokenizer, hear: Hear) -> Store:
    """The store of some documents; it is written where there is none, or one that is not whole."""
    identity = chosen.identity()
    made_by = [tokenizer.fingerprint, tokenizer.chat_template, metadata.version("tokenizers")]
    directory = chosen.root / hash_of([identity, *made_by])[:32]
    damaged = None
    try:
        if store := open_store(directory):
            return store
    except Damaged as error:
        damaged = error
    check_root(chosen.root)
    began = time.monotonic()
    waiting = lambda: hear.how_far(
        f"waits {time.monotonic() - began:.0f} s for another process that writes {directory}"
    )
    with written_by_one(directory, waiting):
        try:
            if store := open_store(directory):  # the other one has written it
                return store
        except Damaged:
            hear.line(f"the tokenised text in {directory} is written again: {damaged}")
            remove(directory)
        _write(chosen, tokenizer, directory, hear)
        if chosen.identity() != identity:
            remove(directory)
            raise UserError(
                "the files of the text have changed while they were read: run again once nothing"
                " writes to them"
            )
        return open_store(directory)


def _write(chosen: Chosen, tokenizer: Tokenizer, directory: Path, hear: Hear) -> None:
    writer = StoreWriter(directory, token_type(tokenizer.vocab_size))
    counts = writer.counts
    if before := counts["documents"]:
        hear.line(f"tokenising goes on after {before:,} of {chosen.count:,} documents")
    left = chosen.max_tokens - counts["predicted"] if chosen.max_tokens else 0
    documents = chosen.documents()
    pace = _Pace(chosen, hear, sum(map(size_of, itertools.islice(documents, before))))
    try:
        if left or not chosen.max_tokens:
            for one in encode_documents(documents, tokenizer, max_tokens=left):
                writer.add(one)
                pace.add(size_of(one.document), counts)
        if counts["documents"] < chosen.count and not chosen.max_tokens:
            raise UserError("the text has become shorter while it was read: run again")
        writer.finish()
    finally:
        writer.close()
    written = sum(file.stat().st_size for file in directory.iterdir())
    if written >= LARGE:
        every = sum(file.stat().st_size for file in chosen.root.rglob("*") if file.is_file())
        hear.line(
            f"tokenised text: {_bytes(written)} in {directory}, of {_bytes(every)} of all texts in"
            f" {chosen.root}, which may be removed at any time"
        )


class _Pace:
    """Tells how far the writing is: by the bytes of the text, or by tokens if these have a limit.

    Documents come in batches, so speeds are those since the first document of the first one.
    """

    def __init__(self, chosen: Chosen, hear: Hear, size: int):
        self._chosen, self._hear, self._size = chosen, hear, size
        self._began: tuple[float, int, int] | None = None
        self._told = 0.0

    def add(self, size: int, counts: dict[str, int]) -> None:
        """One more document. counts: of all that is written."""
        now, self._size = time.monotonic(), self._size + size
        if self._began is None:
            self._began, self._told = (now, self._size, counts["tokens"]), now
        elif now - self._told > TELL_S:
            self._told = now
            self._tell(now, counts)

    def _tell(self, now: float, counts: dict[str, int]) -> None:
        began, size, tokens = self._began
        speed = (self._size - size) / (now - began)
        rate = (counts["tokens"] - tokens) / (now - began)
        if self._chosen.max_tokens:
            done, total, pace = counts["predicted"], self._chosen.max_tokens, rate
            note = f"{done:,}/{total:,} tokens"
        else:
            done, total, pace = self._size, self._chosen.size, speed
            note = f"{done / 1e6:,.0f}/{total / 1e6:,.0f} MB"
        left_s = (total - done) / pace if pace else None
        more = f"{speed / 1e6:,.1f} MB/s"
        self._hear.how_far(f"{note}  {rate:,.0f} tokens/s", left_s, None, more)


def _bytes(size: int) -> str:
    return FORMATS["bytes"](size).replace(THIN, " ")
