"""Which job a config names, and the directory it runs in."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from distill_jax import streams, workdir
from distill_jax.config import choose
from distill_jax.jobs.cache import cache_job
from distill_jax.jobs.diagnose import diagnose_job
from distill_jax.jobs.evaluate import evaluate_job
from distill_jax.jobs.export import export_job
from distill_jax.jobs.generate import generate_job
from distill_jax.jobs.study import study_job
from distill_jax.jobs.train import train_job
from distill_jax.jobs.verdict import verdict_job
from distill_jax.progress import Progress, say
from distill_jax.setup.growth import fitted
from distill_jax.setup.owner import Question, check_owner, mend, publish, question_of
from distill_jax.sharding import barrier
from distill_jax.types import UserError


class Job(NamedTuple):
    """What runs: of (config, workdir, progress), or of (question, progress) where it only reads."""

    run: Callable[..., Any]
    reads: bool = False


def run_job(c: ConfigDict, base: ConfigDict, directory: Path, progress: Progress) -> None:
    """Runs config.job in its directory, held by a lock.

    Raises UserError for an unknown job, or a directory of another config or of a running job.
    """
    job = JOBS[choose("job", c.job, JOBS)]
    lock = workdir.locked(directory) if jax.process_index() == 0 else nullcontext()
    with lock, _room(directory):
        if mended := mend(directory):
            say(mended)
        barrier("whose the directory is")
        c, adapted = fitted(c, base, directory)
        for line in adapted:
            say(line)
        if job.reads:
            _read(job, question_of(c, directory), progress)
        else:
            check_owner(c, directory)
            job.run(c, directory, progress)


@contextmanager
def _room(directory: Path) -> Iterator[None]:
    """Raises UserError where whatever wrote found its disk full: waiting would not help.

    Not where that is stdout, which program.py tells of.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Of a background save the reason is left in the text alone.
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if (full or os.strerror(errno.ENOSPC) in str(error)) and not streams.refused(error):
            raise UserError(
                f"the disk of {directory} is full: make room and run the same command again, which"
                " goes on from what is saved"
            ) from error
        raise


def _read(job: Job, asked: Question, progress: Progress) -> None:
    job.run(asked, progress)
    if jax.process_index() == 0:
        publish(asked)


JOBS = {
    "train": Job(train_job),
    "study": Job(study_job),
    "verdict": Job(verdict_job),
    "diagnose": Job(diagnose_job, reads=True),
    "cache": Job(cache_job),
    "evaluate": Job(evaluate_job, reads=True),
    "export": Job(export_job),
    "generate": Job(generate_job, reads=True),
}
