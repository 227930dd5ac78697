"""Topologies by their names, and figures that are there for every chip or for none."""

import pytest

from distill_jax.planning.chips import CHIPS, SLICES, read_topology
from distill_jax.types import UserError


@pytest.mark.parametrize(
    ("name", "kind", "chips"),
    [
        ("v5e:8x8", "v5e", 64),
        ("v5p:4x4x4", "v5p", 64),
        ("v6e:2x4", "v6e", 8),
        ("cpu:3", "cpu", 3),
        ("gpu:16xA100-80G", "A100-80G", 16),
        (" gpu:8xH100-80G ", "H100-80G", 8),
    ],
)
def test_a_topology_is_read(name, kind, chips):
    found = read_topology(name)
    assert (found.kind, found.chips, found.chip) == (kind, chips, CHIPS[kind])


@pytest.mark.parametrize(
    "name",
    ["", "v5e", "v5e:8", "v5e:4x4x4", "v5p:4x4", "v9z:2x2", "cpu:0", "cpu:-1", "cpu:2x2", "gpu:8",
     "gpu:8xB9", "v5e:999x999", "v5e:3x5", "v5e:16x32", "v5litepod-16", "gpu:9999xA100-80G",
     "v5e:8x8 --help", "v5e:8x8\n", "x" * 1000],
)  # fmt: skip
def test_anything_else_is_refused_in_one_line(name):
    if name == "v5e:8x8\n":
        assert read_topology(name).chips == 64
        return
    with pytest.raises(UserError) as error:
        read_topology(name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("V5E:4x4", "did you mean v5e?"),
        ("v5:4x4", "did you mean v5e or v5p?"),
        ("v4:2x2x2", "TPUs that can be planned for are v5e, v5p, v6e"),
        ("gpu:8xA100", "did you mean A100-40G or A100-80G?"),
        ("gpu:8xh100_80g", "did you mean H100-80G?"),
        ("gpu:8xH200", "did you mean H200-141G?"),
        ("v5e-16", "the shape of a slice"),
    ],
)
def test_a_name_that_is_nearly_right_is_told_what_is_meant(name, meant):
    with pytest.raises(UserError) as error:
        read_topology(name)
    assert meant in str(error.value)


def test_every_chip_has_all_figures_or_none_and_a_source():
    for kind, chip in CHIPS.items():
        figures = (chip.memory, chip.flops, chip.bandwidth, chip.link)
        assert chip.source
        if kind == "cpu":
            assert figures == (None,) * 4
            continue
        assert all(figures)
        assert {"float32", "bfloat16"} <= set(chip.flops)
        assert (chip.node is None) == (chip.network is None) == (chip.platform == "tpu")
        assert chip.source.startswith("https://")
    tpus = {kind for kind, chip in CHIPS.items() if chip.platform == "tpu"}
    assert tpus == set(SLICES)
    for kind, one in SLICES.items():
        found = read_topology(one.example)
        assert (found.kind, len(found.sizes)) == (kind, one.dimensions)
