"""Cached generation against full forward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from distill_jax.losses.vocabulary import head_logits
from distill_jax.models import huggingface
from distill_jax.models.binding import bind
from distill_jax.models.rope import RopeScaling
from distill_jax.sampling import generate, make_continue
from distill_jax.types import UserError
from tests import tiny
from tests.models.conftest import CASES, tiny_oracle

PROMPTS = [[5, 9, 3], [7], [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]]


# Two of the three prompts become long while they are continued, one is.
LONG = RopeScaling(
    "longrope", 4.0, original_positions=8, short_factors=(1.0, 1.1, 1.3, 1.6),
    long_factors=(3.0, 5.0, 9.0, 16.0), attention_factor=1.2,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    made = tiny.model()
    return made, tiny.params(made, 3)


@pytest.fixture(scope="module")
def switching():
    made = tiny.model(rope_scaling=LONG)
    params = tiny.params(made, 3)
    # Larger matrices yet, so that a text depends on how positions are turned.
    larger = jax.tree.map(lambda x: 4 * x if x.ndim > 2 else x, params["blocks"])
    return made, params | {"blocks": larger}


either = pytest.mark.parametrize("kind", ["model", "switching"])


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


@either
def test_greedy_equals_the_argmax_of_full_passes(kind, request):
    model = request.getfixturevalue(kind)
    for prompt, text in zip(PROMPTS, write(model, PROMPTS), strict=True):
        tokens = list(prompt)
        for token in text:
            assert token == int(np.argmax(next_logits(model, tokens)))
            tokens.append(token)
        if len(text) < 10:
            assert int(np.argmax(next_logits(model, tokens))) == 60


@either
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_does_not_depend_on_its_neighbors(kind, temperature, request):
    model = request.getfixturevalue(kind)
    together = write(model, PROMPTS, temperature=temperature)
    by_ones = write(model, PROMPTS, temperature=temperature, batch_size=1)
    assert together == by_ones


@either
def test_a_text_does_not_depend_on_how_long_it_may_become(kind, request):
    model = request.getfixturevalue(kind)
    most = write(model, PROMPTS, new=24)
    for new in (1, 4, 7):
        assert write(model, PROMPTS, new=new) == [text[:new] for text in most]


@pytest.mark.parametrize("name", ["phi3-long", "phi3-short"])
def test_texts_that_become_long_are_those_of_transformers(name, tmp_path):
    """Of one batch here and one by one there; phi3-long has 10 positions for short texts."""
    oracle, r = tiny_oracle(*CASES[name]), np.random.default_rng(0)
    oracle.save_pretrained(tmp_path)
    checkpoint = huggingface.read(tmp_path, dtype="float32").whole()
    of = bind(checkpoint.config, param_dtype="float32", compute_dtype="float32", remat="none")
    prompts = [r.integers(0, of.config.vocab, n).tolist() for n in (2, 4, 7, 9, 10, 11, 14)]
    texts = write((of, checkpoint.params), prompts, new=12, stop=(10**6,))
    for prompt, text in zip(prompts, texts, strict=True):
        ids_1T = torch.tensor([prompt])
        whole = oracle.generate(
            ids_1T, attention_mask=torch.ones_like(ids_1T), do_sample=False, max_new_tokens=12,
            eos_token_id=None,
        )  # fmt: skip
        assert whole[0].tolist() == prompt + text


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
