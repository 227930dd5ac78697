"""Text in parts, as tokens come."""

from hypothesis import given
from hypothesis import strategies as st

from distill_jax.data.text_stream import stream


def decode(tokens):
    """Tokens of one byte each, so that characters begin and end between tokens."""
    return bytes(tokens).decode("utf-8", errors="replace")


CHARACTERS = "a\n\u00e9\u20ac\U0001f600\ufffd"  # of one to four bytes, and what stands for none


@given(st.text(CHARACTERS), st.integers(1, 5), st.binary(max_size=3))
def test_parts_make_the_whole_and_none_ends_within_a_character(text, step, rest):
    tokens = [*text.encode(), *rest]
    more = stream(decode)
    parts = [more(tokens[:n], False) for n in range(step, len(tokens), step)]
    assert "".join([*parts, more(tokens, True)]) == decode(tokens)
    assert not any(part.endswith("\ufffd") for part in parts)


def test_a_decoder_that_changes_what_it_wrote_shows_the_whole_at_the_end():
    more = stream(lambda tokens: "ab"[: len(tokens)] if len(tokens) < 3 else "Ab.")
    assert [more([1], False), more([1, 2, 3], False), more([1, 2, 3], True)] == ["a", "", "\nAb."]
