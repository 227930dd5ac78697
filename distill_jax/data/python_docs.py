"""The documentation of the running Python as a data set: no download, about two megabytes."""

import ast
import importlib.util
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from distill_jax.data.documents import Document
from distill_jax.types import UserError

_SKIPPED_FOLDERS = {
    "test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__",
}  # fmt: skip
_SHORTEST_DOCUMENT = 200  # characters; shorter ones are mostly one repeated phrase
_SHORTEST_REPEAT = 40  # characters; shorter paragraphs ("Notes:") may occur in many documents


def read_python_docs() -> Iterator[Document]:
    """Language topics (label "topics") and, module by module, the standard library's docstrings.

    Sources are parsed, never imported. Topics quote each other and modules copy docstrings: a
    paragraph is kept only in the first document that has it, the longest topics first, so that no
    held-out document repeats a training one. The order is the same on every run of the same Python.
    """
    yield from _documents()


@cache  # parsing takes seconds, and the documents are two megabytes
def _documents() -> tuple[Document, ...]:
    return tuple(_read())


def _read() -> Iterator[Document]:
    seen: set[str] = set()
    topics = sorted(_topics().items(), key=lambda item: (-len(item[1]), item[0]))
    for name, text in topics:
        yield from _fresh_document(f"topics/{name}", "topics", text, seen)
    for module, text in _modules():
        yield from _fresh_document(module, module, text, seen)


def _fresh_document(name: str, label: str, text: str, seen: set[str]) -> Iterator[Document]:
    kept = []
    for paragraph in text.strip().split("\n\n"):
        key = " ".join(paragraph.split())
        if len(key) < _SHORTEST_REPEAT or key not in seen:
            kept.append(paragraph)
        seen.add(key)
    fresh = "\n\n".join(kept)
    if len(fresh) >= _SHORTEST_DOCUMENT:
        yield Document(name, label, text=fresh)


def _topics() -> dict[str, str]:
    if importlib.util.find_spec("pydoc_data") is None:
        raise UserError(
            "this Python has no pydoc_data, the topics of its documentation: "
            "use a complete Python or another data source"
        )
    from pydoc_data.topics import topics

    return topics


def python_docs_files() -> list[Path]:
    """The files that the documents are read from."""
    found = importlib.util.find_spec("pydoc_data.topics")
    return [*([Path(found.origin)] if found else []), *(_root() / file for file in _files())]


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _files() -> list[Path]:
    root = _root()
    files = sorted((path.relative_to(root) for path in root.rglob("*.py")), key=lambda p: p.parts)
    return [file for file in files if _SKIPPED_FOLDERS.isdisjoint(file.parts)]


def _modules() -> Iterator[tuple[str, str]]:
    for file in _files():
        docstrings = _docstrings((_root() / file).read_bytes())
        name = ".".join(part for part in file.with_suffix("").parts if part != "__init__")
        yield name, "\n\n".join(docstrings)


def _docstrings(source: bytes) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old sources
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # the library has a few files that are broken on purpose
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return [docstring for node in nodes if (docstring := ast.get_docstring(node))]
