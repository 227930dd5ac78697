"""Chaos: a run on several processes is killed, stopped, damaged and starved until it is done.

    python -m experiments.chaos.run --minutes=30 --processes=4 --seed=0

A run that nobody disturbs is the reference. Then, until the time is over, the same run is started
in a new directory under the launcher, some faults befall it, and it is left to end. Its student and
every loss of its metrics must be the reference's, bit by bit. A JSON line for each fault and each
round, and a table at the end; exit code 1 where something was not held.
"""

import argparse
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from experiments.chaos import world
from experiments.chaos.faults import FAULTS, HARMLESS, Victim

PATIENCE_S = 400  # without a step before a run counts as hung
# Of the machine and of where a run was interrupted, not of the training.
CHANCE = {"wall_s", "device_s", "tokens", "train/tokens_per_s", "seal"}


def launch(words: list[str], workdir: Path, processes: int, log: Path) -> subprocess.Popen:
    """A launcher with its group; what they write is appended to a file."""
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "distill_jax.launch", f"--processes={processes}",
             "--restarts=20", "--", *words, f"--workdir={workdir}"],
            env=world.environment(), stdout=file, stderr=file,
        )  # fmt: skip


def outcome(workdir: Path) -> dict[str, object]:
    """What must be equal: the losses of every step, and the weights of the student."""
    text = (workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.split("\n") if line]
    kept = [{k: v for k, v in line.items() if k not in CHANCE} for line in lines]
    weights = sorted((workdir / "student").glob("*.safetensors"))
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights]
    return {"metrics": kept, "student": hashes}


def befall(name: str, victim: Victim, lines: int) -> dict:
    """Waits for a random moment, some lines of the metrics away, and lets a fault happen."""
    early = victim.draw.random() < 0.15
    if early:  # while they import, meet, load or compile
        time.sleep(victim.draw.uniform(0, 15))
    else:
        target = world.steps_done(victim.workdir) + victim.draw.randrange(3, lines)
        wait(victim, lambda: world.steps_done(victim.workdir) >= target)
    at, group = world.steps_done(victim.workdir), victim.processes()
    did = None if ended(victim.launcher) else FAULTS[name](victim)
    return {"fault": name, "did": did, "at": at, "early": early, "group": group}


def ended(launcher: subprocess.Popen) -> bool:
    """Whether a launcher is gone."""
    return launcher.poll() is not None


def wait(victim: Victim, until: Callable[[], bool]) -> None:
    """Waits for something, or for the end of the launcher."""
    there = lambda: ended(victim.launcher) or until()
    assert world.wait_for(there, PATIENCE_S), f"nothing went on for {PATIENCE_S} s"


def play(words, workdir, processes, names, draw, log, tell, lines=0) -> None:
    """One run to its end, through the faults with these names."""
    begin = lambda: Victim(launch(words, workdir, processes, log), workdir, draw)
    victim = begin()
    try:
        for name in names:
            event = befall(name, victim, lines)
            begun, code, group = time.monotonic(), None, event.pop("group")
            if event["did"] is None and not ended(victim.launcher):
                continue
            if name not in HARMLESS:
                wait(victim, partial(new_group, victim, group))
                if (code := victim.launcher.poll()) == 0:
                    break
                victim = victim if code is None else begin()
            before = age(workdir)
            wait(victim, lambda before=before: age(workdir) != before)
            if event["did"] is not None:
                tell(event | {"seconds": round(time.monotonic() - begun, 1), "code": code})
        while (code := victim.launcher.wait(timeout=3 * PATIENCE_S)) != 0:
            tell({"fault": "", "did": f"the launcher ended with {code}"})
            assert code in (70, 74, 75), f"the launcher ended with {code}"
            victim = begin()
    finally:
        victim.launcher.kill()
        victim.launcher.wait()


def new_group(victim: Victim, group: list[int]) -> bool:
    """Whether none of the processes of a group is left, and others are there."""
    now = victim.processes()
    return bool(now) and not set(now) & set(group)


def age(workdir: Path) -> int:
    """Changes with each line of the metrics."""
    path = workdir / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.exists() else 0


def difference(reference: dict, found: dict) -> str:
    """What is not equal, in words; empty where all is."""
    if len(reference["metrics"]) != len(found["metrics"]):
        return f"{len(found['metrics'])} lines of metrics for {len(reference['metrics'])}"
    for one, two in zip(reference["metrics"], found["metrics"], strict=True):
        if one != two:
            names = [k for k in one.keys() | two.keys() if one.get(k) != two.get(k)]
            return f"step {one['step']}: {', '.join(sorted(names))}"
    return "" if reference["student"] == found["student"] else "the student's weights"


def chaos(asked: argparse.Namespace, root: Path, tell) -> list[str]:
    """All rounds; gives what was not held."""
    draw, log = random.Random(asked.seed), root / "log.txt"
    words = [*world.make(root / "world"), f"--config.steps={asked.steps}", *MORE]
    play(words, root / "reference", asked.processes, [], draw, log, tell)
    reference, missed = outcome(root / "reference"), []
    end, number = time.monotonic() + 60 * asked.minutes, 0
    while number == 0 or time.monotonic() < end:
        workdir, number = root / f"round {number}", number + 1
        names = draw.sample(sorted(asked.faults), len(asked.faults)) * 2
        try:
            lines = max(4, asked.steps // (asked.events + 1))
            play(words, workdir, asked.processes, names[: asked.events], draw, log, tell, lines)
            wrong = difference(reference, outcome(workdir))
        except (AssertionError, subprocess.TimeoutExpired) as error:
            wrong = str(error)
        tell({"round": number, "wrong": wrong})
        missed += [f"round {number}: {wrong}"] if wrong else []
    return missed


def table(events: list[dict]) -> str:
    """Of each fault: how often, and the seconds until the run went on."""
    rows = ["| fault | tried | went on after, median s | at most, s |", "|---|---|---|---|"]
    for name in FAULTS:
        if seconds := [event["seconds"] for event in events if event.get("fault") == name]:
            middle = statistics.median(seconds)
            rows.append(f"| {name} | {len(seconds)} | {middle:.1f} | {max(seconds):.1f} |")
    rounds = [event["wrong"] for event in events if "round" in event]
    return "\n".join([*rows, "", f"{rounds.count('')} of {len(rounds)} runs bit-equal"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="until no new run is begun")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300, help="of each run")
    parser.add_argument("--events", type=int, default=8, help="faults per run, at most")
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a directory in which all is left behind")
    asked = parser.parse_args()
    world.tidy_when_terminated()
    events = []

    def tell(event: dict) -> None:
        if "round" in event or event["fault"]:
            events.append(event)
        print(json.dumps(event), flush=True)

    with tempfile.TemporaryDirectory() as directory:
        missed = chaos(asked, asked.keep or Path(directory), tell)
    print(table(events))
    for line in missed:
        print(f"NOT HELD: {line}")
    return 1 if missed else 0


MORE = (
    "--config.checkpoint.every=5", "--config.eval.every=100", "--config.distributed.timeout_s=20",
    "--config.generate.max_new_tokens=4",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
