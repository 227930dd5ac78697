"""What goes on and how long it takes: one line on stderr; tables; the only function that prints.

On a terminal the line is replaced as the work goes on. Elsewhere a line is written at most every
LINE_S seconds, the first of them after SHORT_S.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

import jax
from tqdm import tqdm

from distill_jax.types import COMPILING
from distill_jax.visible import visible

LINE_S = 10.0  # between lines where there is no terminal
SHORT_S = 2.0
DIM, PLAIN = "\x1b[2m", "\x1b[0m"  # of a terminal
COMPILE, OTHER = "compile", "other"  # names of parts: see Progress.times
# Only threads of one process draw. The default lock is one between processes.
tqdm.set_lock(threading.RLock())


def say_part(text: str, *, dim: bool = False) -> None:
    """Writes a part of a line to stdout. Only where a Progress is aside: its line would cut in."""
    sys.stdout.write(f"{DIM}{visible(text)}{PLAIN}" if dim else visible(text))
    sys.stdout.flush()


def say(text: str, stream: TextIO | None = None, *, everywhere: bool = False) -> None:
    """Prints a line on process 0 or on all; to stdout unless another stream is given."""
    if everywhere or jax.process_index() == 0:
        _write(text, stream or sys.stdout)


def _write(text: str, stream: TextIO) -> None:
    """A whole line at once, so that threads do not mix theirs; that of a Progress makes room."""
    with tqdm.external_write_mode(file=stream):
        stream.write(visible(text) + "\n")
        stream.flush()


class Stage:
    """What goes on now. `advance` may be given to what does the work (types.Advance).

    left_s: seconds until it is done, where that is known. pace_s: seconds per unit.
    """

    def __init__(self, part: str, title: str, progress: "Progress"):
        self.part, self.title, self._progress = part, title, progress
        self.what = ""
        self.began = self.changed = progress.clock()
        self.note: str | None = None
        self.left_s: float | None = None
        self.pace_s: float | None = None
        self._more, self._done, self._total = "", 0, 0
        self._first: tuple[int, float] | None = None

    def advance(self, what: str, done: int, total: int) -> None:
        """`done` of `total` units are done (0: it is not known how many); what: in words."""
        now = self._progress.clock()
        if what != self.what:
            self._progress.charge(now)
            self.began = now
        if what != self.what or done < self._done or total != self._total:
            self._first = None
        if total and self._first is None:
            # The first unit may have waited for a compilation: the pace is that of the others.
            self._first = (done, now)
            self.left_s = self.pace_s = None
        elif total and done > self._first[0]:
            self.pace_s = (now - self._first[1]) / (done - self._first[0])
            self.left_s = self.pace_s * (total - done)
        self.what, self._done, self._total, self.changed, self.note = what, done, total, now, None

    def tell(
        self, note: str, left_s: float | None = None, pace_s: float | None = None, more: str = ""
    ) -> None:
        """How far it is in the caller's own words; more: what a narrow terminal may cut off."""
        self.note, self.left_s, self.pace_s, self._more = note, left_s, pace_s, more
        self.changed = self._progress.clock()

    def remaining(self, now: float) -> float | None:
        """Seconds left, those since the last unit taken off."""
        return None if self.left_s is None else max(0.0, self.left_s - (now - self.changed))

    def line(self, now: float) -> str:
        """The stage in words, such as `pruning: blocks 3/21  4.2 s each  1m16s left`."""
        left = self.remaining(now)
        ending = [] if left is None else [f"{duration(left)} left"]
        if self.note is not None:
            return "  ".join([f"{self.title} {self.note}", *ending, self._more]).rstrip()
        what = f"{self.title}: {self.what}" if self.what else self.title
        if not self._total:
            return f"{what} ... {duration(now - self.began)}"
        rate = [] if not self.pace_s else [rate_of(self.pace_s)]
        return "  ".join([f"{what} {self._done:,}/{self._total:,}", *rate, *ending])


class Progress:
    """The stages of a process, its line, and what its time went to.

    stream: None shows nothing. every_s: between lines where there is no terminal; 0: none. began:
    on the same clock, when the process started.

      with progress.stage("load", "reading the teacher") as stage:
          read(path, advance=stage.advance)
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        every_s: float = LINE_S,
        began: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.stream, self.every_s, self.clock = stream, every_s, clock
        self.began = self._since = clock() if began is None else began
        self._stages: list[Stage] = []
        self._within: list[Callable[[Stage], str]] = []
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()  # of the two above: the line asks, too
        self._shown: float | None = None
        self._bar, self._aside = None, False
        if stream is not None and stream.isatty():
            # A terminal that does not know its width says 0.
            width = {} if os.get_terminal_size(stream.fileno()).columns else {"ncols": 80}
            options = {"bar_format": "{desc}", "leave": False, "dynamic_ncols": not width}
            self._bar = tqdm(total=0, file=stream, **options, **width)

    @contextmanager
    def stage(self, part: str, title: str) -> Iterator[Stage]:
        """A stage of the work. part: one word for what its time goes to; title: as shown.

        A stage within another has its time to itself. The first one has the time since `began`.
        """
        stage = Stage(part, title, self)
        if self._seconds or self._stages:
            self.charge(stage.began)
        else:
            stage.began = self.began
        self._stages.append(stage)
        try:
            yield self._stages[-1]
        finally:
            self.charge(self.clock())
            self._stages.pop()
            if self._bar is not None:  # or what is over would stand below the next text
                self._bar.set_description_str(self.line(self.clock()), refresh=False)

    @contextmanager
    def within(self, label: Callable[[Stage], str]) -> Iterator[None]:
        """While it lasts, label(stage) stands before every line, such as `run 2/12 · `."""
        self._within.append(label)
        try:
            yield
        finally:
            self._within.pop()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While it lasts nothing is shown: the terminal is for what is written with say_part."""
        with tqdm.get_lock():
            self._aside = True
            if self._bar is not None:
                self._bar.clear(nolock=True)
        try:
            yield
        finally:
            self._aside = False

    def charge(self, now: float) -> None:
        """Counts the time since the last change for what has gone on."""
        with self._lock:
            part, stages = OTHER, list(self._stages)
            if stages:
                part = COMPILE if stages[-1].what.startswith(COMPILING) else stages[-1].part
            self._seconds[part] = self._seconds.get(part, 0.0) + now - self._since
            self._since = now

    def seconds(self, part: str) -> float:
        """What a part took so far."""
        return self.times().get(part, 0.0)

    def times(self) -> dict[str, float]:
        """Seconds by part, in the order in which they began; they add up to the time since `began`.

        What goes on now is counted up to now.
        """
        self.charge(self.clock())
        parts = {name: value for name, value in self._seconds.items() if name != OTHER}
        return parts | {OTHER: self._seconds.get(OTHER, 0.0)}

    def line(self, now: float) -> str:
        """What is shown now; nothing between stages."""
        stages = list(self._stages)
        if not stages:
            return ""
        parts = [*(label(stages[-1]) for label in self._within), stages[-1].line(now)]
        return visible("".join(parts))

    def tick(self) -> None:
        """Shows what there is to show now."""
        now, text = self.clock(), self.line(self.clock())
        if self._aside:
            return
        if self._bar is not None:
            self._bar.set_description_str(text)
        elif self.stream is not None and text and self._due(now):
            self._shown = now
            _write(text, self.stream)

    def _due(self, now: float) -> bool:
        if not self.every_s:
            return False
        if self._shown is None:
            return now - self.began >= SHORT_S
        return now - self._shown >= self.every_s

    @contextmanager
    def shown(self) -> Iterator["Progress"]:
        """Shows the line from a thread of its own while it lasts."""
        over = threading.Event()

        def show():
            while not over.wait(0.5):
                self.tick()

        thread = threading.Thread(target=show, daemon=True)
        if self.stream is not None:
            thread.start()
        try:
            yield self
        finally:
            over.set()
            if self.stream is not None:
                thread.join()
            if self._bar is not None:
                self._bar.close()


def duration(seconds: float) -> str:
    """`42s`, `3m07s` or `2h05m`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def rate_of(pace_s: float) -> str:
    """Units per second, or seconds per unit where that is more than one."""
    if pace_s > 1:
        return f"{pace_s:.1f} s each"
    return f"{1 / pace_s:,.1f}/s" if pace_s > 0.1 else f"{1 / pace_s:,.0f}/s"


def times_line(times: dict[str, float]) -> str:
    """Where the time went, in whole seconds that add up: `4m25s: load 12s, train 4m13s`."""
    whole, total = {name: int(value) for name, value in times.items()}, round(sum(times.values()))
    # Of the seconds that are lost by cutting, each goes to the part that lost most.
    cut = sorted(times, key=lambda name: whole[name] - times[name])
    for name in cut[: total - sum(whole.values())]:
        whole[name] += 1
    parts = ", ".join(f"{name} {duration(value)}" for name, value in whole.items() if value)
    return f"{duration(total)}: {parts}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, all others to the right."""
    cells = [[visible(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row):
        first = row[0].ljust(widths[0])
        return "  ".join([first, *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))])

    return "\n".join([line(cells[0]), "  ".join("-" * w for w in widths), *map(line, cells[1:])])
