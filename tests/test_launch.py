"""The launcher starts a group, again where that may help, and leaves nobody behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill_jax.launch import GRACE_S, code_of, parse
from tests import cli

# In the place of distill_jax.main: each process ends with the code of its attempt and number.
PROGRAM = """
import os, pathlib, signal, sys, time
flags = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
number, directory = int(flags.get("process", 0)), pathlib.Path(flags["workdir"])
attempt = len(list(directory.glob(f"attempt-*-{number}")))
(directory / f"attempt-{attempt}-{number}").write_text(str(os.getpid()))
if flags.get("saves"):
    (directory / "checkpoints" / f"step_{attempt}").mkdir(parents=True, exist_ok=True)
code = flags["codes"].split("/")[attempt].split(",")[number]
if code == "wait":
    signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    heard = []
    print("waits", flush=True)
    while not heard:
        time.sleep(0.01)
    time.sleep(0.2)
    code = 75 + len(heard) - 1
elif code == "stay":
    time.sleep(60)
print(f"error: of {number}" if int(code) else "noise", file=sys.stderr, flush=True)
if int(code) < 0:
    os.kill(os.getpid(), -int(code))
sys.exit(int(code))
"""
LAUNCH = (
    f"import sys; sys.path.insert(0, {str(cli.ROOT)!r}); from distill_jax.launch import run; run()"
)


@pytest.fixture
def launch(tmp_path):
    """Starts a launcher whose program is the one above."""
    package = tmp_path / "distill_jax"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "main.py").write_text(PROGRAM)
    started = []

    def begin(codes, *more, restarts=3):
        processes = codes.split("/")[0].count(",") + 1
        words = [f"--processes={processes}", f"--restarts={restarts}", "--", f"--codes={codes}"]
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *words, f"--workdir={tmp_path}", *more],
            cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()
        process.stdout.close()


def attempts(tmp_path):
    return len(list(tmp_path.glob("attempt-*-0")))


@pytest.mark.parametrize("code", [70, 74, 75, -9])
def test_a_group_that_fails_is_started_again(launch, tmp_path, code):
    process = launch(f"0,{code}/0,0")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert attempts(tmp_path) == 2
    assert f"ended with {70 if code == -9 else code}: starts again in 1 s" in told


@pytest.mark.parametrize("codes", ["2,2", "70,2", "3,3", "76,70", "0,0"])
def test_a_group_that_need_not_run_again_ends(launch, tmp_path, codes):
    process = launch(codes)
    process.communicate(timeout=60)
    assert process.returncode == int(codes.replace("70", "0").strip(",0").split(",")[0] or 0)
    assert attempts(tmp_path) == 1


def test_it_ends_where_nobody_reads_it(launch, tmp_path):
    process = launch("75/0")
    process.stdout.close()
    assert process.wait(timeout=60) == 75
    assert attempts(tmp_path) == 1


def test_it_gives_up_unless_something_was_saved(launch, tmp_path):
    process = launch("70/70/70/70", restarts=1)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 70
    assert attempts(tmp_path) == 2
    assert "2 times in a row without a new checkpoint: gives up" in told


def test_a_checkpoint_counts_the_failures_anew(launch, tmp_path):
    process = launch("70/70/70/0", "--saves=yes", restarts=1)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert attempts(tmp_path) == 4


def test_an_error_of_all_is_told_once(launch):
    told = launch("2,2,2").communicate(timeout=60)[1]
    assert told == "error: of 0\n"
    told = launch("0,0,0/-9,2,2").communicate(timeout=60)[1]
    # Which of two processes fails first is not known.
    assert sorted(line for line in told.split("\n") if line.startswith("error"))[1:] == [
        "error: of 1",
        "error: of 2",
    ]


def test_a_signal_reaches_each_process_once(launch, tmp_path):
    process = launch("wait,wait,wait")
    assert process.stdout.readline() == "waits\n"
    while len(list(tmp_path.glob("attempt-0-*"))) < 3:
        time.sleep(0.02)
    time.sleep(0.3)  # until all have their handler
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert attempts(tmp_path) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_it_waits_to_start_again_ends_it(launch, tmp_path, number):
    process = launch("70,70/0,0")
    while "starts again" not in process.stderr.readline():
        pass
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert attempts(tmp_path) == 1


def test_who_does_not_end_with_the_others_is_killed(launch):
    began = time.monotonic()
    process = launch("2,stay")
    process.communicate(timeout=60)
    assert process.returncode == 2
    assert GRACE_S <= time.monotonic() - began < 2 * GRACE_S


def test_no_process_outlives_the_launcher(tmp_path):
    """Not even where it is killed while they import."""
    words = ["--processes=2", "--", "--config=configs/base.py", f"--workdir={tmp_path}"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "distill_jax.launch", *words], cwd=cli.ROOT, env=cli.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    while len(found := children.read_text().split()) < 2:
        time.sleep(0.02)
    assert all(map(runs, found))
    time.sleep(0.5)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    deadline = time.monotonic() + 20
    while any(map(runs, found)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, found))


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--processes=2"], "no -- among the words"),
        (["--", "--workdir=w"], "--processes is missing"),
        (["--processes=two", "--"], "'--processes=two' before the --"),
        (["--processes=2", "--", "--coordinator=here:1"], "the launcher gives it"),
    ],
)
def test_a_mistake_is_one_line(words, said):
    with pytest.raises(ValueError, match=said):
        parse(words)


def test_the_code_of_a_group():
    assert code_of([0, 0], True) == 0
    assert code_of([-9, 70], True) == 75
    assert code_of([1, 0], False) == 70


def test_a_run_of_two_processes_goes_on_with_one(flags, tmp_path):
    """The same data, and losses that differ by no more than the order of sums."""
    words = [*flags, "--config.optim.schedule=constant"]
    several = subprocess.run(
        [sys.executable, "-m", "distill_jax.launch", "--processes=2", "--",
         "--config=configs/base.py", f"--workdir={tmp_path / 'two'}", *words, "--config.steps=4"],
        cwd=cli.ROOT, env=cli.environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert several.returncode == 0, several.stderr
    for name in ("two", "one"):
        done = cli.run(f"--workdir={tmp_path / name}", *words, "--config.steps=6")
        assert done.returncode == 0, done.stderr
    two, one = (
        {line["step"]: line for line in cli.metrics(tmp_path / name) if "train/loss" in line}
        for name in ("two", "one")
    )
    assert list(two) == list(one) == [1, 2, 3, 4, 5, 6]
    for step, line in one.items():
        assert two[step]["train/batch"] == line["train/batch"]
        assert two[step]["train/loss"] == pytest.approx(line["train/loss"], rel=1e-4)
