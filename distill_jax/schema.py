"""What the comments of configs/base.py say of every key: its meaning, the limits of a number."""

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from distill_jax.config import BASE, choose, leaves, load_base
from distill_jax.losses import divergences, terms
from distill_jax.quantised import LARGEST
from distill_jax.types import UserError
from distill_jax.words import cut

DTYPES = ("float32", "bfloat16", "float16")
PARAMETER_AXES = ("fsdp", "expert", "tensor")  # mesh axes that the families' rules name
# Keys that only a few words can be, which no registry has.
CHOICES = {
    "teacher.dtype": (*DTYPES, *LARGEST),
    "student.dtype": DTYPES,
    "model.compute_dtype": DTYPES,
    "teacher.shard": PARAMETER_AXES,
    "student.shard": PARAMETER_AXES,
    "export.format": ("hf", "gguf"),
    "export.dtype": (*DTYPES, "q8_0"),
    "export.checkpoint": ("latest", "best"),  # or a step
}
_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_LIMITS = re.compile(rf"\[((?:({_NUMBER}), or )?({_NUMBER}) to ({_NUMBER}))\] ")


class Limits(NamedTuple):
    """What a number may be: least to most, or one that stands apart, such as 0 for none.

    text: of the limits. meaning: of the number.
    """

    text: str
    apart: float | None
    least: float
    most: float
    meaning: str

    def hold(self, value: float) -> bool:
        """Whether a number is within; NaN never is."""
        return value == self.apart or self.least <= value <= self.most


def limits_of(meaning: str) -> Limits | None:
    """The limits at the beginning of a comment; None where it has none.

    >>> limits_of("[0, or 0.01 to 100] divides the logits")[:4]
    ('0, or 0.01 to 100', 0.0, 0.01, 100.0)
    """
    if not (found := _LIMITS.match(meaning)):
        return None
    text, apart, least, most = found.groups()
    rest = meaning[found.end() :]
    return Limits(text, apart and float(apart), float(least), float(most), rest)


@cache
def key_limits() -> Mapping[str, Limits]:
    """The limits of every key that has a number, or numbers."""
    found = {key: limits_of(meaning) for key, meaning in key_meanings().items()}
    return {key: limits for key, limits in found.items() if limits}


def check_values(values: Mapping[str, Any]) -> None:
    """Raises UserError for the first number beyond its limits, or word that is no choice.

    values: flat, as by config.leaves; keys may be missing.
    """
    limits = key_limits()
    for key, value in values.items():
        several = value if isinstance(value, tuple | list) else (value,)
        if key in CHOICES and not (key == "export.checkpoint" and value.isdecimal()):
            for word in several:
                choose(key, word, CHOICES[key])
        for number in several:
            if key in limits and not limits[key].hold(number):
                text, *_, meaning = limits[key]
                raise UserError(f"config.{key} is {cut(str(value))}: use {text} ({meaning})")


def key_meanings() -> dict[str, str]:
    """What the comments say of each key and each group that has one, in the order of base.py.

    A comment stands at the end of the line that sets a key, or alone above it.
    """
    said = _assigned(BASE.read_text(encoding="utf-8"))
    for module, registry in ((divergences, "DIVERGENCES"), (terms, "ADAPTIVE")):
        for name, comment in _entries(inspect.getsource(module), registry).items():
            for line in comment.split("\n"):
                parameter, _, meaning = line.partition(": ")
                said[f"terms.{name}.{parameter}"] = meaning
    for name in divergences.DIVERGENCES:
        said[f"terms.{name}"] = _first_line(name)
    for key in leaves(load_base()):
        group, _, name = key.rpartition(".")
        any_term = f"terms.*.{name}"
        if group.startswith("terms.") and key not in said and any_term in said:
            said[key] = said[any_term]
    groups = list(dict.fromkeys(key.partition(".")[0] for key in said))
    keys = sorted(said, key=lambda key: groups.index(key.partition(".")[0]))
    return {key: " ".join(said[key].split()) for key in keys if "*" not in key}


def _first_line(term):
    """The first line of what a divergence's function says of itself."""
    phi, row, _ = divergences.DIVERGENCES[term]
    return (inspect.getdoc(phi or row) or "").split("\n")[0]


def _assigned(source):
    """Comments of `c.a.b = ...` by a.b; a part that is a variable is *."""
    comments, nodes = _comments(source), ast.walk(ast.parse(source))
    nodes = sorted((n for n in nodes if isinstance(n, ast.Assign)), key=lambda n: n.lineno)
    said = [(_path(n.targets[0]), _beside(comments, n.lineno, n.end_lineno)) for n in nodes]
    return {key: text for key, text in said if key and text}


def _path(node):
    if isinstance(node, ast.Attribute):
        before = _path(node.value)
        return before if before is None else f"{before}.{node.attr}".removeprefix(".")
    if isinstance(node, ast.Subscript):
        before = _path(node.value)
        return before if before is None else f"{before}.*"
    return "" if isinstance(node, ast.Name) and node.id == "c" else None


def _entries(source, registry):
    """Comments above the entries of a dictionary, by their key."""
    comments = _comments(source)
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and node.target.id == registry:
            keys = {key.value: key.lineno for key in node.value.keys}
            found = {name: _beside(comments, line, line) for name, line in keys.items()}
            return {name: text for name, text in found.items() if text}
    raise ValueError(f"there is no {registry}")


def _comments(source):
    """By line: the comment, and whether it stands alone."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _beside(comments, first, last):
    """The lines above that hold nothing but a comment, and those at the end of lines."""
    beside, above = [comments[i][0] for i in range(first, last + 1) if i in comments], []
    while comments.get(first - 1, ("", False))[1]:
        first -= 1
        above.insert(0, comments[first][0])
    return "\n".join([*above, *beside])
