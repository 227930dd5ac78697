"""Several simulated devices of a CPU (--xla_force_host_platform_device_count) in one process."""

import os
import re

COUNT = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
THREADS = 4  # per device


def prepare() -> None:
    """Gives the devices threads enough to wait for one another; before JAX makes the devices.

    XLA has one pool for all: a thread per device, on a machine of fewer cores. Of collectives that
    do not depend on one another each device begins several, each of which keeps a thread until all
    devices have come. With the pool used up so, some never come, and XLA aborts after 40 seconds.
    The size of its pools is what NPROC says, where that is set.
    """
    counts = COUNT.findall(os.environ.get("XLA_FLAGS", ""))
    if counts and int(counts[-1]) > 1:
        os.environ.setdefault("NPROC", str(THREADS * int(counts[-1])))
