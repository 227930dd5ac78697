"""Whose a workdir is: what a rerun may change, and what a job that reads a model is of."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.config import config_diff, config_of_diff, flatten, load_base
from distill_jax.files import sealed
from distill_jax.key_names import OPEN
from distill_jax.seals import changed, read_seal
from distill_jax.setup.early import check_read
from distill_jax.setup.mixture import sources_of
from distill_jax.setup.teachers import AVERAGE
from distill_jax.types import UserError

# Patterns of keys that change what is shown and guarded, not what is computed.
UNCOUNTED = ("log.*", "distributed.*", "watchdog_s", "data.prefetch", "data.store", "replay.*")
# The same for what trains: when it evaluates, what it keeps, how often it may go back to that, and
# what it writes.
KEPT = ("checkpoint.*", "optim.max_rollbacks")
PLACED = ("*.shard", "teacher.kl_tokens")  # where parameters lie, and how well they are known
BESIDE = (*UNCOUNTED, *KEPT, *PLACED, "eval.every", "eval.batch_size", "generate.*")
OTHERS = ("eval.*", "export.*", "study.*", "verdict.*", "diagnose.*")  # of other jobs
ARMS_AND_SEEDS = ("study.arms", "study.seeds", f"{OPEN}*")
MAY_CHANGE = {
    "train": (*BESIDE, *OTHERS, "cache.*", "steps"),
    # Arms and seeds may be added; margins stay as they were before the first run. What an arm that
    # was measured had for a config is known to its seal.
    "study": (*BESIDE, *ARMS_AND_SEEDS, "study.gate", "study.price_per_hour"),
    "cache": (*BESIDE, *OTHERS),
    "export": (*BESIDE, *OTHERS, "cache.*", "job"),
    "replay": (*BESIDE, *OTHERS, "cache.*", "steps", "job"),
    "verdict": ("*.*", "seed", "steps", "watchdog_s"),  # the directory is of its last verdict
}
# What depends on the number of steps.
OF_EPOCHS = ("epochs", "steps", "optim.warmup_steps", "optim.decay_steps")


class Question(NamedTuple):
    """What a job that only reads a model is asked, and where its answer goes.

    config     with the exported student as student.path, where the workdir is a training run's
    own_text   the text is what that run holds out of data.source
    run        the flat config that this student was trained with; None where no run is known
    """

    config: ConfigDict
    directory: Path
    results: Path
    own_text: bool
    run: Mapping[str, Any] | None = None


def matches(key: str, patterns: Iterable[str]) -> bool:
    """Whether a key matches one of some patterns."""
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def check_owner(c: ConfigDict, directory: Path, beside: Iterable[str] = ()) -> None:
    """Raises UserError where what a directory keeps is of another config.

    A run in epochs keeps the steps that they were: before these are known, they are not compared.
    beside: further keys that may differ.
    """
    free = (*MAY_CHANGE[c.job], *(OF_EPOCHS if c.epochs else ()), *beside)
    defaults = flatten(load_base())
    workdir.check(directory, flatten(c), defaults, lambda key: matches(key, free))


def claim(c: ConfigDict, directory: Path) -> None:
    """Makes the directory that of a config; called with the first product, on process 0."""
    workdir.claim(directory, flatten(c), config_diff(c, load_base()))


def mend(directory: Path) -> str:
    """Makes config.json of a run again from config_diff.txt, where it is missing or damaged.

    Gives a line that says so. Raises UserError where neither tells whose the directory is.
    """
    if not workdir.config_lost(directory):
        return ""
    try:
        diff = (directory / workdir.CONFIG_DIFF).read_text(encoding="utf-8")
    except (OSError, ValueError):
        diff = ""
    values = config_of_diff(diff, load_base())
    if values is None:
        workdir.owner(directory)
    elif jax.process_index() == 0:
        workdir.write_json(directory / workdir.CONFIG, sealed(values))
    return (
        f"{directory / workdir.CONFIG} was missing or damaged: written again by what"
        f" {workdir.CONFIG_DIFF} says"
    )


def question_of(c: ConfigDict, directory: Path) -> Question:
    """What a job reads in a workdir: the run's own student and text, or what the config names.

    Raises UserError where the run has no student yet, or where what is read is not there.
    """
    run, own_text, trained = workdir.owner(directory), False, None
    c = c.copy_and_resolve_references()
    if run is not None and c.student.path in ("", run["student.path"]):
        if run["job"] in ("train", "export"):
            c.student.path = str(_file_of(directory, run["job"]) or _student(directory))
            trained = run if run["job"] == "train" else None
        else:
            refuse_study(directory)
    if run is not None and run["job"] == "train" and not c.data.eval_source:
        own_text = flatten(c)["data.source"] == run["data.source"]
    if c.teacher.path == AVERAGE:  # a run's own, which is no model to be read
        c.teacher.path = ""
    check_read(c)
    asked = {key: value for key, value in flatten(c).items() if not matches(key, UNCOUNTED)}
    results = workdir.result_directory(directory, c.job, _title(c, own_text), asked)
    return Question(c, directory, results, own_text, trained)


def refuse_study(directory: Path) -> None:
    """Raises UserError where a workdir is of a study."""
    run = workdir.owner(directory)
    if run is not None and run["job"] == "study":
        raise UserError(
            f"--workdir {directory} is of a study, which has several students: give the workdir of"
            f" one of its runs, such as {directory}/arms/kd/seed-{run['seed']}"
        )


def publish(asked: Question) -> None:
    """Completes the answer, which stands at the top of a directory without owner, too."""
    c = asked.config
    diff = config_diff(c, load_base())
    workdir.publish(asked.results, asked.directory, flatten(c), diff)


def _file_of(directory: Path, job: str) -> Path | None:
    """The GGUF file of a workdir in which the job export has written nothing else."""
    path = directory / workdir.STUDENT_FILE
    alone = job == "export" and path.exists() and not (directory / workdir.STUDENT).exists()
    return path if alone else None


def _student(directory: Path) -> Path:
    path = directory / workdir.STUDENT
    if not path.exists():
        raise UserError(
            f"--workdir {directory} has no student yet: finish the run by its own command, or write"
            " the student of its last checkpoint by --config.job=export"
        )
    seal = read_seal(directory)  # of a run of a study
    if seal and (bad := changed(directory, seal, f"{workdir.STUDENT}/")):
        raise UserError(
            f"{directory / bad[0]} is damaged or lost: run the study again, which trains it again"
        )
    if bad := workdir.changed_student(directory):
        raise UserError(
            f"{directory / bad[0]} is lost or not what the run wrote: write the student again by"
            f" --config.job=export, or say that it is meant by --config.student.path={path}"
        )
    noted, last = workdir.exported(directory), workdir.last_checkpoint(directory)
    if noted is None and last:
        raise UserError(
            f"{directory / workdir.EXPORTED} is missing or damaged, so {path} may be of any step:"
            " write the student of the last checkpoint by --config.job=export"
        )
    if noted and last > noted[1]:
        raise UserError(
            f"{path} is of step {noted[0]}, and the run has trained on to step {last}: finish it by"
            " its own command, or write the student of its last checkpoint by --config.job=export"
        )
    return path


def _title(c: ConfigDict, own_text: bool) -> str:
    """A readable name of what a job reads."""
    if c.job == "generate":
        first = c.generate.messages or next(iter(c.generate.prompts), "")
        if first.startswith("@") and not first.startswith("@@"):
            return Path(first[1:]).stem
        return "conversation" if c.generate.messages else first
    sources = (c.data.eval_source,) if c.data.eval_source else sources_of(c)
    return "held-out" if own_text else "-".join(Path(source).stem for source in sources)
