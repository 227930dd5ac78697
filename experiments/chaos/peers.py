"""What becomes of a group of processes when one of them is killed, stopped, absent or mistaken.

    python -m experiments.chaos.peers --tries=5 --checkout=. --seed=0

One JSON line for each try: the fault, the victim, the seconds until the last of the others ended,
their exit codes and how many lines each wrote to the end.
"""

import argparse
import json
import random
import signal
import tempfile
import time
from pathlib import Path

from experiments.chaos import world

LIMITS_S = {"killed": 10, "stopped": 60, "absent": 60, "mistaken": 10, "all mistaken": 10}
PATIENCE_S = 330  # until a try is given up


def attempt(fault, of, words, root, checkout, draw, more) -> dict:
    """One group with one fault."""
    victim, port = draw.randrange(of), world.free_port()
    workdir = root / "run"
    words = [*words, f"--workdir={workdir}", "--config.steps=100000", *more]
    begun = time.monotonic()
    processes = {}
    for i in range(of):
        if fault == "absent" and i == victim:
            continue
        wrong = fault == "all mistaken" or (fault == "mistaken" and i == victim)
        own = ["--config.data.source=/nowhere/text.jsonl"] if wrong else []
        processes[i] = world.start([*words, *own], i, of, port, root / f"{i}.txt", checkout)
    with world.ending(list(processes.values())):
        others = dict(processes)
        if fault in ("killed", "stopped"):
            target = draw.randrange(3, 40)
            assert world.wait_for(lambda: world.steps_done(workdir) >= target, 240), "no steps"
            time.sleep(draw.random())
            begun = time.monotonic()
            others.pop(victim).send_signal(signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        elif fault in ("mistaken", "all mistaken"):
            knows = lambda i: b"error: " in (root / f"{i}.txt").read_bytes()
            world.wait_for(lambda: any(map(knows, others)), PATIENCE_S)
            begun = time.monotonic()
        world.wait_for(lambda: all(p.poll() is not None for p in others.values()), PATIENCE_S)
        seconds = round(time.monotonic() - begun, 1)
        codes = {i: p.poll() for i, p in others.items()}
    lines = {i: said(root / f"{i}.txt") for i in others}
    wanted = 2 if "mistaken" in fault else 70
    return {
        "fault": fault, "of": of, "victim": victim, "seconds": seconds, "codes": codes,
        "lines": {i: len(these) for i, these in lines.items()},
        "first": max(lines.values(), key=len)[-3:],
        "held": set(codes.values()) == {wanted}
        and all(len(these) <= 1 for these in lines.values())
        and any(lines.values()),
        "in time": seconds <= LIMITS_S[fault],
    }  # fmt: skip


def said(path: Path) -> list[str]:
    """What a process wrote to stderr, but for its evaluations."""
    return [
        line
        for line in path.read_text(errors="replace").split("\n")
        if line[:5] not in ("", "step ")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--checkout", type=Path, default=Path.cwd())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--faults", nargs="+", default=list(LIMITS_S), choices=list(LIMITS_S))
    parser.add_argument("--more", action="append", default=[], help="a further flag of the command")
    asked = parser.parse_args()
    world.tidy_when_terminated()
    with tempfile.TemporaryDirectory() as directory:
        words = world.make(Path(directory) / "world")
        for number in range(asked.tries):
            for fault in asked.faults:
                draw = random.Random(f"{asked.seed} {number} {fault}")
                root = Path(directory) / f"{number} {fault}"
                root.mkdir()
                of = draw.choice(asked.processes)
                answer = attempt(fault, of, words, root, asked.checkout, draw, asked.more)
                print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
