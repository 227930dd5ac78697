"""Laws of the search: what it finds fits by its own model, and the smallest change comes first."""

from math import prod

import pytest

from distill_jax.planning.layout import CACHED
from distill_jax.planning.owners import chip_bytes
from distill_jax.planning.search import (
    CACHE,
    OTHER_TEACHER,
    SAME,
    changed_keys,
    fastest,
    layouts,
    meshes,
    rank_of,
    search,
    smallest_change,
)
from tests.planning.pairs import planned


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return planned(tmp_path_factory.mktemp("pair"), model__remat="none")


@pytest.fixture(scope="module")
def every(run):
    plan, facts = run
    return search(facts, plan.layout, plan.topology, float("inf"))


@pytest.mark.parametrize("chips", [1, 2, 6, 8])
def test_meshes_use_every_chip_once(chips):
    found = list(meshes(chips))
    assert len(set(found)) == len(found) > 0
    assert all(prod(mesh) == chips for mesh in found)


def test_layouts_are_runs_of_the_same_batch(run):
    plan, facts = run
    found = list(layouts(facts, plan.layout))
    assert plan.layout in found
    assert len(set(found)) == len(found)
    assert all(facts.rows % (one.ways * one.microbatches) == 0 for one in found)
    assert all(one.along("expert") == 1 for one in found)  # there are none
    assert {one.teacher for one in found} == {*facts.teachers, CACHED}


def test_what_is_found_fits_by_the_model(run, every):
    plan, facts = run
    limit = sorted(one.bytes for one in every)[len(every) // 3]
    found = search(facts, plan.layout, plan.topology, limit)
    assert 0 < len(found) < len(every)
    assert all(chip_bytes(facts, one.layout).total == one.bytes <= limit for one in found)


def test_the_given_layout_is_the_smallest_change(run, every):
    plan, _ = run
    first = smallest_change(every)[0]
    assert first.layout == plan.layout
    assert first.changes == ()
    assert first.rank == SAME


def test_the_teacher_changes_only_where_nothing_else_helps(run, every):
    plan, facts = run
    tight = min(one.bytes for one in every if one.rank == SAME) - 1
    found = search(facts, plan.layout, plan.topology, tight)
    ordered = smallest_change(found)
    assert all(one.rank > SAME for one in ordered)
    ranks = [one.rank for one in smallest_change(every)]
    assert ranks == sorted(ranks)
    assert set(ranks) == {SAME, OTHER_TEACHER, CACHE}


def test_nothing_is_faster_than_the_fastest(every):
    first = fastest(every)[0]
    assert all(first.seconds <= one.seconds for one in every)


def test_changes_are_named_by_their_keys(run):
    plan, _ = run
    other = plan.layout._replace(remat="full", microbatches=2, teacher=CACHED)
    assert changed_keys(other, plan.layout) == (
        "data.microbatches",
        "model.remat",
        "teacher.cache",
    )
    assert rank_of(other, plan.layout) == CACHE
    swapped = plan.layout._replace(mesh=tuple(reversed(plan.layout.mesh)))
    assert all(key.startswith("mesh.") for key in changed_keys(swapped, plan.layout))
