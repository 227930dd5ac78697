"""The standard streams, which whoever started the process may have closed or led to a full disk."""

import os
import sys
import threading
import traceback
from typing import TextIO

PRINTERS = ("distill_jax.progress", "distill_jax.program")  # the modules that write to stdout


def prepare() -> None:
    """Gives the process every stream, in which any letter can be written. To be called first.

    What is opened next would else have the number of a closed stream, and what libraries write to
    that number would end there. A letter that the encoding of a stream lacks is escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def quiet_threads() -> None:
    """What is raised within a library's own thread is not printed from there.

    Whoever waits for the work of that thread is given the error, and tells it in one line.
    """
    shown = sys.excepthook
    main = threading.main_thread()
    sys.excepthook = lambda *error: threading.current_thread() is main and shown(*error)
    # Python itself ignores what fails while something is collected, such as the rest of a save that
    # failed: it would only print it, after the line that says why.
    sys.unraisablehook = lambda _: None


def part_libraries() -> int:
    """Leads what libraries write to stderr past Python to a file in memory, and gives that.

    sys.stderr stays where it is.
    """
    sys.stderr = open(os.dup(2), "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    memory = os.memfd_create("stderr")
    os.dup2(memory, 2)
    return memory


def refused(error: Exception) -> bool:
    """Whether an error is that stdout took no text; it names no file, but was raised by a printer.

    A failed write leaves nothing behind in stdout that could be asked for afterwards.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, OSError) and frames[-1].f_globals.get("__name__") in PRINTERS


def drop(stream: TextIO | None = None) -> None:
    """What a stream, stdout unless given, still holds goes nowhere; else writing it would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())
