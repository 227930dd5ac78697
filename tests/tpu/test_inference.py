"""Laws of evaluation, cache writing and decoding as the compiler of TPUs makes them."""

from functools import cache

import jax
import pytest

from experiments.tpu_compiler import compiled as of
from tests.tpu import programs
from tests.tpu.programs import LENGTH, VOCAB, make_world, tiny

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
KINDS = ("hidden", "top_k")


@cache
def world(chip, targets="hidden"):
    return make_world(TOPOLOGIES[chip], tiny(), tiny(neurons=512), 4, teacher__targets=targets)


@cache
def cached(targets):
    return programs.cache(world("v5p", targets))


@cache
def decoded():
    return programs.decode(world("v6e"))


def test_evaluation_splits_the_weights_and_keeps_no_logits():
    here = world("v5e")
    compiled = programs.evaluate(here)
    assert of.largest(compiled) < min(LENGTH * LENGTH, here.tokens * VOCAB)
    whole = of.size((here.state.params, here.teacher.params, here.batch))
    assert compiled.memory_analysis().argument_size_in_bytes < 1.05 * whole / 4
    assert compiled.memory_analysis().alias_size_in_bytes == 0  # the parameters are live


@pytest.mark.parametrize("targets", KINDS)
def test_a_cache_is_written_by_rows_and_without_logits(targets):
    here = world("v5p", targets)
    compiled = cached(targets)
    assert of.largest(compiled) < min(LENGTH * LENGTH, here.tokens * VOCAB)
    whole = of.size((here.teacher.params, here.batch))
    assert compiled.memory_analysis().argument_size_in_bytes < 1.05 * whole / 4
    written = compiled.out_info
    for sharding, array in zip(
        *map(jax.tree.leaves, (compiled.output_shardings, written)), strict=True
    ):
        assert sharding.shard_shape(array.shape)[0] == 1  # of 4 rows


def test_decoding_writes_into_the_same_cache():
    _, go_on, written = decoded()
    memory = go_on.memory_analysis()
    held = of.held(written)
    assert memory.alias_size_in_bytes >= 0.99 * held
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 2**16


def test_a_prompt_is_read_without_scores_of_all_its_tokens():
    """A turn of queries at a time, with the slots of the cache."""
    begin, go_on, written = decoded()
    rows, tokens = 4, LENGTH // 2
    slots = written.cache["key"].shape[2]
    for compiled in (begin, go_on):
        assert of.largest(compiled) < rows * tokens * slots
        assert of.largest(compiled) < rows * tokens * VOCAB
