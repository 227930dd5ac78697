"""Pruning: what is kept, that the refit brings the output closer, and that nothing else moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses.fused import linear_divergence
from distill_jax.losses.terms import CROSS_ENTROPY, Term
from distill_jax.models.binding import bind
from distill_jax.models.prune import PruneOptions, _first, prune, pruned_config
from distill_jax.models.prune_blocks import BLOCK_CRITERIA
from distill_jax.models.refit import NEURON_CRITERIA
from distill_jax.models.storage import flatten
from distill_jax.types import UserError
from tests import tiny
from tests.models.conftest import FIRST


def summed_nll(hidden_BTD, unembed, batch):
    return linear_divergence(
        hidden_BTD, unembed, None, jnp.asarray(batch.labels_BT), jnp.asarray(batch.weight_BT),
        terms=(Term(CROSS_ENTROPY, 1.0),), block_tokens=64,
    )[0]  # fmt: skip


OPTIONS = PruneOptions(
    blocks=0, neurons=0, block_criterion="loss", neuron_criterion="reconstruction", refit=True,
    ridge=1e-3, attention_ridge=1e-2, ranking_tokens=10**6,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    model = tiny.model(blocks=4, width=24)
    return model, tiny.params(model, 5), [tiny.batch(seed, rows=8) for seed in range(4)]


def cut(whole, **changed):
    return prune(*whole, OPTIONS._replace(**changed), summed_nll)


def outputs(model, params, batch):
    return model.apply(params, batch.tokens_BT, batch.segment_BT, batch.position_BT).last_BTD


def bound(config):
    return bind(config, param_dtype="float32", compute_dtype="float32", remat="none")


def error(whole, **changed):
    """Mean squared change of the final hidden states on the calibration tokens."""
    model, params, batches = whole
    config, pruned, _ = cut(whole, **changed)
    small = bound(config)
    return np.mean(
        [
            np.mean((outputs(model, params, b) - outputs(small, pruned, b))[b.segment_BT > 0] ** 2)
            for b in batches
        ]
    )


def test_keeping_everything_without_a_refit_changes_nothing(whole):
    config, pruned, kept = cut(whole, refit=False)
    assert config == whole[0].config
    assert kept == [0, 1, 2, 3]
    jax.tree.map(np.testing.assert_array_equal, pruned, jax.tree.map(np.asarray, whole[1]))


def test_a_refit_of_a_whole_model_leaves_it_as_it_is(whole):
    assert error(whole) < 1e-6


@pytest.mark.parametrize("criterion", NEURON_CRITERIA)
def test_a_neuron_that_does_nothing_goes_first(whole, criterion):
    model, params, batches = whole
    params = jax.tree.map(lambda x: x, params)
    half = dict(params["blocks"]["feed_forward"])
    dead = np.arange(0, 24, 3)
    half["up"] = half["up"].at[:, :, dead].set(0.0)
    params = {**params, "blocks": {**params["blocks"], "feed_forward": half}}
    changed = {"neuron_criterion": criterion, "neurons": 24 - len(dead)}
    assert error((model, params, batches), **changed) < 1e-6


@pytest.mark.parametrize("criterion", NEURON_CRITERIA)
def test_the_refit_brings_the_output_closer(whole, criterion):
    less = {"neurons": 12, "neuron_criterion": criterion}
    assert error(whole, **less) < 0.8 * error(whole, refit=False, **less)


def test_reconstruction_loses_least(whole):
    errors = {name: error(whole, neurons=12, neuron_criterion=name) for name in NEURON_CRITERIA}
    assert errors["reconstruction"] == min(errors.values())


@pytest.mark.parametrize("criterion", BLOCK_CRITERIA)
def test_a_block_that_adds_nothing_is_dropped(whole, criterion):
    model, params, batches = whole
    blocks = jax.tree.map(lambda x: x, params["blocks"])
    for half, name in (("attention", "output"), ("feed_forward", "down")):
        blocks[half] = blocks[half] | {name: blocks[half][name].at[2].set(0.0)}
    idle = (model, {**params, "blocks": blocks}, batches)
    config, _, kept = cut(idle, blocks=3, block_criterion=criterion)
    assert kept == [0, 1, 3]
    assert config.blocks == 3
    assert error(idle, blocks=3, block_criterion=criterion) < 1e-6


def test_loss_of_a_removal_equals_a_model_without_the_block(whole):
    """The shared prefix of the leave-one-out pass gives the same losses as separate models."""
    from distill_jax.models.prune_blocks import _loss_without

    model, params, batches = whole
    start, without = _loss_without(model, summed_nll)
    context, x_BTD = start(params, batches[0])
    for i in range(4):
        x_BTD, fast = without(params, batches[0], context, x_BTD, i)
        rest = jax.tree.map(lambda x, i=i: jnp.delete(x, i, axis=0), params["blocks"])
        config = cut(whole, blocks=3, refit=False)[0]
        small = {**params, "blocks": rest}
        hidden = outputs(bound(config), small, batches[0])
        slow = summed_nll(hidden, model.unembed(params), batches[0])
        np.testing.assert_allclose(fast, slow, rtol=1e-5)


@pytest.mark.parametrize(("tokens", "sizes"), [(1, [1]), (40, [2]), (128, [8]), (300, [8, 8])])
def test_the_ranking_reads_as_many_rows_as_hold_its_tokens(whole, tokens, sizes):
    batches = _first(whole[2], tokens)
    assert [len(batch.tokens_BT) for batch in batches] == sizes
    for batch, all_rows in zip(batches, whole[2], strict=False):
        np.testing.assert_array_equal(batch.labels_BT, all_rows.labels_BT[: len(batch.labels_BT)])


def test_local_flags_follow_their_blocks():
    model = tiny.model(blocks=3, local_blocks=(True, False, True), sliding_window=4)
    config, _, kept = prune(
        model, tiny.params(model), [tiny.batch()], OPTIONS._replace(blocks=2), summed_nll
    )
    assert config.local_blocks == tuple(model.config.local_blocks[i] for i in kept)


@pytest.mark.parametrize("case", FIRST, indirect=True)
def test_pruning_fits_every_family(checkpoint):
    """Neurons that do nothing go, the rest is refitted to what it was; or one line refuses."""
    model, params = bound(checkpoint.config), jax.tree.map(jnp.asarray, checkpoint.params)
    if checkpoint.config.experts:
        with pytest.raises(UserError, match="experts, whose neurons are not pruned"):
            pruned_config(checkpoint.config, OPTIONS._replace(neurons=5))
        assert pruned_config(checkpoint.config, OPTIONS._replace(blocks=1)).blocks == 1
        return
    half = dict(params["blocks"]["feed_forward"])
    dead = np.arange(0, checkpoint.config.neurons, 3)
    half["down"] = half["down"].at[:, dead].set(0.0)
    params["blocks"] = {**params["blocks"], "feed_forward": half}
    batches = [tiny.batch(seed, rows=8, vocab=checkpoint.config.vocab) for seed in range(2)]
    of = (model, params, batches)
    wanted = checkpoint.config.neurons - len(dead)
    assert error(of, neurons=wanted, neuron_criterion="contribution") < 1e-6


def test_padding_does_not_count(whole):
    model, params, batches = whole
    noisy = [
        b._replace(tokens_BT=np.where(b.segment_BT == 0, 3, b.tokens_BT).astype(np.int32))
        for b in batches
    ]
    first = cut(whole, neurons=12)[1]
    second = cut((model, params, noisy), neurons=12)[1]
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(("name", "wanted"), [("blocks", 5), ("neurons", 25), ("blocks", -1)])
def test_keeping_more_than_there_is_is_refused(whole, name, wanted):
    with pytest.raises(UserError, match=f"student.prune.{name} is {wanted}"):
        cut(whole, **{name: wanted})


def test_a_model_with_experts_loses_blocks_and_no_neurons():
    model = tiny.model(blocks=3, width=16, experts=4, experts_per_token=2)
    whole = model, tiny.params(model, 5), [tiny.batch(0, rows=8)]
    config, pruned, kept = cut(whole, blocks=2)
    assert len(kept) == config.blocks == 2
    experts = [flatten(params)["blocks/feed_forward/expert_up"] for params in (whole[1], pruned)]
    np.testing.assert_array_equal(experts[0][np.array(kept)], experts[1])
    with pytest.raises(UserError, match=r"prune\.neurons is 5, and the model has 4 experts"):
        cut(whole, neurons=5)
