"""Empty lines are folded in sight; the text of the element is the text of the report."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_jax.report.folding import LEAST, folded
from tests.report.html_walk import Walk, text_of

SPACE = "\n \t\xa0"


def folds(text):
    """What is said in place of folded white space, and the lines that stay."""
    walk = Walk(f"<p>{folded(text)}</p>")
    assert text_of(walk.elements[0]) == text
    return [e.attributes["data-fold"] for e in walk.elements if "data-fold" in e.attributes]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\nb", []),
        ("a\n\n\nb", []),  # two empty lines
        ("a\n\n\n\nb", ["3 empty lines"]),
        ("a\n \n\t\n\n  b", ["3 empty lines"]),
        ("\n" * 16 + "b", ["16 empty lines"]),
        ("b" + "\n" * 17, ["16 empty lines"]),
        ("\n\n\na\n\n\n\n\nb\n\n", ["3 empty lines", "4 empty lines"]),
        ("\n" * 16, ["only white space, 16 empty lines"]),
        ("\n", ["only white space, 1 empty line"]),
        ("  ", ["only white space"]),
        ("", ["nothing"]),
    ],
)
def test_what_is_folded(text, said):
    assert folds(text) == said


@given(st.text(st.sampled_from(SPACE + "a<&")))
def test_no_run_of_empty_lines_stays_and_nothing_is_lost(text):
    walk = Walk(f"<p>{folded(text)}</p>")
    assert text_of(walk.elements[0]) == text
    inside = lambda around: any("data-fold" in e.attributes for e in around)
    shown = "".join("|" if inside(around) else part for part, around in walk.texts)
    empty = 0
    for line in shown.split("\n")[:-1]:
        empty = 0 if line.strip() else empty + 1
        assert empty < LEAST
