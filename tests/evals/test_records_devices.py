"""Per-token records on eight devices and in two processes are those of one device."""

import os
import socket
import subprocess
import sys

import jax
import pytest

from distill_jax.evals.records_file import read_records
from distill_jax.sharding import make_mesh
from tests.cli import ROOT, environment
from tests.evals.test_records import assert_close, measure, pair, reference

eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see below")


@eight
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (2, 1, 1, 1, 4)])
def test_devices_change_nothing(sizes):
    found = measure(pair(64), batch_size=8, block_tokens=64, mesh=make_mesh(*sizes), seed=3)
    assert_close(found, reference(64))


@pytest.mark.skipif(jax.device_count() == 8, reason="runs in the process that it starts")
def test_on_eight_simulated_devices():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "devices_change"]
    done = subprocess.run(
        [*command, __file__], cwd=ROOT, env=os.environ | environment(8),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "3 passed" in done.stdout


PROCESS = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from distill_jax.data.pack import pack
from distill_jax.data.pipeline import eval_batches
from distill_jax.evals.records import collect, make_record_step
from distill_jax.evals.records_file import Records, write_records
from distill_jax.objective import live_teacher
from distill_jax.sharding import local_rows, make_mesh, place_whole, to_global
from pathlib import Path
from tests.evals import test_records as here

assert jax.process_count() == 2 and jax.device_count() == 4
mesh = make_mesh(*eval(sys.argv[4]))
student, teacher, params, teacher_params = here.pair(64)
host = jax.tree.map(np.asarray, (params, teacher_params))
params, teacher_params = place_whole(host, mesh)
rows = pack(here.TEXT, seq_len=here.SEQ_LEN, seed=3)
part = local_rows(mesh, 8)
batches = eval_batches(rows, batch_size=8, prefetch=0, row_slice=part)
step = make_record_step(student, live_teacher(teacher), block_tokens=24, mesh=mesh)
placed = (to_global(batch, mesh, 8) for batch in batches)
columns = collect(step, params, (teacher_params,), placed, rows)
write_records(Path(sys.argv[3]), Records(columns, {}))
"""


@pytest.mark.parametrize("sizes", [(4, 1, 1), (1, 1, 1, 1, 4)])  # rows, or tokens, over both
def test_two_processes_each_have_every_token(tmp_path, sizes):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = os.environ | environment(2) | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(i), str(tmp_path / f"{i}.parquet"),
             str(sizes)],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        for process in running:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in running:
            process.kill()
    for i in range(2):
        assert_close(read_records(tmp_path / f"{i}.parquet").columns, reference(64))
