"""Contenders timed in turn: every round runs all of them once, in a new random order."""

import gc
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Threads of one contender may still spin when its result is there; none of that is to be counted
# to the next one.
PAUSE_S = 0.02
FEWEST_ROUNDS = 2


class Program(NamedTuple):
    """One contender, ready to run.

    run              does its work once, waits for it, and gives what the tests look at; None once
                   it has been timed
    compile_seconds  tracing and compiling; None where nothing is compiled
    temporary_bytes  temporaries of the compiled program; None where unknown
    flops            floating-point operations of its matrix products; None where not counted
    """

    run: Callable[[], Any] | None
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    flops: int | None = None


class Outcome(NamedTuple):
    """What a step says of itself; no gradient norm where it computes none."""

    loss: float
    gradient_norm: float | None = None


class Sample(NamedTuple):
    """One timed run. cpu_s sums over all threads of the process."""

    name: str
    round: int
    wall_s: float
    cpu_s: float


def warm(programs: dict[str, Program]) -> dict[str, Outcome]:
    """Runs every program once; the outcomes of those that are steps, all from the same weights."""
    found = {name: program.run() for name, program in programs.items()}
    return {name: made for name, made in found.items() if isinstance(made, Outcome)}


def measure(
    programs: dict[str, Program],
    *,
    rounds: int,
    seconds: float,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> list[Sample]:
    """Times up to `rounds` rounds of warm programs within about `seconds`.

    No round is begun that would, taking as long as the slowest so far, end after the budget; but
    FEWEST_ROUNDS are always run.
    """
    gc.collect()
    order = np.random.default_rng(seed)
    names, samples = list(programs), []
    start, slowest = clock(), 0.0
    for number in range(rounds):
        begun = clock()
        if number >= FEWEST_ROUNDS and begun - start + slowest > seconds:
            break
        for index in order.permutation(len(names)):
            name = names[index]
            time.sleep(PAUSE_S)
            wall, cpu = clock(), cpu_clock()
            programs[name].run()
            samples.append(Sample(name, number, clock() - wall, cpu_clock() - cpu))
        slowest = max(slowest, clock() - begun)
    return samples
