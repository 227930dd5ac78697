"""What quantising costs, measured and said by the jobs that have a teacher and held-out text."""

from collections.abc import Callable, Sequence
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax.data.pack import Rows
from distill_jax.progress import Progress, say
from distill_jax.setup import quantising
from distill_jax.setup.models import Loaded


def with_costs(
    c: ConfigDict,
    loaded: Sequence[Loaded],
    rows: Callable[[], Rows],
    size: int,
    mesh: Mesh,
    progress: Progress,
    directory: Path | None = None,
) -> tuple[Loaded, ...]:
    """The same models, with the cost of those that are quantised, which is printed.

    rows(): of held-out text. size: of a batch. directory: of a run, which may know it already.
    """
    if all(one.model.bits is None for one in loaded):
        return tuple(loaded)
    known = quantising.known_costs(directory) if directory else ()
    with progress.stage("check", "measuring the quantised teacher") as stage:
        of = c, loaded, rows(), size, mesh
        loaded = quantising.measured(*of, stage.advance, known)
    for line in quantising.told(loaded):
        say(line)
    return loaded
