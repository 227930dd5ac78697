"""From a config to a running job: the last room that sees a ConfigDict."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import jax
from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.build.cache import cache_job
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
            free = MAY_DIFFER | (EXPORT_MAY_DIFFER if c.job == "export" else set())
            workdir.claim(directory, flatten(c), config_diff(c, base), free)
        yield from job(c, directory)


JOBS = {
    "train": train_job,
    "study": study_job,
    "cache": cache_job,
    "evaluate": evaluate_job,
    "export": export_job,
    "generate": generate_job,
}
# Keys that change how a run is watched and not what it computes.
MAY_DIFFER = {"log.every", "log.tensorboard", "log.wandb_project", "watchdog_s", "data.prefetch"}
EXPORT_MAY_DIFFER = {"job", "export.dtype", "export.checkpoint"}
