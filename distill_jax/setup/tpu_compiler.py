"""The compiler of TPUs, which needs no TPU: libtpu, where it is installed."""

import importlib.util
from collections.abc import Sequence
from typing import Any

# Of libtpu, where no TPU is used: no metadata server is asked, and another process may have it too.
# Set before it is loaded.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def is_installed() -> bool:
    """Whether there is a compiler of TPUs."""
    return importlib.util.find_spec("libtpu") is not None


def devices_of(topology: str) -> Sequence[Any]:
    """The devices of a topology such as v5e:4x4: to be compiled for, not to be computed on."""
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
