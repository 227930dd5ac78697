"""The writers that a config asks for, open as long as a run lasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from ml_collections import ConfigDict

from distill_jax import writers
from distill_jax.config import flatten
from distill_jax.writers import Writer


def check(c: ConfigDict) -> None:
    """Raises UserError where a writer that is asked for cannot be used."""
    if jax.process_index() == 0:
        writers.check(tensorboard=c.log.tensorboard, wandb_project=c.log.wandb_project)


@contextmanager
def writing(
    c: ConfigDict, directory: Path, *, name: str, group: str = ""
) -> Iterator[tuple[Writer, ...]]:
    """Opens the writers of one run on process 0, and closes them on every way out.

    name, group: of the run in W&B.
    """
    opened: list[Writer] = []
    failed = True
    try:
        if jax.process_index() == 0:
            if c.log.tensorboard:
                opened.append(writers.tensorboard(directory, flatten(c)))
            if project := c.log.wandb_project:
                opened.append(writers.wandb(project, directory, flatten(c), name=name, group=group))
        yield tuple(opened)
        failed = False
    finally:
        for writer in opened:
            writer.close(failed)
