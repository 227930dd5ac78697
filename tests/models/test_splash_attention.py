"""The TPU's kernel against the definition in float64, its arithmetic done by XLA on this machine.

What the TPU's own compiler makes of it stands in tests/tpu.
"""

import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from distill_jax.models import splash_attention
from distill_jax.models.attention_pattern import Pattern
from tests.cli import ROOT, environment
from tests.models.attention_oracle import SETTINGS, Setting, check, draw, outputs_and_gradients

LENGTH = 140  # two blocks, one of them mostly padding
GROUPED = Setting(Pattern(window=60, scale=0.3, softcap=4.0), True, 4, 2, 16)
attend = partial(splash_attention.attend, interpret=True)
eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see the last test")
one = pytest.mark.skipif(jax.device_count() == 8, reason="a test of one device")


@one
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_it_is_the_definition(setting):
    drawn = draw(setting, LENGTH)
    check(partial(attend, pattern=setting.pattern, mesh=None), setting, drawn, jnp.float32, 1e-5)


@one
def test_it_is_the_definition_in_bfloat16():
    call = partial(attend, pattern=GROUPED.pattern, mesh=None)
    check(call, GROUPED, draw(GROUPED, LENGTH), jnp.bfloat16, 2e-2)


@one
def test_blocks_waste_an_eighth_at_most():
    for length in range(1, 9000, 37):
        for ways in (1, 2, 4):
            block, padded = splash_attention.whole_blocks(length, ways, "TPU v6 lite")
            least = -(-length // (128 * ways)) * 128 * ways
            assert padded % (block * ways) == 0
            assert length <= padded <= least * 9 / 8
    assert splash_attention.whole_blocks(4096, 1, "TPU v6 lite") == (1024, 4096)
    assert splash_attention.whole_blocks(4096, 1, "TPU v5 lite") == (512, 4096)


@eight
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_a_mesh_changes_nothing(kv_heads):
    """Rows, queries and heads are split; heads only where the mesh divides those of keys too."""
    setting = GROUPED._replace(kv_heads=kv_heads)
    names = ("data", "fsdp", "expert", "sequence", "tensor")
    mesh = jax.make_mesh((2, 1, 1, 2, 2), names, axis_types=(AxisType.Auto,) * 5)
    drawn = draw(setting, 2 * LENGTH)
    on = lambda mesh: outputs_and_gradients(
        partial(attend, pattern=setting.pattern, mesh=mesh), drawn, jnp.float32
    )
    alone = on(None)
    for name, x in on(mesh).items():
        np.testing.assert_allclose(x, alone[name], rtol=1e-4, atol=1e-5, err_msg=name)


@one
def test_on_eight_simulated_devices():
    """The test above, in a process of eight devices."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment(8), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) == 2
