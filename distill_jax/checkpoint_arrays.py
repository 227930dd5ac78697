"""Reads the arrays of a checkpoint by orbax, so that a damaged one is an exception and no more."""

import asyncio
import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from distill_jax.checkpoint_files import Damaged


def read_arrays(path: Path, abstract: Any) -> Any:
    """The arrays of a directory in the shapes and shardings of `abstract`, not verified.

    Waits for no other process, of which any one may fail. Raises Damaged.
    """
    with _silent():
        try:
            item = ocp.args.StandardRestore(abstract)
            return jax.block_until_ready(ocp.StandardCheckpointHandler().restore(path, args=item))
        except Exception as error:  # of whichever kind orbax, tensorstore or a codec has for it
            reason = "its arrays cannot be read"
            if isinstance(error, OSError) and error.strerror:
                reason += f" ({error.strerror})"
        gc.collect()
    raise Damaged(reason)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that is closed once all that it has begun is over."""

    def close(self):
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


@contextmanager
def _silent() -> Iterator[None]:
    """Orbax closes its event loop at the first array that fails, while others are being read.

    Each of these would write a traceback to stderr, and each that is not begun a warning. Orbax
    takes no loop; Python 3.14 deprecates policies, which would give one.
    """
    before = asyncio.new_event_loop
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        asyncio.new_event_loop = asyncio.events.new_event_loop = _Loop  # for asyncio.run, too
        try:
            yield
        finally:
            asyncio.new_event_loop = asyncio.events.new_event_loop = before
