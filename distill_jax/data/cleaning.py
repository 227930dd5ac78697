"""What is removed from a text: each reason is one function, and what it removes is counted.

Documents pass as a stream. Which ones stay, and the counts, are functions of the text alone.
"""

import base64
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Self

import numpy as np

from distill_jax.data import contamination
from distill_jax.data.documents import Document, content_hash
from distill_jax.data.limits import characters_of

Keep = Callable[[Document], bool]  # given one document after another: whether it stays
Judge = Callable[[Document], str | None]  # the same: the step that removes it, if any

NAMED = 3  # removed documents that are named
# Their turns are an instruction that conversations share, and not what one of them is about.
_NOT_CONTENT = ("system", "developer")


class Cleaning(NamedTuple):
    """What to remove; the defaults remove nothing.

    min_characters, max_characters  bounds of a document's length; 0: none
    filter                          whether a text stays; may raise UserError
    exact_duplicates                copies of an earlier document
    near_duplicates                 least Jaccard index of 5-word runs with an earlier one; 0: off
    decontaminate                   documents that share 13 words in a row with held-out text
    """

    min_characters: int = 0
    max_characters: int = 0
    filter: Callable[[str, str], bool] | None = None  # (text, name of the document)
    exact_duplicates: bool = False
    near_duplicates: float = 0.0
    decontaminate: bool = False


class Removed(NamedTuple):
    """How much a step removed; names: of the first documents."""

    documents: int = 0
    characters: int = 0
    names: tuple[str, ...] = ()

    def with_one(self, document: Document) -> Self:
        """With one more document."""
        return self.plus(Removed(1, characters_of(document), (document.name,)))

    def plus(self, more: Self) -> Self:
        """Both together."""
        return Removed(
            self.documents + more.documents,
            self.characters + more.characters,
            (*self.names, *more.names)[:NAMED],
        )


class Step(NamedTuple):
    """One reason to remove documents.

    make: (what to remove, the held-out documents) -> what stays.
    keys: of Cleaning; any of them asks for it.
    words: what the removed documents are.
    of_training: needs the held-out text, so it comes after the split into training and held-out
    text, and removes from the first alone.
    """

    make: Callable[[Cleaning, Iterable[Document]], Keep]
    keys: tuple[str, ...]
    words: str
    of_training: bool = False


def asked(cleaning: Cleaning, *, of_training: bool = False) -> tuple[str, ...]:
    """The steps that are asked for: those before the split, or of_training those after it."""
    return tuple(
        name
        for name, step in STEPS.items()
        if step.of_training == of_training and any(getattr(cleaning, key) for key in step.keys)
    )


def judge_of(
    cleaning: Cleaning, held_out: Iterable[Document] = (), *, of_training: bool = False
) -> Judge:
    """What tells why a document is removed: the name of a step, or None where it stays.

    It is given one document after another, each once.
    """
    names = asked(cleaning, of_training=of_training)
    keeps = {name: STEPS[name].make(cleaning, held_out) for name in names}
    return lambda document: next((name for name, keep in keeps.items() if not keep(document)), None)


def judged(
    documents: Iterable[Document], judge: Judge, stay: bytearray, removed: dict[str, Removed]
) -> Iterator[Document]:
    """The documents that stay, in their order.

    stay: 1 or 0 of each document that was read before, at this or another reading of the same
    documents; it and `removed` grow with every further one.
    """
    for place, document in enumerate(documents):
        if place == len(stay):
            reason = judge(document)
            stay.append(reason is None)
            if reason is not None:
                removed[reason] = removed.get(reason, Removed()).with_one(document)
        if stay[place]:
            yield document


class Cleaner:
    """Judges the documents of several sources, one source after another, as if they were one.

    asked: the steps. before: what identifies the sources that came before.
    """

    def __init__(self, cleaning: Cleaning):
        self.asked, self.before = asked(cleaning), []
        self._judge = judge_of(cleaning)
        self._unread: list[Callable[[], Iterable[Document]]] = []
        self._reads = False

    def judged(
        self, documents: Iterable[Document], stay: bytearray, removed: dict[str, Removed]
    ) -> Iterator[Document]:
        """As above, of one source, at its first reading or another one."""
        for unread in self._unread:
            for document in unread():
                self._judge(document)
        self._unread, self._reads = [], True
        return judged(documents, self._judge, stay, removed)

    def passed(self, identity: str, documents: Callable[[], Iterable[Document]]) -> None:
        """A source is done. documents: gives those that were judged, now or long ago.

        Where nothing was judged now, they are read before the next source is judged, if one is.
        """
        if not self._reads:
            self._unread.append(documents)
        self._reads = False
        self.before.append(identity)


def packed(stay: bytearray) -> str:
    """`stay` of judged() as text, 0.2 bytes per document."""
    bits = np.packbits(np.frombuffer(stay, np.uint8)).tobytes()
    return base64.b64encode(zlib.compress(len(stay).to_bytes(8, "little") + bits)).decode()


def staying(documents: Iterable[Document], packed_stay: str) -> Iterator[Document]:
    """The documents that stay; none beyond those that were judged."""
    data = zlib.decompress(base64.b64decode(packed_stay))
    count, bits = int.from_bytes(data[:8], "little"), np.frombuffer(data, np.uint8, offset=8)
    return itertools.compress(documents, np.unpackbits(bits, count=count))


def added(counts: Iterable[dict[str, Removed]]) -> dict[str, Removed]:
    """Several counts as one, in the order of application."""
    total = {}
    for one in counts:
        for name, more in one.items():
            total[name] = total.get(name, Removed()).plus(more)
    return {name: total[name] for name in STEPS if name in total}


def text_of(document: Document) -> str:
    """The text of a document, of a pair both, of turns all but those of the system."""
    if document.text is not None:
        return document.text
    if document.pair is not None:
        return "\n".join(document.pair)
    turns = (turn for turn in document.messages if turn.get("role") not in _NOT_CONTENT)
    return "\n".join(turn["content"] or "" for turn in turns)


def _lengths(cleaning: Cleaning, _) -> Keep:
    least, most = cleaning.min_characters, cleaning.max_characters or float("inf")
    return lambda document: least <= characters_of(document) <= most


def _filter(cleaning: Cleaning, _) -> Keep:
    return lambda document: cleaning.filter(text_of(document), document.name)


def _exact_duplicates(*_) -> Keep:
    """By content, without name and label. 110 bytes per document."""
    seen = set()

    def keep(document: Document) -> bool:
        before = len(seen)
        seen.add(content_hash(document)[:16])
        return len(seen) > before

    return keep


def _near_duplicates(cleaning: Cleaning, _) -> Keep:
    """The first of those that are alike stays, as in near_duplicates.py."""
    from distill_jax.data import near_duplicates  # here, because few runs need it and it is slow

    signatures = near_duplicates.Signatures(cleaning.near_duplicates)

    def keep(document: Document) -> bool:
        signature = near_duplicates.signature(text_of(document))
        if signature is None:
            return True
        alike = signatures.has_alike(signature)
        if not alike:
            signatures.add(signature)
        return not alike

    return keep


def _decontaminate(_, held_out: Iterable[Document]) -> Keep:
    """As in contamination.py."""
    known = contamination.own_runs(map(text_of, held_out))
    return lambda document: not contamination.shares(text_of(document), known)


# In the order of application: a copy is compared with what stays, so judgements of one document by
# itself come first.
STEPS = {
    "length": Step(_lengths, ("min_characters", "max_characters"), "too short or too long"),
    "filter": Step(_filter, ("filter",), "refused by the filter"),
    "exact_duplicates": Step(_exact_duplicates, ("exact_duplicates",), "copies"),
    "near_duplicates": Step(_near_duplicates, ("near_duplicates",), "near copies"),
    "decontaminate": Step(
        _decontaminate, ("decontaminate",), "with words of held-out text", of_training=True
    ),
}
