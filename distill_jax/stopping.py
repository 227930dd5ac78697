"""How a run stops early: all processes at the same step, or by a watchdog."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from distill_jax.sharding import anywhere

STEPS_BETWEEN_STOP_CHECKS = 10  # with several processes


def shared(flag: bool, step: int) -> bool:
    """Whether any process has set the flag: all must agree, or the next collective hangs.

    Several processes compare flags only every few steps, because that waits for the device.
    """
    if jax.process_count() > 1 and step % STEPS_BETWEEN_STOP_CHECKS:
        return False
    return anywhere(flag)


@contextmanager
def watchdog(limit_s: float, tell: Callable[[str], None]) -> Iterator[Callable[..., None]]:
    """Ends the process with code 74 if alive() is not called for `limit_s` seconds.

    alive(more_s) gives it that much more time, until the next call; tell(text) says why it ends. A
    hung collective cannot be interrupted from Python, hence os._exit.
    """
    deadline, over = [time.monotonic() + limit_s], threading.Event()

    def alive(more_s: float = 0.0) -> None:
        deadline[0] = time.monotonic() + limit_s + more_s

    def watch():
        while not over.wait(min(limit_s / 4, 10.0)):
            if time.monotonic() > deadline[0]:
                tell(f"nothing went on for {limit_s:g} s (config.watchdog_s): run again")
                os._exit(74)

    thread = threading.Thread(target=watch, daemon=True)
    if limit_s > 0:
        thread.start()
    try:
        yield alive
    finally:
        over.set()
