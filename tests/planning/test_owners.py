"""Laws of the model of memory: owners add up, and more of anything does not take less."""

from math import prod

import pytest

from distill_jax.models.binding import REMAT
from distill_jax.planning.layout import CACHED
from distill_jax.planning.owners import LASTING, OWNERS, PHASES, chip_bytes, lasting_bytes
from distill_jax.sharding import AXES
from tests.planning.pairs import EXPERTS, planned

WITH_EXPERTS = {"vocab": 128, "blocks": 2, **EXPERTS}


@pytest.fixture(scope="module", params=["dense", "experts"])
def run(request, tmp_path_factory):
    teacher = WITH_EXPERTS if request.param == "experts" else {}
    return planned(tmp_path_factory.mktemp("pair"), teacher=teacher)


def total(facts, layout):
    return chip_bytes(facts, layout).total


def test_owners_add_up(run):
    plan, facts = run
    found = chip_bytes(facts, plan.layout)
    assert tuple(found.owners) == OWNERS
    assert found.total == sum(found.owners.values()) > 0
    lasting = lasting_bytes(facts, plan.layout)
    assert set(lasting) == set(LASTING)
    assert all(found.owners[owner] == size for owner, size in lasting.items())


def test_what_lasts_is_that_of_the_shapes(run):
    plan, facts = run
    alone = plan.layout._replace(mesh=(1,) * len(plan.layout.mesh))
    lasting = lasting_bytes(facts, alone)
    assert lasting["optimizer"] == pytest.approx(2 * lasting["student"], rel=0.01)


def test_bytes_fall_with_chips(run):
    plan, facts = run
    mesh = plan.layout.mesh
    sizes = [total(facts, plan.layout._replace(mesh=(1, n, *mesh[2:]))) for n in (1, 2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 2


def test_bytes_do_not_fall_with_rows_or_with_less_recomputing(run):
    plan, facts = run
    rows = [total(facts._replace(rows=n), plan.layout) for n in (8, 16, 32, 64)]
    assert rows == sorted(rows)
    kept = [total(facts, plan.layout._replace(remat=remat)) for remat in ("full", "dots", "none")]
    assert kept == sorted(kept)
    assert set(REMAT) == {"full", "dots", "none"}


def test_smaller_parts_take_no_more(run):
    plan, facts = run
    layout = plan.layout._replace(remat="none")
    held = [chip_bytes(facts, layout._replace(microbatches=n)) for n in (1, 2, 4)]
    kept = [one.owners["activations"] + one.owners["attention"] for one in held]
    assert kept == sorted(kept, reverse=True)
    blocks = [total(facts, layout._replace(block_tokens=n)) for n in (16, 64, 256)]
    assert blocks == sorted(blocks)


def test_what_the_student_keeps_is_there_while_its_teacher_runs(run):
    plan, facts = run
    of = lambda phase, remat: PHASES[phase](facts, plan.layout._replace(remat=remat))["activations"]
    more = of("loss", "none") - of("loss", "full")
    assert of("teacher", "none") - of("teacher", "full") == pytest.approx(more)
    assert more > 0


def test_a_teacher_elsewhere_takes_less(run):
    plan, facts = run
    copied = plan.layout._replace(mesh=(prod(plan.layout.mesh), *(1 for _ in AXES[1:])))
    dtypes = [copied._replace(teacher=name) for name in facts.teachers]
    sizes = [lasting_bytes(facts, layout)["teacher"] for layout in dtypes]
    assert sizes == sorted(sizes, reverse=True)
    assert list(facts.teachers) == ["float32", "bfloat16", "int8", "int4"]
    assert sizes[0] == 2 * sizes[1]
    # Beside the matrices there are norms as wide as before, and a scale per output and group.
    assert 1.7 < sizes[1] / sizes[2] < 2
    assert 1.2 < sizes[2] / sizes[3] < 2
    cached = chip_bytes(facts, plan.layout._replace(teacher=CACHED))
    assert cached.owners["teacher"] < sizes[0] * 8
