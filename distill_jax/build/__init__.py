"""From a config to a running job: the last room that sees a ConfigDict."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import jax
from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.build.cache import cache_job
from distill_jax.build.diagnose import diagnose_job
from distill_jax.build.inputs import WATCHED
from distill_jax.build.jobs import evaluate_job, export_job, generate_job
from distill_jax.build.study import study_job
from distill_jax.build.training import train_job
from distill_jax.config import choose, config_diff, flatten


def run_job(c: ConfigDict, base: ConfigDict, directory: Path) -> Iterator[str]:
    """Runs config.job in its directory, held by a lock; yields the lines a person reads."""
    job = JOBS[choose("job", c.job, JOBS)]
    first = jax.process_index() == 0
    with workdir.locked(directory) if first else nullcontext():
        if first:
            free = WATCHED | JOB_MAY_DIFFER.get(c.job, set())
            workdir.claim(directory, flatten(c), config_diff(c, base), free)
        yield from job(c, directory)


JOBS = {
    "train": train_job,
    "study": study_job,
    "diagnose": diagnose_job,
    "cache": cache_job,
    "evaluate": evaluate_job,
    "export": export_job,
    "generate": generate_job,
}
JOB_MAY_DIFFER = {
    "export": {"job", "export.dtype", "export.checkpoint"},
    # Arms and seeds may be added; margins stand as they were before the first run.
    "study": {"study.arms", "study.seeds", "study.gate", "study.price_per_hour"},
}
