"""Laws of the decoder: packing, padding, remat, caching, block by block; over every case."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from distill_jax.models.binding import REMAT, bind
from distill_jax.models.context import block_kinds
from distill_jax.models.storage import flatten
from distill_jax.models.transformer import second_input

TWO = ["llama-untied", "gemma3_text-linear"]
TIGHT = {"rtol": 1e-5, "atol": 1e-4}  # of hidden states with numbers up to about 30


def bound(checkpoint, **changes):
    named = {"param_dtype": "float32", "compute_dtype": "float32", "remat": "none"}
    return bind(checkpoint.config, **{**named, **changes})


def whole_rows(tokens_BT):
    position_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    return jnp.ones_like(position_BT), position_BT


def packed(first, second, padding):
    """One row of two pieces and padding."""
    lengths = (len(first), len(second), len(padding))
    segment = np.repeat([1, 2, 0], lengths)
    position = np.concatenate([np.arange(n) for n in lengths])
    return np.concatenate([first, second, padding])[None], segment[None], position[None]


@pytest.fixture(scope="module")
def whole(case, checkpoint):
    """types.Hidden of the case's rows, all layers kept."""
    apply = jax.jit(bound(checkpoint).apply, static_argnames="keep_layers")
    return apply(checkpoint.params, case.tokens_BT, *whole_rows(case.tokens_BT), keep_layers=True)


def test_packed_pieces_are_as_if_alone(case, checkpoint):
    first, second, nothing = case.tokens_BT[0, :9], case.tokens_BT[1, :11], case.tokens_BT[0, :0]
    padding = np.zeros(24, int)
    rows = [
        packed(first, second, padding[:4]),
        packed(first, nothing, padding[:15]),
        packed(second, nothing, padding[:13]),
    ]
    stacked = [np.concatenate(arrays) for arrays in zip(*rows, strict=True)]
    hidden_BTD = jax.jit(bound(checkpoint).apply)(checkpoint.params, *stacked).last_BTD
    np.testing.assert_allclose(hidden_BTD[0, :9], hidden_BTD[1, :9], **TIGHT)
    np.testing.assert_allclose(hidden_BTD[0, 9:20], hidden_BTD[2, :11], **TIGHT)


@pytest.mark.parametrize("case", TWO, indirect=True)
def test_padding_and_other_pieces_have_no_influence(case, checkpoint):
    apply = jax.jit(bound(checkpoint).apply)
    run = lambda *row: np.asarray(apply(checkpoint.params, *packed(*row)).last_BTD[0])
    first, second = case.tokens_BT[0, :9], case.tokens_BT[1, :11]
    before = run(first, second, np.zeros(4, int))
    padding = run(first, second, np.arange(7, 11))
    other = run(first[::-1], second, np.zeros(4, int))
    np.testing.assert_array_equal(before[:20], padding[:20])
    np.testing.assert_array_equal(before[9:20], other[9:20])
    assert (before[:9] != other[:9]).any()


@pytest.mark.parametrize("case", TWO, indirect=True)
def test_a_row_of_padding_is_finite_and_so_is_its_gradient(case, checkpoint):
    model = bound(checkpoint)
    tokens_BT, zeros_BT = jnp.zeros((1, 5), int), jnp.zeros((1, 5), int)
    loss = lambda params: model.apply(params, tokens_BT, zeros_BT, zeros_BT).last_BTD.sum()
    value, gradients = jax.jit(jax.value_and_grad(loss))(checkpoint.params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("case", ["gemma3_text-linear"], indirect=True)
def test_remat_policies_give_equal_gradients(case, checkpoint):
    def gradients(remat):
        model = bound(checkpoint, remat=remat)
        loss = lambda params: jnp.sum(
            model.apply(params, case.tokens_BT, *whole_rows(case.tokens_BT)).last_BTD ** 3
        )
        return flatten(jax.jit(jax.grad(loss))(checkpoint.params))

    wanted = gradients("none")
    for remat in REMAT.keys() - {"none"}:
        for path, leaf in gradients(remat).items():
            scale = np.abs(wanted[path]).max()
            np.testing.assert_allclose(leaf, wanted[path], atol=1e-5 * scale, err_msg=path)
            assert scale > 0 or path == "head"


def test_decoding_with_a_cache_equals_the_whole_pass(case, checkpoint, whole):
    """Ragged, right-padded prompts in one prefill, then steps at different positions."""
    model, params, tokens_BT = bound(checkpoint), checkpoint.params, case.tokens_BT
    whole_BTD = np.asarray(whole.last_BTD)
    decode = jax.jit(model.decode)
    lengths, prompt, slots = np.array([9, 4]), 9, tokens_BT.shape[1]
    whole_B = np.full(2, slots)
    inside = np.arange(prompt) < lengths[:, None]
    position_BT = np.broadcast_to(np.arange(prompt), (2, prompt))
    cache = model.new_cache(2, slots, "float32")
    prompts_BT = np.where(inside, tokens_BT[:, :prompt], 60)
    hidden, cache = decode(params, prompts_BT, position_BT, cache, whole_B)
    np.testing.assert_allclose(hidden.last_BTD[inside], whole_BTD[:, :prompt][inside], **TIGHT)
    rows = np.arange(2)
    for step in range(slots - lengths.max()):
        at = lengths + step
        step_B1 = tokens_BT[rows, at][:, None]
        hidden, cache = decode(params, step_B1, at[:, None], cache, whole_B)
        np.testing.assert_allclose(hidden.last_BTD[:, 0], whole_BTD[rows, at], **TIGHT)


@pytest.mark.parametrize("case", ["gpt2-tied"], indirect=True)
def test_padding_beyond_the_table_of_positions_reaches_no_text(case, checkpoint, whole):
    model, params, tokens_BT = bound(checkpoint), checkpoint.params, case.tokens_BT
    length, padded = 9, checkpoint.config.max_positions + 16
    prompts_BT = np.zeros((2, padded), int)
    prompts_BT[:, :length] = tokens_BT[:, :length]
    position_BT = np.broadcast_to(np.arange(padded), prompts_BT.shape)
    cache = model.new_cache(2, padded + 1, "float32")
    _, cache = model.decode(params, prompts_BT, position_BT, cache)
    following = tokens_BT[:, length : length + 1], np.full((2, 1), length)
    hidden, _ = model.decode(params, *following, cache)
    np.testing.assert_allclose(hidden.last_BTD[:, 0], whole.last_BTD[:, length], **TIGHT)


def test_layers_and_neurons_are_those_of_transformers(case, checkpoint, whole):
    model, params, tokens_BT = bound(checkpoint), checkpoint.params, case.tokens_BT
    seen = []
    base = case.oracle.base_model
    layers = base.h if hasattr(base, "h") else base.layers
    dense = [] if checkpoint.config.experts else layers
    matrices = [[m for m in layer.mlp.modules() if hasattr(m, "weight")] for layer in dense]
    downs = [of_block[-1] for of_block in matrices]
    hooks = [down.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for down in downs]
    with torch.no_grad():
        oracle = case.oracle(torch.tensor(tokens_BT), output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    segment_BT, position_BT = whole_rows(tokens_BT)
    x_BTD = model.embed(params, tokens_BT, position_BT)
    context = model.context(segment_BT, position_BT)
    np.testing.assert_allclose(x_BTD, oracle.hidden_states[0], **TIGHT)
    for i, kind in enumerate(block_kinds(checkpoint.config)):
        block = model.block(jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]))
        middle_BTD = block.attend(x_BTD, context, kind)
        input_BTD = second_input(checkpoint.config, x_BTD, middle_BTD)
        if seen:
            neurons_BTF = block.feed_forward.activations(input_BTD)
            np.testing.assert_allclose(neurons_BTF, seen[i], **TIGHT)
        x_BTD = block(x_BTD, context, kind)
        np.testing.assert_allclose(whole.layers_LBTD[i], x_BTD, **TIGHT)
        if i + 1 < len(layers):  # transformers gives the last one after the final norm
            np.testing.assert_allclose(x_BTD, oracle.hidden_states[i + 1], **TIGHT)
    np.testing.assert_allclose(whole.last_BTD, oracle.hidden_states[-1], **TIGHT)


def test_init_fits_the_checkpoint_and_allocates_nothing_when_abstract(checkpoint):
    model = bound(checkpoint, param_dtype="bfloat16")
    made = flatten(model.init(jax.random.key(0)))
    shapes = flatten(model.abstract())
    for path, leaf in flatten(checkpoint.params).items():
        assert made[path].shape == shapes[path].shape == leaf.shape
        assert made[path].dtype == shapes[path].dtype == jnp.bfloat16
        assert isinstance(shapes[path], jax.ShapeDtypeStruct)
    assert made.keys() == shapes.keys() == flatten(checkpoint.params).keys()
    query = np.asarray(made["blocks/attention/query"], np.float32)
    assert (query[0] != query[1]).any()
    assert query.std() == pytest.approx(checkpoint.config.init_std, rel=0.1)


@pytest.mark.parametrize("case", TWO, indirect=True)
def test_bfloat16_compute_stays_near_and_is_bfloat16(case, checkpoint):
    row = whole_rows(case.tokens_BT)
    exact = bound(checkpoint).apply(checkpoint.params, case.tokens_BT, *row).last_BTD
    model = bound(checkpoint, compute_dtype="bfloat16")
    rough = model.apply(checkpoint.params, case.tokens_BT, *row).last_BTD
    assert rough.dtype == model.unembed(checkpoint.params).weight_DV.dtype == jnp.bfloat16
    assert np.abs(rough.astype(jnp.float32) - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("case", ["llama-tied"], indirect=True)
def test_a_token_outside_the_vocabulary_is_not_another_token(checkpoint):
    model = bound(checkpoint)
    outside_BT = jnp.array([[checkpoint.config.vocab]])
    assert np.isnan(model.embed(checkpoint.params, outside_BT, jnp.zeros_like(outside_BT))).all()


@pytest.mark.parametrize("case", ["llama-tied"], indirect=True)
def test_a_model_is_a_static_argument(checkpoint):
    run = jax.jit(lambda model, *of: model.embed(*of), static_argnums=0)
    zeros_BT = jnp.zeros((1, 2), int)
    assert run(bound(checkpoint), checkpoint.params, zeros_BT, zeros_BT).shape == (1, 2, 32)
