"""The command: times contenders against each other and writes results with their limits."""

import argparse
import sys
from pathlib import Path

from distill_jax.types import UserError
from experiments.benchmarks import report
from experiments.benchmarks.contenders import CONTENDERS
from experiments.benchmarks.probes import PROBES, process_peak
from experiments.benchmarks.pytorch import Skipped
from experiments.benchmarks.ratios import Ratio, ratios
from experiments.benchmarks.shapes import SHAPES, Shape, make_case
from experiments.benchmarks.timing import Program, Sample, measure, warm

RESULTS = Path(__file__).parent / "results"
GROUPS = ("loss", "step")
NAMES = (*CONTENDERS, *PROBES)


def main(arguments: list[str] | None = None) -> int:
    """0 when done, 2 with one line on stderr for a mistake in the command."""
    options = parser().parse_args(arguments)
    try:
        shapes = [SHAPES[name] for name in known("--shape", options.shape, SHAPES)]
        names = known("--contenders", options.contenders, NAMES)
        check(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for shape in shapes:
        lines = run_shape(
            shape,
            names,
            rounds=options.rounds,
            seconds=options.seconds,
            seed=options.seed,
            memory=options.memory,
        )
        report.write(options.out, shape.name, lines)
        print(f"{shape.name}: written to {options.out}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The options, each with its unit."""
    own = argparse.ArgumentParser(prog="python -m experiments.benchmarks.run", description=__doc__)
    own.add_argument("--shape", nargs="+", default=list(SHAPES), help=f"of {', '.join(SHAPES)}")
    own.add_argument("--contenders", nargs="+", default=list(NAMES), help=f"of {', '.join(NAMES)}")
    own.add_argument("--rounds", type=int, default=15, help="most rounds, at least 2")
    own.add_argument("--seconds", type=float, default=900, help="of timed rounds per shape")
    own.add_argument("--seed", type=int, default=0, help="of inputs and of the order in a round")
    own.add_argument("--memory", action="store_true", help="also each contender's process peak")
    own.add_argument("--out", type=Path, default=RESULTS, help="directory of the results")
    return own


def known(option: str, names: list[str], among) -> list[str]:
    """The names, in the order of `among`; UserError for one that is not there."""
    for name in names:
        if name not in among:
            raise UserError(f"{option} has {name!r}: use some of {', '.join(among)}")
    return [name for name in among if name in names]


def check(options: argparse.Namespace) -> None:
    """UserError for numbers that cannot be meant."""
    if options.rounds < 2:
        raise UserError(f"--rounds is {options.rounds}: use at least 2, for an interval")
    if options.seconds <= 0:
        raise UserError(f"--seconds is {options.seconds:g}: use a positive number")


def run_shape(
    shape: Shape, names: list[str], *, rounds: int, seconds: float, seed: int, memory: bool
) -> list[dict]:
    """The JSON lines of a shape. Each group of contenders gets an equal share of the seconds."""
    groups = {
        group: [n for n in names if n in CONTENDERS and CONTENDERS[n].group == group]
        for group in GROUPS
        if group in shape.groups
    }
    groups = {group: members for group, members in groups.items() if members}
    case = make_case(shape, seed)
    programs, samples, skipped, outcomes = {}, [], {}, {}
    for members in groups.values():
        built, refused = build(case, members)
        programs |= built
        skipped |= refused
        outcomes |= warm(built)
        say(shape, f"timing {', '.join(built)}")
        share = seconds / len(groups)
        samples += measure(built, rounds=rounds, seconds=share, seed=seed) if built else []
        # Parameters and moments of a group make room for the next one's.
        programs |= {name: program._replace(run=None) for name, program in built.items()}
        del built
    found = summary(shape, programs, samples)
    for name in PROBES:
        if name in names and "probe" in shape.groups:
            say(shape, f"probing {name}")
            found += PROBES[name](shape)
    del case
    ran = [name for members in groups.values() for name in members if name not in skipped]
    peaks = {name: process_peak(shape.name, name) for name in ran if memory}
    lines = report.records(shape, programs, samples, found, peaks, skipped, outcomes)
    return [report.environment(shape, rounds, seed), *lines]


def build(case, names: list[str]) -> tuple[dict[str, Program], dict[str, str]]:
    """The programs of some contenders, and why others are left out."""
    programs, skipped = {}, {}
    for name in names:
        say(case.shape, f"building {name}")
        try:
            programs |= CONTENDERS[name].build(case)
        except Skipped as reason:
            skipped[name] = str(reason)
            say(case.shape, f"skipping {name}: {reason}")
    return programs, skipped


def summary(shape: Shape, programs: dict[str, Program], samples: list[Sample]) -> list[Ratio]:
    """The ratios of seconds, and of the step's temporaries to those of the naive step."""
    flops = {name: program.flops for name, program in programs.items() if program.flops}
    found = ratios(shape, samples, flops)
    if {"step", "naive"} <= set(programs):
        step, naive = (programs[name].temporary_bytes for name in ("step", "naive"))
        what = "temporaries of the step ÷ naive"
        found.append(Ratio(what, shape.name, step / naive, None, None, None, None))
    return found


def say(shape: Shape, text: str) -> None:
    """A line of progress."""
    print(f"{shape.name}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
