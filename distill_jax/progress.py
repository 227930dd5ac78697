"""Text for the terminal: progress lines, tables, and the only function that prints."""

import sys
from collections.abc import Sequence
from typing import TextIO

import jax


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a line on process 0 only; to stdout unless another stream is given."""
    if jax.process_index() == 0:
        print(text, file=stream or sys.stdout, flush=True)


def duration(seconds: float) -> str:
    """`42s`, `3m07s` or `2h05m`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def progress_line(
    step: int, steps: int, seconds_left: float, tokens_per_s: float, numbers: dict[str, float]
) -> str:
    """One line: step, time left, tokens per second, and a few metrics by name."""
    shown = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    left = f"{duration(seconds_left)} left"
    return f"step {step}/{steps}  {left}  {tokens_per_s:,.0f} tokens/s  {shown}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, all others to the right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row):
        first = row[0].ljust(widths[0])
        return "  ".join([first, *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))])

    return "\n".join([line(cells[0]), "  ".join("-" * w for w in widths), *map(line, cells[1:])])
