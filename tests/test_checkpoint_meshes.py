"""Fingerprints hold on another mesh, and several processes go on from the same checkpoint."""

import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax import checkpoint
from tests import cli
from tests.test_checkpoint_damage import arrays, assert_same, gone_on, opened, state_of

STEPS = (4, 6)
MEMBER = """
import sys
from pathlib import Path
import jax
from absl import logging
what, directory, processes, index, port = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
logging.set_verbosity(logging.ERROR)
if processes > 1:
    jax.distributed.initialize(f"localhost:{port}", processes, index)
from distill_jax import checkpoint
from tests.test_checkpoint_damage import opened
from tests.test_checkpoint_meshes import STEPS, sharded
manager = opened(directory)
if what == "save":
    for step in STEPS:
        checkpoint.save(manager, sharded(step), None)
else:
    state = checkpoint.restore_good(manager, sharded(0), lambda text: print(text, flush=True))
    print(f"step {state.step}", flush=True)
manager.close()
"""


def sharded(step):
    """The state of test_checkpoint_damage with its matrix split over all devices."""
    state, mesh = state_of(step), Mesh(np.array(jax.devices()), ("fsdp",))
    spec = lambda x: PartitionSpec("fsdp") if x.ndim == 2 else PartitionSpec()
    host = jax.tree.map(np.asarray, state)
    place = lambda x: jax.make_array_from_callback(
        x.shape, NamedSharding(mesh, spec(x)), lambda index: x[index]
    )
    return jax.tree.map(place, host)


def together(what, directory, processes, devices):
    """The lines of each process of a group."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, what, directory, *map(str, (processes, index, port))],
            cwd=cli.ROOT, env=cli.environment(devices), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index in range(processes)
    ]  # fmt: skip
    ended = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * processes, ended
    return [out.splitlines() for out, _ in ended], [error for _, error in ended]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """Checkpoints that two processes of two devices wrote."""
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    together("save", directory, 2, 2)
    return directory


def test_what_several_devices_wrote_is_verified_on_one(by_two):
    state, said = gone_on(by_two)
    assert_same(state, 6)
    assert said == []


def test_what_one_device_wrote_is_verified_on_eight(tmp_path):
    manager = opened(tmp_path)
    checkpoint.save(manager, state_of(6), None)
    manager.close()
    assert together("restore", tmp_path, 1, 8)[0] == [["step 6"]]


def test_damage_that_one_process_alone_meets_is_a_damage_for_all(by_two, tmp_path):
    copy = shutil.copytree(by_two, tmp_path / "checkpoints")
    theirs = arrays(copy / "step_6", of="state/ocdbt.process_1")
    theirs.write_bytes(theirs.read_bytes()[:100])
    (first, second), errors = together("restore", copy, 2, 2)
    assert first[-1] == second[-1] == "step 4"
    assert sum("step 6 is damaged" in line for line in first) == 1
    assert sorted(path.name for path in copy.iterdir()) == ["damaged_step_6", "step_4"]
    assert not any("Traceback" in text for text in errors)
