"""Serving measures with a clock that the test moves, and the work that is timed."""

import itertools

import jax
import jax.monitoring
import numpy as np
import pytest

from distill_jax.evals import serving
from distill_jax.evals.serving import (
    compare_serving,
    serving_programs,
    sizes,
)
from distill_jax.sampling import generate, make_continue
from distill_jax.types import UserError
from tests import tiny

SHAPE = {"prompt_tokens": 6, "new_tokens": 5}
KEYS = {
    "parameters",
    "bytes",
    "first_token_ms",
    "decode_tokens_per_s_1",
    "decode_tokens_per_s_8",
}


@pytest.fixture(scope="module")
def models():
    teacher, student = tiny.model(width=24, blocks=3), tiny.model()
    return {
        "teacher": (teacher, tiny.params(teacher, 1)),
        "student": (student, tiny.params(student, 2)),
    }


def steady(seconds):
    """A clock on which everything between two looks takes the same time."""
    count = itertools.count()
    return lambda: next(count) * seconds


def alone(model, params, **options):
    """The cost of one model."""
    return compare_serving({"one": (model, params)}, **options).models["one"]


def test_known_values_by_a_steady_clock(models):
    model, params = models["student"]
    found = alone(model, params, **SHAPE, repeats=3, clock=steady(0.25))
    assert found.first_token_ms == pytest.approx(250)
    assert found.tokens_per_s == pytest.approx({1: 5 / 0.25, 8: 8 * 5 / 0.25})


def test_size_is_counted_from_the_shapes(models):
    _, params = models["student"]
    # embedding, two blocks of norms, four projections and three feed-forward matrices, final norm
    block = 16 + 16 * (32 + 16 + 16) + 32 * 16 + 16 + 3 * 16 * 24
    assert sizes(params)[0] == 61 * 16 + 2 * block + 16
    assert sizes(params)[1] == 4 * sizes(params)[0]
    half = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    assert sizes(half)[1] == 2 * sizes(params)[0]


def test_what_is_timed_is_greedy_generation(models):
    """Over enough tokens that a position off by one would change some."""
    model, params = models["teacher"]
    prompts = np.random.default_rng(0).integers(0, 61, (64, 6), np.int32)
    programs = serving_programs(model, prompt_tokens=6, new_tokens=19, cache_dtype="float32")
    first, cache = programs.prefill(params, prompts)
    rest = programs.decode(params, first, cache)
    run = make_continue(
        model, max_new_tokens=20, temperature=0.0, stop_ids=(10**6,), cache_dtype="float32"
    )
    texts = generate(run, params, prompts.tolist(), jax.random.key(0), batch_size=64)
    assert np.column_stack([first, rest]).tolist() == texts


def test_nothing_is_compiled_between_the_looks_that_count(models):
    """Everything is compiled in the turn that is thrown away."""
    looks, compiled_at = [], []

    def clock():
        looks.append(len(looks))
        return float(looks[-1])

    def heard(event, *_, **__):
        if "compile" in event:
            compiled_at.append(len(looks))

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        model, params = models["student"]
        # Shapes of their own, so that no other test has compiled them.
        alone(model, params, prompt_tokens=7, new_tokens=4, repeats=2, clock=clock)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    a_turn = 2 * 3  # two looks around the first token and around each of two batch sizes
    assert len(looks) == 3 * a_turn
    assert compiled_at
    assert max(compiled_at) <= a_turn


def compare(models, price=None, clock=None, repeats=3, **names):
    return compare_serving(
        models,
        **SHAPE,
        price_per_hour=price,
        repeats=repeats,
        clock=clock or steady(0.5),
        **names,
    )


def test_the_section_of_the_report(models):
    cost = compare(models, price=3.6).json()
    assert [row["model"] for row in cost["models"]] == ["teacher", "student"]
    assert all(set(row) == KEYS | {"model", "cost_per_million_tokens"} for row in cost["models"])
    assert set(cost["ratio"]) == KEYS | {"cost_per_million_tokens"}
    speed = 8 * 5 / 0.5
    for row in cost["models"]:
        assert row["cost_per_million_tokens"] == pytest.approx(3.6 / 3600 / speed * 1e6)
    assert cost["ratio"]["cost_per_million_tokens"] == pytest.approx(1)
    small, big = (sizes(models[name][1])[0] for name in ("student", "teacher"))
    assert cost["ratio"]["parameters"] == small / big
    assert cost["price_per_hour"] == 3.6


def test_without_a_price_no_cost_and_without_a_pair_no_ratio(models):
    cost = compare({"teacher": models["teacher"]})
    assert cost.models["teacher"].cost_per_million_tokens is None
    assert cost.price_per_hour is cost.ratio is None
    assert cost.json()["ratio"] is None


def test_ratios_are_of_the_same_turn(models):
    """A machine that slows down tenfold, turn by turn, leaves the ratios as they are."""
    looks = itertools.count()
    now = [0.0]
    a_turn = 2 * 2 * 3  # two models, three timed calls each

    def clock():
        look = next(looks)
        if look % 2:
            now[0] += 10.0 ** (look // a_turn)
        return now[0]

    cost = compare(models, clock=clock, repeats=3)
    assert cost.ratio.first_token_ms == pytest.approx(1)
    assert cost.ratio.tokens_per_s == pytest.approx({1: 1, 8: 1})
    assert cost.ratio.cost_per_million_tokens is None


def test_ratios_are_medians_over_turns_not_quotients_of_medians(models, monkeypatch):
    turns = {"teacher": [1.0, 10.0, 100.0], "student": [30.0, 3.0, 200.0]}
    planted = {name: np.tile(values, (3, 1)).T for name, values in turns.items()}
    monkeypatch.setattr(serving, "_turns", lambda *_, **__: planted)
    cost = compare(models, price=1.0)
    assert (cost.ratio.first_token_ms, cost.ratio.tokens_per_s) == (2, {1: 2, 8: 2})
    assert cost.ratio.cost_per_million_tokens == 0.5
    assert [row.first_token_ms for row in cost.models.values()] == [10, 30]


def test_the_first_turn_does_not_count(models):
    """It holds the compilation: here it takes a thousand times as long as the one after it."""
    looks, now = itertools.count(), [0.0]

    def clock():
        now[0] += 250.0 if next(looks) < 6 else 0.25
        return now[0]

    model, params = models["student"]
    found = alone(model, params, **SHAPE, repeats=1, clock=clock)
    assert found.first_token_ms == pytest.approx(250)


def test_a_larger_model_takes_longer_by_the_real_clock():
    """Twelve times the blocks: no noise of a machine turns that around."""
    small, large = tiny.model(width=64, blocks=1), tiny.model(width=64, blocks=12)
    cost = compare_serving(
        {"teacher": (large, tiny.params(large)), "student": (small, tiny.params(small))},
        prompt_tokens=8,
        new_tokens=40,
        repeats=5,
    )
    assert min(cost.ratio.tokens_per_s.values()) > 1.2


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"prompt_tokens": 60, "new_tokens": 5}, "60 . 5 tokens and student has 64 positions"),
        ({"prompt_tokens": 0, "new_tokens": 5}, "0 prompt tokens"),
        ({"prompt_tokens": 5, "new_tokens": 5, "repeats": 0}, "0 repeats"),
    ],
)
def test_what_cannot_be_measured_is_named(models, shape, message):
    with pytest.raises(UserError, match=message):
        compare_serving({"student": models["student"]}, **shape)
