"""Laws of the source itself: import direction, who prints, one schema, no pickles."""

import ast
import re
from pathlib import Path

import pytest

from configs.base import get_config
from distill_jax.config import flatten
from distill_jax.losses.divergences import DIVERGENCES
from distill_jax.losses.terms import ADAPTIVE, CROSS_ENTROPY, LOAD_BALANCE
from tests.cli import ROOT

PACKAGE = ROOT / "distill_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Rooms in the order in which they may be imported; the rooms of one set do not import each other.
ORDER = [
    {"types", "files", "signals", "simulated", "streams", "visible", "words"},
    {"untrusted", "quantised"},
    {"gguf_file"},
    {"key_names", "peers", "fingerprint", "checkpoint_files", "seals"},
    {"checkpoint_arrays"},
    {
        "config",
        "sharding",
        "optim",
        "losses",
        "models",
        "data",
        "progress",
        "workdir",
        "writers",
    },
    {"objective", "schema", "spikes", "stopping"},
    {"step"},
    {"sampling", "checkpoint", "export"},
    {"evals", "rollback", "run"},
    {"loop"},
    {"study"},
    {"diagnosis", "planning"},
    {"report"},
    {"setup"},
    {"jobs"},
    {"config_file"},
    {"command_line", "key_help"},
    {"program"},
    {"main", "launch"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Names of distill_jax modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "distill_jax":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("distill_jax."):
                yield node.module.removeprefix("distill_jax.")
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("distill_jax.")]
            yield from (name.removeprefix("distill_jax.") for name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_from_left_to_right(path):
    here = room_of(path)
    for name in imports(path):
        there = name.split(".")[0]
        if there in (here, "__version__", "STARTED"):
            continue
        assert there in LEVEL, f"{there} has no place in ORDER"
        assert LEVEL[there] < LEVEL[here], f"{path.name} imports {name}"


def test_one_function_prints():
    """The command line's own errors aside; only the jobs, the loop and main call it."""
    for path in FILES:
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "print" not in calls or room_of(path) in (
            "main",
            "launch",
            "program",
            "loop",
            "progress",
        ), path
        assert "say" not in calls or room_of(path) in ("main", "loop", "jobs"), path


def test_only_setup_jobs_and_the_command_line_see_a_config():
    seen = {room_of(p) for p in FILES if "ml_collections" in p.read_text()}
    assert seen <= {"setup", "jobs", "config", "config_file", "command_line"}


def test_only_binding_splits_and_merges_modules():
    for path in FILES:
        text = path.read_text()
        if path.name != "binding.py":
            assert not any(f"nnx.{name}" in text for name in ("split", "merge", "state")), path


def test_nothing_loads_pickles():
    for path in FILES:
        text = path.read_text()
        assert "allow_pickle=True" not in text
        assert "import pickle" not in text
        assert "torch" not in set(ast_names(path)), path


def test_lines_end_at_newlines_alone():
    """str.splitlines cuts at U+2028, U+0085 and others, which a text or a file's name may hold."""
    for path in FILES:
        assert ".splitlines(" not in path.read_text(), path


def ast_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_files_stay_small():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 300, path


def test_every_term_stands_in_the_schema_with_its_parameters():
    terms = get_config().terms
    assert set(terms.keys()) == {*DIVERGENCES, CROSS_ENTROPY, LOAD_BALANCE}
    for name, divergence in DIVERGENCES.items():
        options = ADAPTIVE[name].options if name in ADAPTIVE else {}
        expected = {"weight", "temperature", "schedule", *divergence.parameters, *options}
        assert set(terms[name].keys()) == expected
    weights = {name: options.weight for name, options in terms.items()}
    assert {name for name, weight in weights.items() if weight} == {"forward_kl"}


def test_every_key_of_the_schema_is_read():
    """A key that nothing reads would be a promise without a deed."""
    source = "".join(p.read_text() for p in FILES if room_of(p) in ("setup", "jobs", "program"))
    fields = "".join((PACKAGE / f).read_text() for f in ("optim.py", "models/prune.py"))
    for key in flatten(get_config()):
        group, _, name = key.rpartition(".")
        if group.startswith("terms."):
            continue
        read = f".{key}" in source or f".{name}" in source or f"    {name}: " in fields
        assert read, key


def test_configs_are_short_differences():
    for path in (ROOT / "configs").glob("*.py"):
        if path.name != "base.py":
            assert len(path.read_text().splitlines()) <= 45, path


def test_documents_name_files_that_exist():
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text()
        for word in {w.strip("`(),.:") for w in text.split()}:
            if word.startswith(("configs/", "distill_jax/", "tests/")) and word.endswith(".py"):
                assert Path(ROOT / word).exists(), f"{name} names {word}"


def test_readme_names_the_way_from_a_weight_to_its_gradient():
    """At most eight files; each after the one that reads the config is imported by one before."""
    section = (ROOT / "README.md").read_text().split("## From the config to the gradient")[1]
    files = re.findall(r"^\d\. `(.*?\.py)`", section.split("\n## ")[0], re.MULTILINE)
    assert files[0] == "configs/base.py"
    assert files[-1] == "distill_jax/losses/divergences.py"
    assert len(files) <= 8
    seen = set(imports(ROOT / files[1]))
    for file in files[2:]:
        module = file.removeprefix("distill_jax/").removesuffix(".py").replace("/", ".")
        assert module in seen, f"no file before {file} imports it"
        seen |= set(imports(ROOT / file))
