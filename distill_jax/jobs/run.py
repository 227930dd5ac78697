"""Which job a config names, and the directory it runs in."""

import secrets
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.config import choose
from distill_jax.jobs.cache import cache_job
from distill_jax.jobs.diagnose import diagnose_job
from distill_jax.jobs.evaluate import evaluate_job
from distill_jax.jobs.export import export_job
from distill_jax.jobs.generate import generate_job
from distill_jax.jobs.plan import plan_job
from distill_jax.jobs.replay import replay_job
from distill_jax.jobs.study import study_job
from distill_jax.jobs.train import train_job
from distill_jax.jobs.verdict import verdict_job
from distill_jax.progress import Progress, say
from distill_jax.setup.growth import fitted
from distill_jax.setup.owner import Question, check_owner, mend, publish, question_of
from distill_jax.sharding import anywhere, barrier, told_by_first
from distill_jax.types import UserError


class Job(NamedTuple):
    """What runs: of (config, workdir, progress), or of (question, progress) where it only reads.

    owns: its directory belongs to its config.
    """

    run: Callable[..., Any]
    reads: bool = False
    owns: bool = True


def run_job(c: ConfigDict, base: ConfigDict, directory: Path, progress: Progress) -> None:
    """Runs config.job in its directory, held by a lock.

    Raises UserError for an unknown job, or a directory of another config, of a running job or of
    one host alone.
    """
    job = JOBS[choose("job", c.job, JOBS)]
    lock = workdir.locked(directory) if jax.process_index() == 0 else nullcontext()
    with lock:
        _check_shared(directory)
        if mended := mend(directory):
            say(mended)
        barrier("whose the directory is")
        c, adapted = fitted(c, base, directory)
        for line in adapted:
            say(line)
        if job.reads:
            _read(job, question_of(c, directory), progress)
        else:
            if job.owns:
                check_owner(c, directory)
            job.run(c, directory, progress)


def _check_shared(directory: Path) -> None:
    """Raises UserError on all processes where one of them does not see what process 0 writes."""
    if jax.process_count() == 1:
        return
    mark = directory / f".seen-{told_by_first(secrets.randbits(31))}"
    if jax.process_index() == 0:
        mark.touch()
    barrier("process 0 has written")
    lost = anywhere(not mark.exists())
    if jax.process_index() == 0:
        mark.unlink()
    if lost:
        raise UserError(
            f"--workdir {directory} is not one directory for all {jax.process_count()} processes:"
            " give one that all hosts have mounted, such as of NFS"
        )


def _read(job: Job, asked: Question, progress: Progress) -> None:
    job.run(asked, progress)
    if jax.process_index() == 0:
        publish(asked)


JOBS = {
    "train": Job(train_job),
    "plan": Job(plan_job, owns=False),
    "study": Job(study_job),
    "verdict": Job(verdict_job),
    "diagnose": Job(diagnose_job, reads=True),
    "cache": Job(cache_job),
    "evaluate": Job(evaluate_job, reads=True),
    "export": Job(export_job),
    "generate": Job(generate_job, reads=True),
    "replay": Job(replay_job),
}
