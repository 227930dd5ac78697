"""Cached generation against full forward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses.vocabulary import head_logits
from distill_jax.sampling import generate, make_continue
from distill_jax.types import UserError
from tests import tiny

PROMPTS = [[5, 9, 3], [7], [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]]


@pytest.fixture(scope="module")
def model():
    made = tiny.model()
    return made, tiny.params(made, 3)


def write(
    model,
    prompts,
    *,
    new=10,
    temperature=0.0,
    top_p=1.0,
    seed=0,
    stop=(60,),
    batch_size=8,
    show=None,
):
    of, params = model
    run = make_continue(
        of, max_new_tokens=new, temperature=temperature, top_p=top_p, stop_ids=stop,
        cache_dtype="float32",
    )  # fmt: skip
    return generate(run, params, prompts, jax.random.key(seed), batch_size=batch_size, show=show)


def next_logits(model, tokens):
    of, params = model
    ids = jnp.asarray([tokens])
    ones, places = jnp.ones_like(ids), jnp.arange(len(tokens))[None]
    hidden = of.apply(params, ids, ones, places).last_BTD[0, -1]
    return np.asarray(head_logits(hidden, of.unembed(params)))


def test_greedy_equals_the_argmax_of_full_passes(model):
    for prompt, text in zip(PROMPTS, write(model, PROMPTS), strict=True):
        tokens = list(prompt)
        for token in text:
            assert token == int(np.argmax(next_logits(model, tokens)))
            tokens.append(token)
        if len(text) < 10:
            assert int(np.argmax(next_logits(model, tokens))) == 60


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_does_not_depend_on_its_neighbors(model, temperature):
    together = write(model, PROMPTS, temperature=temperature)
    by_ones = write(model, PROMPTS, temperature=temperature, batch_size=1)
    assert together == by_ones


def test_a_text_ends_before_its_stop_token(model):
    free = write(model, PROMPTS, stop=(60,))
    stop = free[0][4]
    stopped = write(model, PROMPTS, stop=(60, stop))
    assert stopped[0] == free[0][: free[0].index(stop)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("new", "batch_size"), [(10, 8), (9, 2), (3, 1), (4, 3)])
def test_what_is_shown_on_the_way_grows_into_the_same_texts(model, temperature, new, batch_size):
    """The prompts' stop tokens are chosen so that some end early."""
    free = write(model, PROMPTS, temperature=temperature, new=new, batch_size=batch_size)
    stop = (60, free[0][2])
    kept = {"temperature": temperature, "new": new, "batch_size": batch_size, "stop": stop}
    seen = {i: [] for i in range(len(PROMPTS))}
    texts = write(model, PROMPTS, show=lambda i, *one: seen[i].append(one), **kept)
    assert texts == write(model, PROMPTS, **kept)
    for i, text in enumerate(texts):
        parts = [part for part, _ in seen[i]]
        assert parts[-1] == text
        assert all(text[: len(part)] == part for part in parts)
        assert len(parts[0]) <= 4
        assert [ended for _, ended in seen[i]].count(True) >= 1
        assert seen[i][-1][1]


@pytest.mark.parametrize("top_p", [1.0, 0.7, 0.05])
def test_temperature_draws_from_the_softmax(model, top_p):
    """Frequencies of first tokens over many keys, against the exact distribution."""
    logits = next_logits(model, PROMPTS[0]) / 1.5
    exact = np.exp(logits - logits.max())
    exact /= exact.sum()
    order = np.argsort(-exact)
    least = int(np.searchsorted(np.cumsum(exact[order]), top_p)) + 1
    exact[order[least:]] = 0
    exact /= exact.sum()
    count = 4000
    prompts = [PROMPTS[0]] * count
    drawn = {"temperature": 1.5, "top_p": top_p, "new": 1, "stop": (10**6,), "seed": 1}
    texts = write(model, prompts, batch_size=count, **drawn)
    seen = np.bincount([text[0] for text in texts], minlength=tiny.VOCAB) / count
    bound = 5 * np.sqrt(exact * (1 - exact) / count) + 1e-3
    assert np.all(np.abs(seen - exact) < bound)


def test_seeds_differ_and_repeat(model):
    first = write(model, PROMPTS, temperature=1.0, seed=1)
    assert first == write(model, PROMPTS, temperature=1.0, seed=1)
    assert first != write(model, PROMPTS, temperature=1.0, seed=2)


@pytest.mark.parametrize(
    ("length", "said"),
    [(0, "has no tokens"), (60, "use at most 4 new tokens"), (64, "use a shorter prompt")],
)
def test_a_prompt_that_cannot_be_continued_is_named(model, length, said):
    with pytest.raises(UserError, match=f"prompt 2 has .*{said}|prompt 2 {said}"):
        write(model, [[1], [1] * length])
