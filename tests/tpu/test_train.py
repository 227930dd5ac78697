"""Laws of the training step as the compiler of TPUs makes it."""

from functools import cache

import pytest

from experiments.tpu_compiler import compiled as of
from experiments.tpu_compiler.world import train
from tests.tpu.programs import LENGTH, VOCAB, make_world, tiny

LOCAL = {"sliding_window": 256, "local_blocks": (True, False), "attention_softcap": 50.0}
EXPERTS = {"family": "qwen3_moe", "experts": 8, "experts_per_token": 2, "query_key_norm": "head"}
# name -> topology, sizes, rows, keys of the config, parts that nearly all parameters are split into
SETTINGS = {
    "v5e fsdp": ("v5e:2x2", {}, 8, {"mesh__fsdp": 4}, 4),
    "v5p data, fsdp": ("v5p:2x2x1", LOCAL, 8, {"mesh__data": 2, "mesh__fsdp": 2}, 2),
    "v6e fsdp, tensor": ("v6e:2x2", {"kv_heads": 2}, 4, {"mesh__fsdp": 2, "mesh__tensor": 2}, 4),
    "v5e fsdp, sequence": ("v5e:2x2", {}, 4, {"mesh__fsdp": 2, "mesh__sequence": 2}, 4),
    "v5e fsdp, expert": ("v5e:2x2", EXPERTS, 4, {"mesh__fsdp": 2, "mesh__expert": 2}, 2),
}
every_setting = pytest.mark.parametrize("name", SETTINGS)


@cache
def step(name, blocks=2, topology=""):
    """The world of a setting, and its compiled step."""
    own, sizes, rows, keys, _ = SETTINGS[name]
    keys = keys | ({"mesh__fsdp": -1} if topology else {})
    pair = tiny(blocks=blocks, **sizes), tiny(blocks=blocks, neurons=512)
    world = make_world(topology or own, *pair, rows, **keys)
    return world, train(world)


@every_setting
def test_no_array_is_as_large_as_the_scores_or_the_logits(name):
    world, compiled = step(name)
    assert world.tokens >= LENGTH
    assert of.largest(compiled) < min(LENGTH * LENGTH, world.tokens * VOCAB)


@every_setting
def test_weights_moments_and_rows_are_split(name):
    """Also the teacher's. A part of the whole, and what lies on every chip: norms, counters."""
    world, compiled = step(name)
    parts = SETTINGS[name][-1]
    whole = of.size((world.state, world.teacher.params, world.batch))
    assert compiled.memory_analysis().argument_size_in_bytes < 1.05 * whole / parts


@every_setting
def test_the_new_state_takes_the_place_of_the_old_one(name):
    world, compiled = step(name)
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= of.size(world.state) / world.mesh.size
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 2**16  # metrics


def test_more_blocks_are_more_rounds_of_the_same_loop():
    """Each kind of collective stands in the program as often, however many blocks there are."""
    (_, two), (_, four) = step("v5e fsdp"), step("v5e fsdp", blocks=4)
    assert of.kinds(two) == of.kinds(four)
    assert of.kinds(two).keys() >= {"all-gather", "reduce-scatter"}


def test_more_chips_hold_less_each():
    (world, four), (more, eight) = step("v5e fsdp"), step("v5e fsdp", topology="v5e:2x4")
    assert (world.mesh.size, more.mesh.size) == (4, 8)
    ratio = lambda bytes_of: bytes_of(eight) / bytes_of(four)
    assert ratio(lambda c: c.memory_analysis().argument_size_in_bytes) < 0.55  # 0.50
    assert ratio(of.total) < 0.7  # 0.57
