"""The sources of a training text, what they are called, and how much of each is read."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from distill_jax.types import UserError
from distill_jax.words import cut, plural


def sources_of(c: ConfigDict) -> tuple[str, ...]:
    """config.data.source as a tuple; empty where there is none.

    Raises UserError where one is empty or given twice, or config.data.weights are not one for each.
    """
    given = c.data.source
    sources = ((given,) if given else ()) if isinstance(given, str) else tuple(given)
    for source in sources:
        if not source or sources.count(source) > 1:
            what = "an empty text" if not source else f"{cut(repr(source))} twice"
            raise UserError(f"config.data.source has {what}: give each source once")
    if len(c.data.weights) not in (0, len(sources)):
        raise UserError(
            f"config.data.weights has {len(c.data.weights)} numbers and config.data.source"
            f" {len(sources)} sources: give one number for each, or none"
        )
    return sources


def told_of_shared_files(
    sources: Sequence[str], held_out: str, files: Callable[[str], list[Path]]
) -> str:
    """A line on files of the held-out source that are trained on, too; empty where none is.

    files: those of a source. Raises UserError for a file that two sources have, however they name
    it.
    """
    of = {}
    for source in sources:
        for file in map(os.path.realpath, files(source)):
            if (other := of.setdefault(file, source)) != source:
                raise UserError(
                    f"config.data.source has {cut(file)} in {cut(repr(other))} and in"
                    f" {cut(repr(source))}: give each file once"
                )
    measured = [os.path.realpath(file) for file in files(held_out)] if held_out else []
    if not (both := [file for file in measured if file in of]):
        return ""
    return (
        f"{len(both)} of {plural(len(measured), 'file')} of config.data.eval_source are trained on,"
        f" too, as {cut(both[0])}: what is measured there is not of new text"
    )


def names_of(sources: tuple[str, ...]) -> tuple[str, ...]:
    """Short names: those of the files, or the whole texts where two would be called the same."""
    short = tuple(Path(source).name or source for source in sources)
    return short if len(set(short)) == len(short) else sources
