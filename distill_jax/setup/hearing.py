"""Who is told what goes on while a text is read and tokenised: Stage.tell and say, or nobody."""

from collections.abc import Callable
from typing import NamedTuple

TELL_S = 0.5  # between two words on how far it is


class Hear(NamedTuple):
    """how_far: as Stage.tell of progress.py. line: prints one."""

    how_far: Callable[..., None] = lambda note, left_s=None, pace_s=None, more="": None
    line: Callable[[str], None] = lambda text: None


DEAF = Hear()
