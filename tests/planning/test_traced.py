"""What is read from traces: the same as arithmetic says, and less the more is recomputed."""

import dataclasses

import pytest

from distill_jax.planning.traced import kept_by_a_block, operations, part_of
from tests import tiny
from tests.planning.pairs import EXPERTS

LENGTH = 64
SHAPES = {"dense": {}, "experts": EXPERTS}


def sizes(**more):
    return tiny.model(width=32, **more).config


@pytest.mark.parametrize("shape", SHAPES)
def test_less_is_kept_the_more_is_recomputed(shape):
    config = sizes(**SHAPES[shape])
    none, dots, full = (
        kept_by_a_block(config, LENGTH, "float32", remat) for remat in ("none", "dots", "full")
    )
    total = lambda kept: sum(kept.row.values()) + kept.copies
    assert total(none) > total(dots) > total(full)
    # The input of the block, alone.
    assert full.row == {"activations": LENGTH * config.width * 4, "attention": 0}
    assert full.copies == full.weights == 0
    assert (none.copies > 0) == bool(config.experts)
    assert none.row["attention"] > 0


def test_weights_are_kept_in_another_dtype_alone():
    config = sizes()
    assert kept_by_a_block(config, LENGTH, "float32", "none").weights < 1024
    matrices = config.width * config.head_width * 2 * (config.heads + config.kv_heads)
    matrices += 3 * config.width * config.neurons
    found = kept_by_a_block(config, LENGTH, "bfloat16", "none").weights
    assert matrices * 2 <= found < matrices * 2 + 2048


def test_twice_the_tokens_keep_twice_as_much():
    short, long = (kept_by_a_block(sizes(), n, "float32", "dots") for n in (LENGTH, 2 * LENGTH))
    assert long.row["activations"] == 2 * short.row["activations"]


def test_a_part_has_its_share_of_heads_and_neurons():
    config = dataclasses.replace(sizes(), heads=8, kv_heads=4, neurons=64)
    part = part_of(config, 4)
    assert (part.heads, part.kv_heads, part.neurons) == (2, 1, 16)
    whole = part_of(config, 3)
    assert (whole.heads, whole.kv_heads, whole.neurons) == (8, 4, 64)
    kept = [kept_by_a_block(one, LENGTH, "float32", "none") for one in (config, part)]
    assert kept[1].row["attention"] < 0.3 * kept[0].row["attention"]


def test_operations_are_those_of_arithmetic():
    config = sizes()
    matrices = config.width * config.head_width * 2 * (config.heads + config.kv_heads)
    matrices = config.blocks * (matrices + 3 * config.width * config.neurons)
    teacher, none, full = (operations(config, LENGTH, remat) for remat in (None, "none", "full"))
    assert teacher.backward == 0
    assert teacher.forward - teacher.attention == 2 * matrices * LENGTH
    assert none.forward == teacher.forward
    both = none.forward + none.backward
    # The gradient with respect to the embedding's output is a product more or less.
    assert both - none.attention == pytest.approx(6 * matrices * LENGTH, rel=0.01)
    again = full.forward + full.backward - full.attention
    assert again == pytest.approx(8 * matrices * LENGTH, rel=0.08)
