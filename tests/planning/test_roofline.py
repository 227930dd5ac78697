"""Laws of the model of time: it counts what the traced step counts, and chips only help."""

import jax
import pytest

from distill_jax.models.binding import bind
from distill_jax.objective import live_teacher, objective
from distill_jax.planning.chips import CHIPS, Topology, read_topology
from distill_jax.planning.layout import CACHED, Layout
from distill_jax.planning.roofline import (
    COMPUTE,
    link_bytes,
    link_speeds,
    roofline,
    run_seconds,
    token_operations,
)
from distill_jax.sharding import AXES
from distill_jax.study.flops import program_flops
from tests import tiny
from tests.planning.pairs import planned


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return planned(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("remat", ["none", "full"])
def test_operations_are_those_of_the_traced_step(run, remat):
    plan, facts = run
    of = {"param_dtype": "float32", "compute_dtype": "float32"}
    student = bind(plan.student, **of, remat=remat)
    teacher = bind(plan.teacher, **of, remat="none")
    batch = tiny.batch(rows=2, length=facts.length, vocab=128)

    def step(params, others, batch):
        loss = lambda p: objective(
            p, others, batch, jax.random.key(0), 1.0, student=student, teach=live_teacher(teacher),
            terms=plan.recipe.terms, block_tokens=plan.layout.block_tokens,
        )[0]  # fmt: skip
        return jax.grad(loss)(params)

    counted = program_flops(step, student.abstract(), (teacher.abstract(),), batch)
    found = token_operations(facts, plan.layout._replace(remat=remat))
    assert sum(found.values()) * 2 * facts.length == pytest.approx(counted, rel=0.005)
    assert set(found) == {"student", "teacher", "attention", "head"}


def test_a_cached_teacher_runs_in_no_step_but_once(run):
    plan, facts = run
    cached = plan.layout._replace(teacher=CACHED)
    assert token_operations(facts, cached)["teacher"] == 0
    step = roofline(facts, cached, plan.topology).seconds
    assert step < run_seconds(facts, cached, plan.topology)
    assert run_seconds(facts, plan.layout, plan.topology) == roofline(*run_of(run)).seconds


def run_of(run):
    plan, facts = run
    return facts, plan.layout, plan.topology


def test_the_bound_is_what_takes_longest(run):
    roof = roofline(*run_of(run))
    assert roof.seconds == max(roof.times.values()) == roof.times[roof.bound]
    assert set(roof.times) <= {COMPUTE, "memory", *AXES}


def test_products_wait_for_activations_and_not_for_weights(run):
    plan, facts = run
    at = lambda **sizes: roofline(
        facts, plan.layout._replace(mesh=tuple(sizes.get(axis, 1) for axis in AXES)), plan.topology
    )
    weights, activations = at(fsdp=8), at(tensor=8)
    assert weights.waiting == weights.seconds
    assert activations.waiting >= activations.times["tensor"] + activations.times[COMPUTE]


def test_nothing_travels_along_an_axis_of_one_chip(run):
    plan, facts = run
    alone = plan.layout._replace(mesh=(1,) * len(AXES))
    assert not any(link_bytes(facts, alone).values())
    for i, axis in enumerate(AXES):
        if axis == "sequence":
            continue
        mesh = tuple(2 if i == j else 1 for j in range(len(AXES)))
        links = link_bytes(facts, plan.layout._replace(mesh=mesh))
        assert {name for name, size in links.items() if size} == {axis}


def test_gradients_travel_as_they_are_computed_and_that_of_the_head_in_float32(tmp_path):
    plan, facts = planned(tmp_path, model__compute_dtype="bfloat16")
    mesh = tuple(8 if axis == "data" else 1 for axis in AXES)
    head = plan.student.width * plan.student.vocab
    numbers = facts.student.params.numbers(mesh)
    links = link_bytes(facts, plan.layout._replace(mesh=mesh))
    assert links["data"] == 2 * 7 / 8 * (2 * numbers + 2 * head)


def test_more_chips_are_no_slower_at_matrix_products(run):
    plan, facts = run
    times = [
        roofline(facts, plan.layout, read_topology(f"v5e:2x{n}")).times[COMPUTE] for n in (2, 4, 8)
    ]
    assert times == sorted(times, reverse=True)


def test_a_link_is_a_dimension_of_the_torus_or_a_node():
    at = lambda topology, **sizes: link_speeds(
        read_topology(topology), _layout(tuple(sizes.get(axis, 1) for axis in AXES))
    )
    one = CHIPS["v5e"].link
    assert at("v5e:8x8", fsdp=8, tensor=8)["fsdp"] == one
    assert at("v5e:8x8", fsdp=8, tensor=8)["tensor"] == one
    assert at("v5e:8x8", fsdp=64)["fsdp"] == 2 * one
    assert at("v5p:4x4x4", fsdp=64)["fsdp"] == 3 * CHIPS["v5p"].link
    gpu = CHIPS["A100-80G"]
    assert at("gpu:16xA100-80G", fsdp=8, data=2)["fsdp"] == gpu.link
    assert at("gpu:16xA100-80G", fsdp=8, data=2)["data"] == gpu.network
    assert at("gpu:16xA100-80G", fsdp=16)["fsdp"] == gpu.network


def _layout(mesh):
    return Layout(mesh, 1, "none", 256, "float32")


def test_no_speed_no_time(run):
    plan, facts = run
    topology = Topology("cpu:8", "cpu", CHIPS["cpu"], (8,))
    roof = roofline(facts, plan.layout, topology)
    assert roof.times is roof.seconds is roof.bound is None
    assert run_seconds(facts, plan.layout, topology) is None
