"""Laws of attention by blocks and over a cache: the definition in float64, and what is not made."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from distill_jax.models import blockwise_attention
from distill_jax.models.attention import cached_attention
from distill_jax.models.attention_pattern import Pattern
from distill_jax.models.binding import REMAT, bind
from distill_jax.models.blockwise_attention import attend, attend_from
from tests import tiny
from tests.models.attention_oracle import SETTINGS, check, draw, expected

LENGTHS = [1, 5, 40, 77]  # with blocks of at most 32 positions: one block, and some not full
PLAIN = Pattern(window=None, scale=0.5, softcap=None)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blockwise_attention, "BLOCK", 32)


def blockwise(setting):
    return partial(attend, pattern=setting.pattern, mesh=None)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_outputs_and_gradients_are_those_of_the_definition(setting):
    check(blockwise(setting), setting, draw(setting, 77), jnp.float32, 1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_length(length):
    setting = SETTINGS[-1]
    check(blockwise(setting), setting, draw(setting, length), jnp.float32, 1e-5)


@pytest.mark.parametrize("setting", SETTINGS[:2] + SETTINGS[-2:], ids=str)
def test_bfloat16_is_near(setting):
    check(blockwise(setting), setting, draw(setting, 77), jnp.bfloat16, 0.03)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_parts_of_the_queries_make_the_whole_row(setting):
    """As devices have them that split a row, who learn their place only as the program runs."""

    def in_parts(query, key, value, segment, sink):
        part = partial(attend_from, pattern=setting.pattern)
        of = lambda pair: part(pair[0], key, value, segment, sink, pair[1])
        split = jnp.stack(jnp.split(query, 4, axis=1))
        return jnp.concatenate(list(jax.lax.map(of, (split, jnp.arange(4) * split.shape[2]))), 1)

    check(in_parts, setting, draw(setting, 80), jnp.float32, 1e-5)


@pytest.mark.parametrize("length", [1, 3, 40, 77])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_cache_gives_what_the_row_gave(setting, length, monkeypatch):
    """The last queries of a text of 77 over its cache, in which later slots are not filled yet."""
    monkeypatch.setattr("distill_jax.models.attention.CACHED_QUERIES", 16)
    drawn = draw(setting, 77)._replace(segment_BT=np.ones((2, 77), np.int32))
    unfilled = lambda x: jnp.pad(jnp.asarray(x, jnp.float32), ((0, 0), (0, 7), (0, 0), (0, 0)))
    found = cached_attention(
        jnp.asarray(drawn.query_BTNH[:, -length:], jnp.float32),
        unfilled(drawn.key_BTKH),
        unfilled(drawn.value_BTKH),
        jnp.broadcast_to(jnp.arange(77 - length, 77), (2, length)),
        None if drawn.sink_N is None else jnp.asarray(drawn.sink_N, jnp.float32),
        patterns=(PLAIN, setting.pattern),
        index=1,
    )
    wanted = expected(setting, drawn)["output"][:, -length:]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def equations(jaxpr):
    """Of a program and of all programs in it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
        ):
            if isinstance(inner, core.Jaxpr | core.ClosedJaxpr):
                yield from equations(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("first", [0, None], ids=["whole", "part"])
def test_a_longer_row_has_the_same_program_and_no_array_of_its_square(first):
    def program(length):
        arrays = [jax.ShapeDtypeStruct((2, length, heads, 16), jnp.float32) for heads in (4, 2, 2)]
        segment_BT = jax.ShapeDtypeStruct((2, length), jnp.int32)

        def loss(query, key, value, segment, first_place):
            place = first if first == 0 else first_place
            return jnp.sum(attend_from(query, key, value, segment, None, place, pattern=PLAIN))

        gradients = jax.grad(loss, (0, 1, 2))
        return list(equations(jax.make_jaxpr(gradients)(*arrays, segment_BT, 0).jaxpr))

    short, long = program(256), program(4096)
    assert [e.primitive for e in short] == [e.primitive for e in long]
    largest = max(np.prod(x.aval.shape) for e in long for x in e.outvars)
    assert largest == 2 * 4096 * 4 * 16  # the queries; their scores would be 1,024 times as many


@pytest.mark.parametrize("remat", REMAT)
def test_a_decoder_keeps_no_array_of_the_square_of_its_rows(remat):
    """Masks are the same in all of its blocks, and what a scan repeats JAX moves out of it."""
    config = replace(tiny.model().config, max_positions=4096)
    model = bind(config, param_dtype="float32", compute_dtype="float32", remat=remat)

    def loss(params, row_BT):
        return jnp.sum(model.apply(params, row_BT, row_BT, row_BT).last_BTD)

    row_BT = jax.ShapeDtypeStruct((1, 4096), jnp.int32)
    program = jax.make_jaxpr(jax.grad(loss))(model.abstract(), row_BT).jaxpr
    largest = max(np.prod(x.aval.shape) for e in equations(program) for x in e.outvars)
    assert largest <= config.blocks * 4096 * config.heads * config.head_width


def test_texts_of_other_blocks_are_not_computed():
    """NaN values of a text stay in its blocks: pairs without a common text are left out."""
    setting = SETTINGS[0]
    drawn = draw(setting, 128)
    segment_BT = np.repeat(np.array([[1, 2, 3, 0]]), 32, axis=1).repeat(2, axis=0)
    value_BTKH = np.array(drawn.value_BTKH)
    value_BTKH[:, :32] = np.nan
    drawn = drawn._replace(segment_BT=segment_BT, value_BTKH=value_BTKH)
    arrays = [jnp.asarray(x) for x in drawn[:3]]
    sink_N = None if drawn.sink_N is None else jnp.asarray(drawn.sink_N)
    out_BTNH = blockwise(setting)(*arrays, segment_BT, sink_N)
    assert not np.isnan(out_BTNH[:, 32:]).any()
    assert np.isnan(out_BTNH[:, :32]).all()
