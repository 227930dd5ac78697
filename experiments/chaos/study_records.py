"""Damages each file that a study leaves behind, runs the study again, and says what came of it.

    python -m experiments.chaos.study_records --workdir=/tmp/records

A study of tiny models (those of the tests) is made once in --workdir; each damage gets a copy of
it, in the same place. What can come out, by the exit code, the lines, and the numbers of
report.json that neither a clock nor the machine has made:

    held     the numbers are those of the undamaged study, and a line names what was damaged
    rebuilt  the same without a line: nothing reads that file, which is written anew
    unseen   the same without a line, and the file stays damaged
    refused  exit code 2 and one line
    silent   exit code 0 without a line, and other numbers
    lost     a line says so, and other numbers (a learning curve that cannot be had again)
    crash    any other exit code
"""

import argparse
import collections
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests import cli

STUDY = (
    "--config.job=study", "--config.study.seeds=2", "--config.study.prompts=3",
    "--config.study.prompt_tokens=4", "--config.study.new_tokens=4",
    "--config.study.arms=('kd','sft')", "--config.study.measure=kl_to_teacher",
)  # fmt: skip
RUN, ARM, SEED = "arms/kd/seed-0", "arms/sft/seed-0", "arms/kd/seed-1"
OUTCOMES = ("held", "rebuilt", "refused", "lost", "unseen", "silent", "crash")

Damage = Callable[[Path], None]


def flip(share: float, bit: int = 0) -> Damage:
    """Flips one bit at a share of the file's length."""

    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(int(share * len(data)), len(data) - 1)] ^= 1 << bit
        path.write_bytes(data)

    return damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def other_json(path: Path) -> None:
    path.write_text("{}")


def copy_of(other: str) -> Damage:
    """The same file, or directory, of another run in its place."""

    def damage(path: Path) -> None:
        source = path.parents[len(path.parts) - path.parts.index("arms") - 1] / other
        name = path.relative_to(source.parents[2] / RUN)
        delete(path)
        (shutil.copytree if (source / name).is_dir() else shutil.copyfile)(source / name, path)

    return damage


def edited(change: Callable[[dict], None]) -> Damage:
    """A JSON object with other values, as a hand or a script would change them."""

    def damage(path: Path) -> None:
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value, indent=2))

    return damage


def bump(*keys: str, by: float = 1.0) -> Damage:
    """Adds to a number."""

    def change(value: dict) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = (value[keys[-1]] or 0) + by

    return edited(change)


BYTES = {"flip": flip(0.5), "truncate": truncate, "empty": empty, "zeros": zeros, "delete": delete}
JSON = BYTES | {"{}": other_json}
OTHERS = {"another arm's": copy_of(ARM), "another seed's": copy_of(SEED)}
FLIPS = {f"flip at {share:.0%}": flip(share, bit=3) for share in (0.05, 0.2, 0.35, 0.65, 0.8, 0.95)}
DAMAGES: dict[str, dict[str, Damage]] = {
    f"{RUN}/tokens.parquet": BYTES | FLIPS | OTHERS,
    f"{RUN}/result.json": JSON | OTHERS | {
        "nll + 1.0": bump("metrics", "nll"),
        "KL + 1.0": bump("metrics", "forward_kl"),
        "parameters + 1": bump("parameters", by=1),
        "a failure written in": edited(lambda value: value.update(failed="not finite")),
    },
    f"{RUN}/behaviour.json": JSON | OTHERS,
    f"{RUN}/examples.json": {"truncate": truncate, "empty": empty, "delete": delete},
    f"{RUN}/metrics.jsonl": BYTES | OTHERS,
    f"{RUN}/student/model.safetensors": BYTES | OTHERS,
    f"{RUN}/student/config.json": {"truncate": truncate, "delete": delete},
    f"{RUN}/student": {"delete": delete} | OTHERS,
    RUN: {"delete": delete} | OTHERS,
    "study.json": JSON | {"a look taken away": edited(lambda value: value.update(looks=[]))},
    "teacher/behaviour.json": JSON | {
        "number + 1.0": bump("metrics", "distinct_1"),
        "an arm's": lambda path: shutil.copyfile(path.parents[1] / RUN / path.name, path),
    },
    "serving.json": {"truncate": truncate, "empty": empty, "{}": other_json, "delete": delete,
                     "price": bump("price_per_hour")},
    "results.jsonl": {"truncate": truncate, "delete": delete},
    "report.json": {"truncate": truncate, "delete": delete},
}  # fmt: skip
SEALS = {f"{RUN}/seal.json": JSON | OTHERS}  # of which an earlier version has none


def numbers_of(root: Path) -> dict:
    """What must not change: all but clocks and what is about this machine."""
    report = json.loads((root / "report.json").read_text())
    for name in ("cost", "config", "config_diff", "provenance", "options"):
        report.pop(name)
    for arm in report["arms"]:
        for run in arm["runs"]:
            run.pop("wall_s")
    return report


def content(path: Path) -> list[tuple[Path, bytes]]:
    """A file, or all files of a directory; nothing where there is none."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(file.relative_to(path), file.read_bytes()) for file in files if file.is_file()]


def outcome(done, before: dict, root: Path, stays: bool) -> tuple[str, str]:
    """What came of one damage, and the line that tells of it. stays: the damage is still there."""
    said = [*done.stdout.split("\n"), *done.stderr.split("\n")]
    told = [line for line in said if ("arms/" in line and "again" in line) or "damaged" in line]
    lines = [line for line in done.stderr.split("\n") if line.startswith("error")]
    if done.returncode == 2:
        return "refused", lines[-1]
    if done.returncode:
        return "crash", lines[-1]
    same = numbers_of(root) == before
    if told:
        return ("held" if same else "lost"), told[0]
    return ("unseen" if same and stays else "rebuilt" if same else "silent"), ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--part", default="1/1", help="such as 2/5: every fifth, from the second")
    options = parser.parse_args()
    part, of = map(int, options.part.split("/"))
    world, study, whole = (options.workdir / name for name in ("world", "study", "whole"))
    flags = (
        f"--config.teacher.path={world / 'teacher'}", f"--config.student.path={world / 'student'}",
        f"--config.data.source={world / 'text.jsonl'}", *cli.SMALL, *STUDY,
    )  # fmt: skip
    if not whole.exists():
        cli.write_model(world / "teacher", seed=1, width=24, blocks=3)
        cli.write_model(world / "student", seed=2)
        cli.write_text(world / "text.jsonl")
        for _ in range(2):
            done = cli.run(f"--workdir={study}", *flags)
            assert done.returncode == 0, done.stderr
        study.rename(whole)
    before = numbers_of(whole)
    known = DAMAGES | (SEALS if (whole / RUN / "seal.json").exists() else {})
    cases = [(path, name, do) for path, own in known.items() for name, do in own.items()]
    counts: collections.Counter[str] = collections.Counter()
    for path, name, damage in cases[part - 1 :: of]:
        shutil.rmtree(study, ignore_errors=True)
        shutil.copytree(whole, study)
        damage(study / path)
        damaged = content(study / path)
        done = cli.run(f"--workdir={study}", *flags)
        found, line = outcome(done, before, study, content(study / path) == damaged)
        counts[found] += 1
        print(f"{found:8} | {path} | {name} | {line.replace(str(study) + '/', '')}", flush=True)
    print(f"{sum(counts.values())} damages: " + ", ".join(f"{counts[o]} {o}" for o in OUTCOMES))


if __name__ == "__main__":
    main()
