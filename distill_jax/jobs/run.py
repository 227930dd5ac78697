"""Which job a config names, and the directory it runs in."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.config import choose, config_diff, flatten
from distill_jax.jobs.cache import cache_job
from distill_jax.jobs.diagnose import diagnose_job
from distill_jax.jobs.evaluate import evaluate_job
from distill_jax.jobs.export import export_job
from distill_jax.jobs.generate import generate_job
from distill_jax.jobs.study import study_job
from distill_jax.jobs.train import train_job
from distill_jax.jobs.verdict import verdict_job
from distill_jax.progress import say
from distill_jax.setup.inputs import UNCOUNTED
from distill_jax.setup.loss import fit_to_steps


class Job(NamedTuple):
    """What runs, and the keys that a rerun in the same directory may change.

    claims: the job claims the directory itself, with its first product.
    """

    run: Callable[[ConfigDict, Path], None]
    may_change: frozenset[str] = frozenset()
    claims: bool = False


def run_job(c: ConfigDict, base: ConfigDict, directory: Path) -> None:
    """Runs config.job in its directory, held by a lock.

    Raises UserError for an unknown job, or a directory of another config or of a running job.
    """
    job = JOBS[choose("job", c.job, JOBS)]
    c, adapted = fit_to_steps(c, base)
    for line in adapted:
        say(line)
    first = jax.process_index() == 0
    with workdir.locked(directory) if first else nullcontext():
        if first and not job.claims:
            free = UNCOUNTED | job.may_change
            workdir.claim(directory, flatten(c), config_diff(c, base), free)
        job.run(c, directory)


JOBS = {
    "train": Job(train_job),
    # Arms and seeds may be added; margins stay as they were before the first run.
    "study": Job(
        study_job, frozenset({"study.arms", "study.seeds", "study.gate", "study.price_per_hour"})
    ),
    "verdict": Job(verdict_job, claims=True),
    "diagnose": Job(diagnose_job),
    "cache": Job(cache_job),
    "evaluate": Job(evaluate_job),
    "export": Job(export_job, frozenset({"job", "export.dtype", "export.checkpoint"})),
    "generate": Job(generate_job),
}
