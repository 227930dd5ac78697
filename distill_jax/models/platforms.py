"""For which platform a program is traced: that of the devices it will run on, not of the process.

A process on a CPU may compile for the devices of a pod.
"""

import jax
from jax.sharding import Mesh


def platform_of(mesh: Mesh | None) -> str:
    """cpu, gpu or tpu; without a mesh, of the first device here."""
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    return device.platform
