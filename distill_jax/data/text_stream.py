"""Text that is shown while its tokens are still being written."""

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"  # what decoders make of the first bytes of a character


def stream(decode: Callable[[Sequence[int]], str]) -> Callable[[Sequence[int], bool], str]:
    """The function more(tokens so far, ended) -> what is new of their text.

    A character is given when all of its bytes are there. The parts together are the decoded whole.

    >>> more = stream(lambda tokens: bytes(tokens).decode(errors="replace"))
    >>> more([72, 195], False), more([72, 195, 164], False), more([72, 195, 164, 195], True)
    ('H', 'ä', '\ufffd')
    """
    given = ""

    def more(tokens: Sequence[int], ended: bool) -> str:
        nonlocal given
        text = decode(tokens)
        text = text if ended else text.rstrip(_UNFINISHED)
        if not text.startswith(given):  # a decoder that changes what it wrote before
            if not ended:
                return ""
            return f"\n{text}"
        new, given = text[len(given) :], text
        return new

    return more
