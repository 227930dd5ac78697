"""What is done to a run under its launcher. Each fault says in a word what it did, or None.

A fault that needs the launcher gone kills it first: whoever runs it starts it again.
"""

import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from experiments.chaos import world

FILE_LIMIT_BYTES = 4096  # what a file may grow to where the disk is "full"


class Victim(NamedTuple):
    """A run that goes on: its launcher, its directory, and the chance that picks."""

    launcher: subprocess.Popen
    workdir: Path
    draw: random.Random

    def processes(self) -> list[int]:
        """The process numbers of the group, process 0 first."""
        path = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        try:
            return [int(word) for word in path.read_text().split()]
        except OSError:  # the launcher is gone
            return []


def kill_process(victim: Victim) -> str | None:
    """SIGKILL of one process; the launcher starts the group again."""
    return _signal_one(victim, signal.SIGKILL)


def pause_process(victim: Victim) -> str | None:
    """SIGSTOP of one process, and SIGCONT before the others have lost their patience."""
    if (said := _signal_one(victim, signal.SIGSTOP)) is None:
        return None
    time.sleep(victim.draw.uniform(0.2, 4.0))
    _send(int(said.split()[-1]), signal.SIGCONT)
    return said


def stop_process(victim: Victim) -> str | None:
    """SIGSTOP of one process for good; the launcher has to get rid of it."""
    return _signal_one(victim, signal.SIGSTOP)


def kill_launcher(victim: Victim) -> str | None:
    """SIGKILL of the launcher, which its processes must not outlive."""
    group = victim.processes()
    victim.launcher.kill()
    victim.launcher.wait()
    assert world.wait_for(lambda: not any(map(_runs, group)), 30), "a process outlived its launcher"
    return f"with {len(group)} processes"


def signal_launcher(victim: Victim) -> str | None:
    """SIGTERM, SIGINT or SIGHUP, once or twice: saved and ended, or ended at once."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        numbers.append(signal.SIGHUP)
    number, twice = victim.draw.choice(numbers), victim.draw.random() < 0.3
    victim.launcher.send_signal(number)
    if twice:
        time.sleep(victim.draw.uniform(0.0, 0.5))
        victim.launcher.send_signal(number)
    code = victim.launcher.wait(timeout=300)
    assert code in (0, 75, -number), f"the launcher ended with {code}"
    return f"{number.name} {'twice' if twice else 'once'}"


def damage_checkpoint(victim: Victim) -> str | None:
    """A bit flipped, a file cut or deleted in the last of at least two checkpoints."""
    kill_launcher(victim)
    whole = [p for p in (victim.workdir / "checkpoints").glob("step_*") if p.name[5:].isdigit()]
    if len(whole) < 2:
        return None
    last = max(whole, key=lambda path: int(path.name[5:]))
    files = sorted(path for path in last.rglob("*") if path.is_file() and path.stat().st_size)
    path, how = victim.draw.choice(files), victim.draw.choice(sorted(DAMAGES))
    DAMAGES[how](path, victim.draw)
    return f"{how}: {path.relative_to(victim.workdir)}"


def limit_files(victim: Victim) -> str | None:
    """Process 0 can write no file beyond a few kB; the next one that is started can."""
    group = victim.processes()
    if not group:
        return None
    try:
        resource.prlimit(group[0], resource.RLIMIT_FSIZE, (FILE_LIMIT_BYTES, FILE_LIMIT_BYTES))
    except ProcessLookupError:
        return None
    return f"process {group[0]}"


def _signal_one(victim, number):
    group = victim.processes()
    if not group:
        return None
    pid = victim.draw.choice(group)
    return f"process {group.index(pid)} {pid}" if _send(pid, number) else None


def _send(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _flip(path, draw):
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def _cut(path, draw):
    os.truncate(path, draw.randrange(path.stat().st_size))


def _delete(path, draw):
    path.unlink()


HARMLESS = ("pause of a process",)  # the same processes go on
DAMAGES = {"bit flip": _flip, "truncation": _cut, "deletion": _delete}
FAULTS: dict[str, Callable[[Victim], str | None]] = {
    "kill of a process": kill_process,
    "pause of a process": pause_process,
    "stop of a process": stop_process,
    "kill of the launcher": kill_launcher,
    "signal": signal_launcher,
    "damaged checkpoint": damage_checkpoint,
    "file-size limit": limit_files,
}
