"""Where teacher and student lie changes nothing: eight devices, and every choice of axes."""

import os
import re
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util
from jax.sharding import Mesh

from distill_jax.losses.terms import Term, make_plan
from distill_jax.models.binding import bind
from distill_jax.models.families import FAMILIES
from distill_jax.models.quantise import quantised_params
from distill_jax.objective import live_teacher, objective
from distill_jax.quantised import Bits
from distill_jax.sharding import AXES, make_mesh, parameter_shardings, to_global
from distill_jax.step import init_state, make_train_step
from tests import tiny
from tests.cli import ROOT, environment

eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see the last test")
ALL = ("fsdp", "expert", "tensor")
# Of teacher and student, and the bits of the teacher.
CHOICES = [
    (ALL, (), Bits("int4", 8)),  # of three groups of neurons, one is on both devices
    (("tensor",), ("fsdp",), Bits("int8", 0)),
]
EXPERTS = {"experts": 4, "experts_per_token": 2, "router_normalised": True, "family": "mixtral"}


def bound(mesh=None, **shape):
    config = tiny.model(**shape).config
    return bind(config, param_dtype="float32", compute_dtype="float32", remat="none", mesh=mesh)


def stepped(mesh, teacher_axes, student_axes, bits):
    """The state after one update, and its loss; on one device where the mesh has one."""
    student, teacher = bound(mesh), bound(mesh, width=24, blocks=3, **EXPERTS)
    params = tiny.params(student, 1)
    of_teacher = quantised_params(tiny.params(teacher, 2), bits)
    terms = (Term("forward_kl", 1.0),)
    plan, optimizer = make_plan(terms, 1), optax.adam(1e-2)
    begin = partial(init_state, optimizer=optimizer, plan=plan)
    placed = lambda x, config, axes: jax.device_put(
        x, parameter_shardings(x, FAMILIES[config.family].sharding, mesh, axes)
    )
    of = student.config, student_axes
    shardings = parameter_shardings(
        jax.eval_shape(begin, params), FAMILIES["llama"].sharding, mesh, student_axes
    )
    state = jax.jit(begin, out_shardings=shardings)(placed(params, *of))
    loss = partial(
        objective, student=student, teach=live_teacher(teacher), block_tokens=8, mesh=mesh
    )
    step = make_train_step(loss, optimizer, plan, microbatches=1, state_shardings=shardings)
    of_teacher = placed(of_teacher, teacher.config, teacher_axes)
    batch = to_global(tiny.batch(rows=8), mesh, 8)
    state, metrics = step(state, (of_teacher,), batch, jax.random.key(0))
    return state, float(metrics["loss"]), of_teacher


def split_axes(tree):
    leaves = jax.tree.leaves(tree)
    return {axis for x in leaves if hasattr(x, "sharding") for axis in x.sharding.spec if axis}


@eight
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_one_device_is_eight(choice):
    teacher_axes, student_axes, _ = choice
    mesh = make_mesh(1, 2, 2, 2)
    state, loss, of_teacher = stepped(mesh, *choice)
    assert split_axes(of_teacher) == set(teacher_axes)
    assert split_axes(state.params) == set(student_axes) - {"expert"}
    assert split_axes(state.opt_state) == set(student_axes) - {"expert"}
    first = np.array(jax.devices()[:1]).reshape((1,) * len(AXES))
    wanted, expected, _ = stepped(Mesh(first, AXES), *choice)
    np.testing.assert_allclose(loss, expected, rtol=2e-6)
    flat = lambda state: traverse_util.flatten_dict(jax.tree.map(np.asarray, state.params))
    for path, leaf in flat(wanted).items():
        np.testing.assert_allclose(flat(state)[path], leaf, atol=2e-4, err_msg=str(path))


@pytest.mark.skipif(jax.device_count() == 8, reason="runs in the process that it starts")
def test_on_eight_simulated_devices():
    """The tests above, in a process of eight devices."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment(8), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) == len(CHOICES)
