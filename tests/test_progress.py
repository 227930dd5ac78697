"""What a waiting user sees, by a clock of the tests' own, and on a terminal."""

import io
import os
import pty
import select
import termios
import time
from itertools import pairwise

import pytest

from distill_jax.progress import (
    COMPILE,
    LINE_S,
    OTHER,
    SHORT_S,
    Progress,
    duration,
    rate_of,
    say,
    times_line,
)
from distill_jax.types import COMPILING


class Clock:
    """Seconds that pass when a test says so, while a progress looks at them every half second."""

    def __init__(self):
        self.now = 100.0
        self.written: list[tuple[float, str]] = []

    def __call__(self):
        return self.now

    def wait(self, progress, seconds):
        for _ in range(round(seconds * 2)):
            self.now += 0.5
            before = len(progress.stream.getvalue())
            progress.tick()
            new = progress.stream.getvalue()[before:]
            self.written += [(self.now, line) for line in new.splitlines()]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def progress(clock):
    return Progress(io.StringIO(), clock=clock)


def test_where_there_is_no_terminal_a_line_comes_every_ten_seconds_at_most(clock, progress):
    for title in ("first", "second", "third"):
        with progress.stage("work", title):
            clock.wait(progress, 47)
    times = [when for when, _ in clock.written]
    assert times[0] == 100 + SHORT_S
    gaps = [b - a for a, b in pairwise(times)]
    assert min(gaps) >= LINE_S
    assert max(gaps) <= LINE_S + 0.5
    assert "\r" not in progress.stream.getvalue()
    assert {line.split(" ")[0] for _, line in clock.written} == {"first", "second", "third"}


def test_what_is_over_soon_is_not_told(clock, progress):
    with progress.stage("work", "short"):
        clock.wait(progress, SHORT_S - 0.5)
    clock.wait(progress, 60)
    assert not clock.written


def test_no_lines_where_none_are_asked_for(clock):
    progress = Progress(io.StringIO(), clock=clock, every_s=0)
    with progress.stage("work", "long"):
        clock.wait(progress, 60)
    assert not clock.written


def test_compilation_counts_neither_as_a_unit_nor_in_what_is_left(clock, progress):
    """60 s of compiling, then 4 s for each of 10 batches."""
    with progress.stage("evaluate", "evaluating") as stage:
        stage.advance(f"{COMPILING} the evaluation", 0, 0)
        clock.wait(progress, 60)
        assert progress.line(clock.now) == "evaluating: compiling the evaluation ... 1m00s"
        stage.advance("batches", 0, 0)
        for done in range(1, 4):
            clock.wait(progress, 4)
            stage.advance("batches", done, 10)
        assert stage.pace_s == 4
        assert progress.line(clock.now) == "evaluating: batches 3/10  4.0 s each  28s left"
        clock.wait(progress, 3)
        assert progress.line(clock.now).endswith("25s left")
    assert progress.times() == {COMPILE: 60, "evaluate": 15, OTHER: 0}


def test_a_first_unit_that_compiles_on_its_own_is_not_counted_either(clock, progress):
    with progress.stage("prune", "pruning") as stage:
        clock.wait(progress, 50)
        stage.advance("blocks", 1, 5)
        assert stage.left_s is None
        clock.wait(progress, 2)
        stage.advance("blocks", 2, 5)
        assert stage.left_s == 6


def test_the_times_add_up_to_the_time_since_the_start(clock):
    progress = Progress(io.StringIO(), clock=clock, began=clock.now - 5)
    with progress.stage("start", "starting"):
        assert progress.line(clock.now) == "starting ... 5s"
        clock.now += 1
    with progress.stage("train", "training"):
        clock.now += 10.4
        with progress.stage("evaluate", "evaluating"):
            clock.now += 3.3
        clock.now += 10.4
    clock.now += 2.2
    times = progress.times()
    assert times == pytest.approx({"start": 6, "train": 20.8, "evaluate": 3.3, OTHER: 2.2})
    assert times_line(times) == "32s: start 6s, train 21s, evaluate 3s, other 2s"


def test_a_label_stands_before_every_stage(clock, progress):
    with progress.within(lambda stage: f"run 2/3, {stage.title}: "), progress.stage("a", "one"):
        assert progress.line(clock.now) == "run 2/3, one: one ... 0s"
    assert progress.line(clock.now) == ""


def test_what_is_left_stands_before_what_a_narrow_terminal_cuts_off(clock, progress):
    with progress.stage("train", "training") as stage:
        stage.tell("step 3/9", 12.0, 2.0, "500 tokens/s  loss 1.5")
        assert progress.line(clock.now) == "training step 3/9  12s left  500 tokens/s  loss 1.5"
        clock.wait(progress, 2)
        assert progress.line(clock.now) == "training step 3/9  10s left  500 tokens/s  loss 1.5"


def test_words_for_numbers():
    assert [duration(s) for s in (4.4, 187, 7500)] == ["4s", "3m07s", "2h05m"]
    assert [rate_of(s) for s in (4.25, 0.5, 0.01)] == ["4.2 s each", "2.0/s", "100/s"]


@pytest.mark.parametrize("columns", [0, 80])
def test_on_a_terminal_the_line_is_replaced_and_makes_room_for_others(columns):
    """A pseudo-terminal, which may not know its width, and the thread that shows the line."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    with os.fdopen(slave, "w") as stream:
        with Progress(stream).shown() as progress, progress.stage("work", "working") as stage:
            for done in range(1, 4):
                stage.advance("units", done, 3)
                time.sleep(0.6)
            say("a result", stream)
            time.sleep(0.6)
        stream.flush()
        shown = ""
        while select.select([master], [], [], 0.2)[0]:
            shown += os.read(master, 1 << 16).decode()
    os.close(master)
    for done in range(1, 4):
        assert f"\rworking: units {done}/3" in shown
    before, after = shown.split("a result\r\n")
    # What was shown is wiped first, and drawn again below.
    for part in (before, after):
        drawn, wiped, rest = part.rsplit("\r", 2)
        assert drawn.rpartition("\r")[2].startswith("working: units 3/3")
        assert not wiped.strip()
        assert not rest
