"""A user's scorer: what it gives, and what a mistake in it says."""

import pytest

from distill_jax.setup.scorer import load_scorer
from distill_jax.types import UserError

SOURCE = """
def same(prompt, text, reference):
    return text.strip() == reference.strip()

def broken(prompt, text, reference):
    return text[99]

def nothing(prompt, text, reference):
    return None

def endless(prompt, text, reference):
    return float("inf")

number = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_a_scorer_gives_numbers(file):
    score = load_scorer(f"{file}:same")
    assert score("p", " yes", "yes ") == 1.0
    assert score("p", "no", "yes") == 0.0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "failed on the text 'no' \\(IndexError"),
        ("nothing", "TypeError"),
        ("endless", "gave inf"),
    ],
)
def test_a_scorer_that_fails_is_one_line(file, name, said):
    score = load_scorer(f"{file}:{name}")
    with pytest.raises(UserError, match=said) as error:
        score("p", "no", "yes")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("address", ["mine.py", "{}", "{}:absent", "{}:number", "absent.py:same"])
def test_a_scorer_that_is_none_is_one_line(file, address):
    with pytest.raises(UserError, match="FUNCTION, a function of") as error:
        load_scorer(address.format(file))
    assert "\n" not in str(error.value)


def test_a_file_that_does_not_run_is_one_line(tmp_path):
    (tmp_path / "mine.py").write_text("import absent_module\n")
    with pytest.raises(UserError, match="cannot be run \\(ModuleNotFoundError"):
        load_scorer(f"{tmp_path / 'mine.py'}:same")
