"""What SIGINT, SIGTERM and SIGHUP do, from the first import to the last line.

They end the process at once with exit code 75 and one line. Where there is progress to save, inside
`saving()`, the first one only asks to stop and the second ends the process, after a save that is
being written.

Nothing is raised in the main thread: an exception at an arbitrary place, such as a call from XLA
into Python, crashes the process, and while XLA compiles none would be raised for minutes. A thread
of its own hears of each signal through a pipe instead. What is half written then stays behind as
files.py says; locks go with the process.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CODE = 75
FINISH_S = 5.0  # how long a second signal waits for a save that is being written
PR_SET_PDEATHSIG = 1  # of prctl, which is of Linux


class Saving(NamedTuple):
    """begun: set it once there is something to save. asked: a signal came since then.

    finish() returns once nothing is being saved.
    """

    begun: threading.Event
    asked: threading.Event
    finish: Callable[[], None]


# The innermost is the one that is asked. The process has one table of handlers, and one such list.
_holders: list[Saving] = []
# Held while a signal is acted on and while a holder goes, so that none is asked that nobody reads.
_deciding = threading.Lock()


def watch() -> None:
    """From now on the signals end this process. To be called once, in its main thread."""
    receive, send = os.pipe()
    os.set_blocking(send, False)
    signal.set_wakeup_fd(send, warn_on_full_buffer=False)
    _take()
    threading.Thread(target=_listen, args=(receive,), name="signals", daemon=True).start()
    hold = lambda how: signal.pthread_sigmask(how, SIGNALS)
    os.register_at_fork(
        before=lambda: hold(signal.SIG_BLOCK),  # until the child has let go of the pipe
        after_in_parent=lambda: hold(signal.SIG_UNBLOCK),
        after_in_child=lambda: (_leave(), hold(signal.SIG_UNBLOCK)),
    )


def ignore() -> None:
    """From now on the signals do nothing: all is done and said, and only the interpreter ends.

    It gives signals with a handler in Python their usual effect before it is at its end, and a run
    that is done would end as if it were not.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def retake() -> None:
    """Takes the signals back from a library that took some of them, if this process watches."""
    if signal.getsignal(signal.SIGINT) is _heard:
        _take()


def end_with_launcher() -> None:
    """Where launch.py started this process, it does not outlive that, even where that is killed."""
    parent = os.environ.pop("DISTILL_JAX_LAUNCHER", "")
    if parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != int(parent):
            os._exit(CODE)


@contextmanager
def saving(finish: Callable[[], None] = lambda: None) -> Iterator[Saving]:
    """Inside, once `begun` is set, the first signal sets `asked` and the second ends the process.

    finish(): returns once nothing is being saved; the second signal gives it FINISH_S seconds.

    with saving() as stop:
        for batch in batches:
            work(batch)
            stop.begun.set()
            if stop.asked.is_set():
                break  # save
    """
    holder = Saving(threading.Event(), threading.Event(), finish)
    _holders.append(holder)
    try:
        yield holder
    finally:
        with _deciding:
            _holders.remove(holder)


def _take():
    for number in SIGNALS:
        # nohup ignores SIGHUP, and that stays.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _heard)


def _heard(number, frame):
    """A handler in Python must exist for the pipe to be written to; the thread does the work."""


def _listen(receive):
    while True:
        for number in os.read(receive, 64):
            if number in SIGNALS:
                with _deciding:
                    _act(signal.Signals(number).name)


def _act(name):
    holder = _holders[-1] if _holders else None
    if holder is None or not holder.begun.is_set() or holder.asked.is_set():
        if holder is not None and holder.asked.is_set():
            last = threading.Thread(target=holder.finish, daemon=True)
            last.start()
            last.join(FINISH_S)
        _end(f"error: stopped by {name}: the same command goes on from what is saved")
    holder.asked.set()
    write(f"{name}: stops after saving; a second signal ends at once")


def _end(line) -> NoReturn:
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            child.kill()
    write(line)
    os._exit(CODE)


def write(line: str) -> None:
    """Past sys.stderr, whose lock another thread may hold; on a terminal below its ^C or bar.

    Whoever calls it is about to end the process, which must not fail where stderr has no room.
    """
    descriptor = sys.stderr.fileno()
    with contextlib.suppress(OSError):
        os.write(descriptor, ("\n" * os.isatty(descriptor) + line + "\n").encode())


def _leave():
    """In a forked child the signals have their usual effect, and tell the parent nothing."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) is _heard:
            signal.signal(number, signal.SIG_DFL)
