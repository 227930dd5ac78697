"""A quantised decoder computes what its widened matrices do, in every family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses.terms import Term
from distill_jax.models.binding import bind
from distill_jax.models.grouped import grouped_product
from distill_jax.models.quantise import quantised_params
from distill_jax.models.storage import flatten
from distill_jax.objective import live_teacher, objective
from distill_jax.quantised import Bits, is_quantised, quantise, quantise_rows, transposed, widened
from tests import tiny
from tests.models.conftest import CASES, FIRST
from tests.models.test_mesh import config_of

OF = {"param_dtype": "float32", "compute_dtype": "float32", "remat": "none"}
INT4 = Bits("int4", 8)
# Tied and untied, learned positions, biases, experts without and with biases, soft caps.
UNLIKE = [n for n in FIRST if n.split("-")[0] in ("llama", "gpt2", "phi3", "gemma2", "gpt_oss")]


def drawn(model):
    r = np.random.default_rng(0)
    return jax.tree.map(lambda x: r.normal(0, 0.3, x.shape).astype(np.float32), model.abstract())


def widen(params):
    """The same matrices in float32."""
    of = lambda w: widened(w, jnp.float32) if is_quantised(w) else w
    rows = transposed(params["embedding"])
    return jax.tree.map(of, params, is_leaf=is_quantised) | {"embedding": of(rows).T}


def pair(name, bits=INT4):
    """(quantised model, its parameters), (wide model, the same numbers)."""
    config = config_of(name)
    wide = bind(config, **OF)
    params = quantised_params(drawn(wide), bits)
    return (bind(config, **OF, bits=bits), params), (wide, widen(params))


@pytest.mark.parametrize("name", UNLIKE)
def test_a_decoder_computes_with_its_widened_matrices(name):
    tokens_BT = np.random.default_rng(1).integers(0, 61, (2, 8))
    place_BT = np.broadcast_to(np.arange(8), (2, 8))

    def logits(model, params):
        def run(params):
            hidden = model.apply(params, tokens_BT, np.ones_like(tokens_BT), place_BT)
            cache = model.new_cache(2, 8, "float32")
            decoded, _ = model.decode(params, tokens_BT, place_BT, cache)
            head_DV = model.unembed(params).weight_DV
            return (hidden.last_BTD @ widened(head_DV, jnp.float32)), decoded.last_BTD

        return jax.jit(run)(params)

    narrow, wide = (logits(*of) for of in pair(name))
    for a, b in zip(narrow, wide, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * np.abs(b).max())


@pytest.mark.parametrize("name", FIRST)
def test_only_matrices_are_quantised_and_the_abstract_model_says_so(name):
    (model, params), _ = pair(name)
    jax.tree.map(
        lambda x, y: None if (x.shape, x.dtype) == (y.shape, y.dtype) else pytest.fail(f"{x} {y}"),
        model.abstract(),
        jax.eval_shape(lambda: jax.tree.map(jnp.asarray, params)),
    )
    flat = flatten(jax.tree.map(lambda w: is_quantised(w), params, is_leaf=is_quantised))
    few = ("norm", "bias", "router", "position_embedding")
    for path, narrow in flat.items():
        assert narrow != any(word in path for word in few), path
    assert params["embedding"].values.dtype == jnp.int8
    assert params["blocks"]["attention"]["query"].values.dtype == jnp.int4


def test_every_kind_of_matrix_is_named():
    """A family whose blocks had a matrix of another name would keep it wide without a word."""
    found = set()
    for name in CASES:
        shapes = flatten(bind(config_of(name), **OF).abstract())
        found |= {path for path, x in shapes.items() if x.ndim > 2 and "bias" not in path}
    assert {path.rpartition("/")[2] for path in found} == {
        "query", "key", "value", "output", "gate", "up", "down", "router",
        "expert_gate", "expert_up", "expert_down",
    }  # fmt: skip


@pytest.mark.parametrize("bits", [Bits("int8", 0), INT4])
def test_experts_multiply_by_their_own_scales(bits):
    r = np.random.default_rng(0)
    weight = quantise(r.normal(size=(3, 16, 5)) * np.array([1, 30, 0.1])[:, None, None], bits)
    rows, sizes = r.normal(size=(9, 16)).astype(np.float32), jnp.array([4, 0, 5])
    wide = np.asarray(widened(weight, jnp.float32))
    expected = np.concatenate([rows[:4] @ wide[0], rows[4:] @ wide[2]])
    np.testing.assert_allclose(grouped_product(rows, weight, sizes), expected, rtol=1e-4, atol=1e-5)


def test_the_student_learns_as_from_the_widened_teacher_and_no_gradient_reaches_it():
    student = tiny.model()
    teacher = tiny.model(width=24, blocks=3)
    params, of_student = tiny.params(teacher, 2), tiny.params(student, 1)
    narrow = quantised_params(params, INT4)
    batch = jax.tree.map(jnp.asarray, tiny.batch())

    def loss(of_student, of_teacher):
        return objective(
            of_student, (of_teacher,), batch, jax.random.key(0), batch.weight_BT.sum(),
            student=student, teach=live_teacher(teacher), terms=(Term("forward_kl", 1.0),),
            block_tokens=8,
        )[0]  # fmt: skip

    run = jax.jit(jax.grad(loss, (0, 1), allow_int=True))
    (narrow_gradient, reached), (wide_gradient, _) = (
        run(of_student, of_teacher) for of_teacher in (narrow, widen(narrow))
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    jax.tree.map(close, narrow_gradient, wide_gradient)
    for leaf in jax.tree.leaves(reached):
        assert leaf.dtype == jax.dtypes.float0 or not np.any(leaf)


def test_a_tied_table_serves_as_embedding_and_head():
    model = tiny.model()
    table_VD = np.asarray(tiny.params(model)["embedding"])
    head = transposed(quantise_rows(table_VD, Bits("int8", 0)))
    np.testing.assert_allclose(
        widened(head, jnp.float32).T, table_VD, atol=np.abs(table_VD).max() / 250
    )
