"""What config.data.clean removes from a text, and how it is told."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from distill_jax.data.cleaning import STEPS, Cleaning, Removed
from distill_jax.seals import sha256_of
from distill_jax.setup.user_function import error_line, load_function
from distill_jax.types import UserError
from distill_jax.words import cut, plural


def cleaning_of(c: ConfigDict) -> Cleaning:
    """What to remove. Raises UserError for bounds that no text keeps, or a filter that is none."""
    clean = c.data.clean
    if 0 < clean.max_characters < clean.min_characters:
        raise UserError(
            f"config.data.clean.min_characters is {clean.min_characters} and max_characters"
            f" {clean.max_characters}: no document is as long as both, so change one"
        )
    return Cleaning(
        min_characters=clean.min_characters,
        max_characters=clean.max_characters,
        filter=_filter(clean.filter) if clean.filter else None,
        exact_duplicates=clean.exact_duplicates,
        near_duplicates=clean.near_duplicates,
        decontaminate=clean.decontaminate,
    )


def identity_of(c: ConfigDict) -> dict[str, Any]:
    """What identifies what is removed: the keys, and the filter's file, which may change."""
    file = c.data.clean.filter.rpartition(":")[0]
    return c.data.clean.to_dict() | {"file": sha256_of(Path(file)) if file else ""}


def removed_line(removed: Mapping[str, Removed]) -> str:
    """What was removed, by reason, in words."""
    parts = [f"{one.documents:,} {STEPS[name].words}{_what(one)}" for name, one in removed.items()]
    return f"removed: {'; '.join(parts)}" if parts else ""


def _what(one: Removed) -> str:
    if not one.documents:
        return ""
    names = [*map(cut, one.names), *(["..."] if one.documents > len(one.names) else [])]
    return f" ({one.characters:,} characters: {', '.join(names)})"


def removed_json(removed: Mapping[str, Removed]) -> list[dict[str, Any]]:
    """The same as a part of report.json."""
    return [
        {
            "reason": STEPS[name].words,
            "documents": one.documents,
            "characters": one.characters,
            "first": list(one.names),
        }
        for name, one in removed.items()
    ]


def check_left(count: int, removed: Mapping[str, Removed], of: str) -> None:
    """Raises UserError where a text is empty because of what was removed."""
    total = sum(one.documents for one in removed.values())
    if count or not total:
        return
    most = max(removed, key=lambda name: removed[name].documents)
    keys = " or ".join(f"config.data.clean.{key}" for key in STEPS[most].keys)
    raise UserError(
        f"all {plural(total, 'document')} {of} are removed, {removed[most].documents:,} of them as"
        f" {STEPS[most].words}: change {keys}, or give other text"
    )


def _filter(address: str) -> Callable[[str, str], bool]:
    function = load_function("data.clean.filter", address, "(text) that gives True or False")

    def keep(text: str, name: str) -> bool:
        try:
            value = function(text)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"config.data.clean.filter {address} failed on {name} ({error_line(error)}):"
                " it must give True or False for any text"
            ) from error
        if not isinstance(value, bool | np.bool_):  # a score, or None of a return that is missing
            raise UserError(
                f"config.data.clean.filter {address} gave {cut(repr(value))} for {name}: it must"
                " give True (the document stays) or False"
            )
        return bool(value)

    return keep
