"""Small files of a run that were damaged since: mended and told of, or refused."""

import json
import random
import shutil
import subprocess

import pytest

from distill_jax.files import opened, sealed
from distill_jax.workdir import read_lines, rewind
from tests import cli

# U+2028, U+0085 and a file separator: str.splitlines would cut at each of them.
PROMPTS = ("the quick\u2028red", "a slow\x85dog\x1cruns")
STOPPED, STEPS = 4, 6


@pytest.fixture(scope="module")
def flags_here(flags, tmp_path_factory):
    """The flags of a run with such prompts, from a file."""
    path = tmp_path_factory.mktemp("prompts") / "p.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    asked = (f"--config.generate.prompts=@{path}", "--config.generate.max_new_tokens=4")
    return (*flags, *asked)


@pytest.fixture(scope="module")
def whole(flags_here, tmp_path_factory):
    """A finished run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    result = cli.run(f"--workdir={workdir}", *flags_here)
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.fixture(scope="module")
def stopped(flags_here, tmp_path_factory):
    """The same, stopped on its way."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill_jax.loop.shared", lambda flag, step: step == STOPPED)
        result = cli.run(f"--workdir={workdir}", *flags_here)
    assert result.returncode == 75, result.stderr
    return workdir


def numbers(workdir):
    """What is the same in every run of one config, by step."""
    times = ("wall_s", "device_s", "tokens", "train/tokens_per_s", "seal")
    return [
        {key: value for key, value in line.items() if key not in times}
        for line in cli.metrics(workdir)
    ]


def test_any_prompt_is_resumed(stopped, whole, flags_here, tmp_path):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    again = cli.run(f"--workdir={workdir}", *flags_here)
    assert again.returncode == 0, again.stderr
    lines, undisturbed = cli.metrics(workdir), cli.metrics(whole)
    assert [line["tokens"] for line in lines] == [line["tokens"] for line in undisturbed]
    times = [line["wall_s"] for line in lines]
    assert times == sorted(times)
    assert numbers(workdir) == numbers(whole)
    asked = [line["prompt"] for line in read_lines(workdir / "samples.jsonl")]
    assert asked == [*PROMPTS] * 3


def test_a_seal_shows_every_change():
    value = {"step": 3, "eval/nll": 1.25, "text": "a\u2028b", "more": [1, {"x": None}]}
    text = json.dumps(sealed(value))
    assert opened(json.loads(text)) == value
    assert opened(value) == value  # of an earlier version
    name = text.index('"seal"')
    for i in range(name):
        changed = text[:i] + chr(ord(text[i]) ^ 1) + text[i + 1 :]
        try:
            read = json.loads(changed)
        except ValueError:
            continue
        assert opened(read) is None, changed


def last_lines(data, count):
    return b"".join(line + b"\n" for line in data.split(b"\n")[:-1][-count:])


def second(data, text):
    lines = data.split(b"\n")
    return b"\n".join([lines[0], text, *lines[2:]])


# What becomes of the bytes of metrics.jsonl, and whether the line of a step is lost with it.
METRICS = {
    "half a line": (lambda data: data[:-20], True),
    "a half line after the checkpoint": (lambda data: data + b'{"step": 5, "wal', False),
    "NULs": (lambda data: data[:-20] + bytes(20), True),
    "bytes that are no UTF-8": (lambda data: second(data, b"\xff\xfe{}"), True),
    "no JSON": (lambda data: second(data, b"Segmentation fault"), True),
    "JSON of another kind": (lambda data: second(data, b"[1, 2]"), True),
    "deep brackets": (lambda data: second(data, b"[" * 100_000), True),
    "another number": (lambda data: data.replace(b'"step": 2', b'"step": 3', 1), True),
    "lines of steps to come": (lambda data: data + b'{"step": 5}\n', False),
    "nothing": (lambda data: b"", True),
    "the end alone": (lambda data: last_lines(data, 2), True),
}


@pytest.mark.parametrize("damage", METRICS)
def test_damaged_metrics_are_cut_out_and_lost_ones_are_told(damage, stopped, whole, tmp_path):
    change, lost = METRICS[damage]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(change((stopped / "metrics.jsonl").read_bytes()))
    said = rewind(path, STOPPED)
    assert bool(said) == (damage != "lines of steps to come")  # as after any kill
    assert ("no line is left of" in said) == lost
    expected = [line for line in numbers(whole) if line["step"] <= STOPPED]
    left = numbers(tmp_path)
    assert all(line in expected for line in left)
    assert (len(left) < len(expected)) == lost
    assert "cut out" not in rewind(path, STOPPED)  # said once


@pytest.mark.parametrize("damage", ["nothing", "no JSON"])
def test_a_run_with_damaged_metrics_goes_on_to_its_report(
    damage, stopped, whole, flags_here, tmp_path
):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    path = workdir / "metrics.jsonl"
    path.write_bytes(METRICS[damage][0](path.read_bytes()))
    again = cli.run(f"--workdir={workdir}", *flags_here)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("metrics.jsonl: ") == 1
    assert numbers(workdir)[-3:] == numbers(whole)[-3:]
    report = json.loads((workdir / "report.json").read_text())
    begins = [model["name"] for model in report["models"]]
    assert ("student before" in begins) == (damage == "no JSON")


def changed_digit(data):
    """A digit in its middle is another one."""
    at = next(i for i in range(len(data) // 2, len(data)) if chr(data[i]) in "2345678")
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


SMALL = ("config.json", "architecture.json", "provenance.json", "samples.jsonl")
DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "garbage": lambda data: random.Random(0).randbytes(len(data)),
    "another type": lambda data: b"[]\n",
    "another digit": changed_digit,
    "deleted": None,
}


def damaged(workdir, names, damage):
    for name in names:
        path = workdir / name
        if DAMAGES[damage] is None:
            path.unlink()
        else:
            path.write_bytes(DAMAGES[damage](path.read_bytes()))


def weights(workdir):
    return (workdir / "student" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_small_files_are_made_again_and_the_run_goes_on(
    damage, stopped, whole, flags_here, tmp_path
):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    damaged(workdir, SMALL, damage)
    again = cli.run(f"--workdir={workdir}", *flags_here)
    assert again.returncode == 0, again.stderr
    for name in SMALL:
        assert again.stdout.count(f"{name} was ") == 1, (name, again.stdout)
    assert weights(workdir) == weights(whole)
    assert numbers(workdir) == numbers(whole)
    for name in SMALL[:3]:
        assert (workdir / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_jobs_that_read_a_run_mend_its_config_and_sizes(damage, stopped, whole, tmp_path):
    """Without --config, which config.json would tell; the export is of the checkpoint."""
    workdir = shutil.copytree(stopped, tmp_path / "run")
    export = (f"--workdir={workdir}", "--config.job=export")
    assert cli.run(*export, config=None).returncode == 0
    expected = weights(workdir)
    shutil.rmtree(workdir / "student")
    names = SMALL[damage == "deleted" : 2]  # without a config.json there is none to be read
    damaged(workdir, names, damage)
    again = cli.run(*export, config=None)
    assert again.returncode == 0, again.stderr
    assert weights(workdir) == expected
    for name in names:
        assert again.stdout.count(f"{name} was missing or damaged") == 1
    damaged(workdir, ["student.json"], damage)
    refused = cli.run(f"--workdir={workdir}", "--config.job=evaluate", config=None)
    assert refused.returncode == 2
    assert "write the student of the last checkpoint by --config.job=export" in refused.stderr


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "deleted"])
def test_a_damaged_report_is_written_again(damage, whole, flags_here, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    damaged(workdir, ["report.json"], damage)
    again = cli.run(f"--workdir={workdir}", *flags_here)
    assert again.returncode == 0, again.stderr
    assert "report.json is damaged: it is written again" in again.stdout
    fresh, expected = (json.loads((w / "report.json").read_text()) for w in (workdir, whole))
    assert fresh["eval/nll"] == expected["eval/nll"]
    assert "is done" in cli.run(f"--workdir={workdir}", *flags_here).stdout


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


STUDENT_DAMAGES = {
    "a bit": lambda student: flipped(student / "model.safetensors"),
    "cut": lambda student: (student / "tokenizer.json").write_bytes(b"{"),
    "gone": shutil.rmtree,
}


@pytest.mark.parametrize("damage", STUDENT_DAMAGES)
def test_a_student_that_is_not_as_written_is_refused_and_written_again(
    damage, whole, flags_here, tmp_path
):
    workdir = shutil.copytree(whole, tmp_path / "run")
    STUDENT_DAMAGES[damage](workdir / "student")
    refused = cli.run(f"--workdir={workdir}", "--config.job=evaluate", config=None)
    assert refused.returncode == 2
    assert "--config.job=export" in refused.stderr
    again = cli.run(f"--workdir={workdir}", *flags_here)
    assert again.returncode == 0, again.stderr
    assert "is damaged or lost: it is written again" in again.stdout
    assert weights(workdir) == weights(whole)
    assert "is done" in cli.run(f"--workdir={workdir}", *flags_here).stdout


def test_a_run_of_no_known_config_is_refused(stopped, flags_here, tmp_path):
    """Checkpoints of a config that nothing tells must not go on with another one."""
    workdir = shutil.copytree(stopped, tmp_path / "run")
    damaged(workdir, ["config.json", "config_diff.txt"], "deleted")
    for job in ("train", "export", "evaluate"):
        again = cli.run(f"--workdir={workdir}", *flags_here, f"--config.job={job}")
        assert again.returncode == 2
        assert "put one of them back from a copy" in again.stderr


def test_a_run_whose_last_evaluation_was_lost_measures_again(whole, flags_here, tmp_path):
    """As where it ended between the last step and its report, and its metrics went, too."""
    workdir = shutil.copytree(whole, tmp_path / "run")
    for name in ("report.json", "metrics.jsonl"):
        (workdir / name).unlink()
    again = cli.run(f"--workdir={workdir}", *flags_here)
    assert again.returncode == 0, again.stderr
    assert numbers(workdir) == numbers(whole)[-1:]
    assert "the evaluation before it is lost" in again.stdout


def test_a_save_in_flight_is_written_where_the_numbers_break_down(flags, tmp_path, monkeypatch):
    monkeypatch.setattr("distill_jax.command_line.check_values", lambda _: None)  # a rate too large
    result = cli.run(
        f"--workdir={tmp_path}", *flags, "--config.optim.learning_rate=1e30",
        "--config.optim.max_skipped=2", "--config.checkpoint.every=1",
        "--config.checkpoint.keep_last=9",
    )  # fmt: skip
    assert result.returncode == 76, result.stderr
    assert result.stderr.count("error") == 1
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_1", "step_2",
    ]  # fmt: skip


LIMITS = {"raise ulimit -f": "ulimit -f 20", "raise ulimit -n": "ulimit -n 18"}


@pytest.mark.parametrize("remedy", LIMITS)
def test_a_limit_of_the_process_is_one_line_and_the_run_goes_on(
    remedy, whole, flags_here, tmp_path
):
    """A real process, which may write files of 20 blocks, or open 18 files."""
    command = cli.command(f"--workdir={tmp_path}", *flags_here)
    done = subprocess.run(
        ["bash", "-c", f'{LIMITS[remedy]}; exec "$@"', "bash", *command], cwd=cli.ROOT,
        env=cli.environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 70, done.stderr
    *before, last = done.stderr.strip().split("\n")
    assert remedy in last
    assert not any("Error" in line or "Traceback" in line for line in before), done.stderr
    assert not (tmp_path / "traceback.txt").exists()
    again = cli.run(f"--workdir={tmp_path}", *flags_here)
    assert again.returncode == 0, again.stderr
    assert weights(tmp_path) == weights(whole)
