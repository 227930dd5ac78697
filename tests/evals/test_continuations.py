"""Prompts out of documents, generations by real models, and the exposure gap against an oracle."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.data.encode import Tokenized
from distill_jax.evals.continuations import (
    behaviour_section,
    data_metrics,
    make_continuation_programs,
    measure_continuations,
)
from distill_jax.evals.exposure import EXPOSURE, exposure_gap, make_divergence_step
from distill_jax.evals.prompts import Prompts, prompts_of
from distill_jax.evals.text_measures import TEXT_MEASURES, index_ngrams
from distill_jax.losses.vocabulary import head_logits
from distill_jax.types import UserError
from tests import tiny

STOP = 60
LIMIT = 8


class Pair(NamedTuple):
    student: object
    params: dict
    teacher: object
    teacher_params: dict


@pytest.fixture(scope="module")
def pair():
    student, teacher = tiny.model(), tiny.model(width=24, blocks=3, vocab=64)
    return Pair(student, tiny.params(student, 1), teacher, tiny.params(teacher, 2))


@pytest.fixture(scope="module")
def programs(pair):
    return make_continuation_programs(
        pair.student, pair.teacher, max_new_tokens=LIMIT, stop_ids=(STOP,), block_tokens=16
    )


@pytest.fixture(scope="module")
def prompts():
    r = np.random.default_rng(0)
    ids = lambda n: r.integers(0, STOP, n).tolist()
    sizes = [(3, 8), (5, 8), (1, 2), (9, 8), (4, 0), (7, 5), (2, 8)]
    return Prompts(
        prompts=[ids(n) for n, _ in sizes],
        references=[ids(n) for _, n in sizes],
        answers=[False, False, True, False, False, True, False],
        documents=list(range(len(sizes))),
    )


def tokenized(documents):
    """Documents as (tokens, trained) pairs."""
    tokens, trained = zip(*documents, strict=True)
    return Tokenized(
        tokens=np.concatenate([np.array(t, np.uint32) for t in tokens]),
        trained=np.concatenate([np.array(t, np.uint8) for t in trained]),
        offsets=np.cumsum([0, *map(len, tokens)]).astype(np.int64),
        labels=("",) * len(documents),
    )


def plain(*ids):
    return list(ids), [1] * len(ids)


def pick(documents, count=100, prompt_tokens=2, new_tokens=3, max_positions=64):
    return prompts_of(
        tokenized(documents),
        count=count,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        stop_ids=(STOP,),
        max_positions=max_positions,
    )


def test_a_text_is_cut_and_its_stop_token_is_no_reference():
    found = pick([plain(1, 2, 3, 4, 5, 6, STOP), plain(1, 2, 3, STOP), plain(1, 2, STOP)])
    assert found.prompts == [[1, 2], [1, 2]]
    assert found.references == [[3, 4, 5], [3]]
    assert found.answers == [False, False]
    assert found.documents == [0, 1]


def test_a_prompt_is_the_whole_prompt_and_its_completion_an_answer():
    short = ([9, 8, 7, 6, 5, STOP], [0, 0, 0, 1, 1, 1])
    long = ([9, 1, 2, 3, 4, STOP], [0, 1, 1, 1, 1, 1])
    empty = ([9, 8, STOP], [0, 0, 1])
    found = pick([short, long, empty])
    assert found.prompts == [[9, 8, 7], [9]]
    assert found.references == [[6, 5], [1, 2, 3]]
    assert found.answers == [True, False]  # the second does not fit three tokens
    assert found.documents == [0, 1]


def test_messages_give_the_first_turn_of_the_assistant():
    turns = ([1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 1, 1, 0, 0, 1, 1])
    begins = ([1, 2, 3, 4, 5, 6], [1, 1, 0, 0, 1, 1])
    found = pick([turns, begins])
    assert found.prompts == [[1, 2], [1, 2, 3, 4]]
    assert found.references == [[3, 4], [5, 6]]


def test_prompts_are_spread_evenly_and_do_not_repeat():
    found = pick([plain(*range(i, i + 6)) for i in range(20)], count=6)
    assert len(set(found.documents)) == 6
    assert found.documents == sorted(found.documents)
    assert max(np.diff(found.documents)) <= 4
    assert pick([plain(1, 2, 3, 4)] * 3, count=6).documents == [0, 1, 2]


def test_a_prompt_without_room_is_passed_over_and_none_at_all_is_named():
    long = ([9] * 10 + [5, STOP], [0] * 10 + [1, 1])
    assert pick([long, plain(1, 2, 3)], max_positions=12).documents == [1]
    with pytest.raises(UserError, match="none of 2 held-out documents gives a prompt"):
        pick([long, plain(1, STOP)], max_positions=12)


@functools.partial(jax.jit, static_argnums=0)
def last_logits(model, params, tokens_T, length):
    """Logits [V] after the first `length` tokens of a row, by one whole pass."""
    place = jnp.arange(len(tokens_T))[None]
    ones = (place < length).astype(jnp.int32)
    hidden = model.apply(params, tokens_T[None], ones, place)
    return head_logits(hidden.last_BTD[0, length - 1], model.unembed(params))


def next_log_probabilities(model, params, tokens):
    """Log-probabilities in float64 of what follows, over the entries that both models have."""
    row = np.zeros(24, np.int32)
    row[: len(tokens)] = tokens
    logits = np.asarray(last_logits(model, params, row, len(tokens)), np.float64)[: tiny.VOCAB]
    logits -= logits.max()
    return logits - np.log(np.exp(logits).sum())


def oracle_divergence(pair, prompts, texts, places):
    values = []
    for prompt, text, count in zip(prompts, texts, places, strict=True):
        for i in range(count):
            context = [*prompt, *text[:i]]
            q = next_log_probabilities(pair.student, pair.params, context)
            p = next_log_probabilities(pair.teacher, pair.teacher_params, context)
            values.append(np.sum(np.exp(p) * (p - q)))
    return np.mean(values)


@pytest.mark.parametrize("batch_size", [2, 8])
def test_exposure_gap_equals_token_by_token_passes(pair, prompts, batch_size):
    own = [[1, 2, 3], [4] * LIMIT, [5], [], [6, 7], [8] * LIMIT, [9] * 7]
    places = [4, 8, 2, 1, 0, 5, 8]
    found = exposure_gap(
        make_divergence_step(pair.student, pair.teacher, block_tokens=16),
        pair.params,
        pair.teacher_params,
        prompts=prompts.prompts,
        own=own,
        data=prompts.references,
        limit=LIMIT,
        batch_size=batch_size,
    )
    mine = oracle_divergence(pair, prompts.prompts, own, places)
    theirs = oracle_divergence(pair, prompts.prompts, prompts.references, places)
    assert found["kl_own"] == pytest.approx(mine, rel=2e-4)
    assert found["kl_data"] == pytest.approx(theirs, rel=2e-4)
    assert found["exposure_gap"] == pytest.approx(mine - theirs, rel=1e-3, abs=1e-4)


def test_the_gap_is_zero_where_the_own_text_is_the_data(pair, prompts):
    divergence_step = make_divergence_step(pair.student, pair.teacher, block_tokens=16)
    run = lambda data: exposure_gap(
        divergence_step,
        pair.params,
        pair.teacher_params,
        prompts=prompts.prompts,
        own=prompts.references,
        data=data,
        limit=LIMIT,
        batch_size=4,
    )
    same = run(prompts.references)
    assert same["kl_own"] == same["kl_data"] > 0.1
    assert same["exposure_gap"] == 0
    assert run([[]] * 7) == dict.fromkeys(EXPOSURE)


def test_a_student_that_is_its_teacher_has_no_divergence(pair, prompts):
    programs = make_continuation_programs(
        pair.student, pair.student, max_new_tokens=LIMIT, stop_ids=(STOP,)
    )
    found = measure_continuations(programs, pair.params, pair.params, prompts=prompts).metrics
    for name in EXPOSURE:
        assert found[name] == pytest.approx(0, abs=1e-6)


def test_the_same_seed_gives_the_same_whatever_the_batch_size(pair, programs, prompts):
    run = lambda **more: measure_continuations(
        programs, pair.params, pair.teacher_params, prompts=prompts, **more
    )
    first, again, by_twos = run(batch_size=8), run(batch_size=8), run(batch_size=2)
    assert first == again
    assert first.generated == by_twos.generated
    known = lambda m: {name: value for name, value in m.metrics.items() if value is not None}
    assert known(first) == pytest.approx(known(by_twos), rel=1e-4, abs=1e-5)
    assert set(first.metrics) == set(TEXT_MEASURES) | set(EXPOSURE)
    other = run(seed=1)
    assert other.generated == first.generated  # greedy
    assert other.metrics["kl_own"] != first.metrics["kl_own"]


def test_generations_are_greedy_and_end_at_a_stop_token_or_the_limit(pair, programs, prompts):
    found = measure_continuations(programs, pair.params, prompts=prompts)
    for prompt, text in zip(prompts.prompts, found.generated, strict=True):
        tokens = list(prompt)
        for token in [*text, *[STOP] * (len(text) < LIMIT)]:
            logits = next_log_probabilities(pair.student, pair.params, tokens)
            assert token == int(np.argmax(logits))
            tokens.append(token)
    cut = [len(text) == LIMIT for text in found.generated]
    assert found.metrics["truncated"] == pytest.approx(np.mean(cut))


def test_what_is_not_given_is_absent(pair, programs, prompts):
    found = measure_continuations(programs, pair.params, prompts=prompts).metrics
    absent = {name for name, value in found.items() if value is None}
    assert absent == {"verified", "memorised", *EXPOSURE}


def test_a_verifier_and_training_text_are_used(pair, programs, prompts):
    first = measure_continuations(programs, pair.params, prompts=prompts)
    longest = np.array(max(first.generated, key=len), np.uint32)
    training = index_ngrams(longest, np.array([0, len(longest)]), length=4)
    found = measure_continuations(
        programs,
        pair.params,
        prompts=prompts,
        training=training,
        verify=lambda i, ids: float(i % 2 and ids == first.generated[i]),
    ).metrics
    assert found["verified"] == pytest.approx(3 / 7)
    assert 0 < found["memorised"] <= 1


def test_the_data_matches_itself(prompts):
    found = data_metrics(prompts, LIMIT, None)
    assert found["exact_match"] == found["rouge_l"] == found["length_ratio"] == 1
    assert found["truncated"] == pytest.approx(4 / 7)


def test_models_of_one_architecture_share_their_programs(pair, programs, prompts):
    """No program is compiled anew for other parameters, nor for the last, shorter batch."""
    measure = lambda seed: measure_continuations(
        programs,
        tiny.params(pair.student, seed),
        pair.teacher_params,
        prompts=prompts,
        batch_size=5,
    )
    write, draw = programs.write, programs.draw
    jitted = (write.begin, write.go_on, draw.begin, draw.go_on, programs.divergence_step)
    compiled = lambda: [program._cache_size() for program in jitted]
    measure(5)
    first = compiled()
    assert all(first)
    measure(6)
    assert compiled() == first


def test_the_section_of_the_report_leaves_out_what_no_model_has():
    rows = {"teacher": {"rep_4": 0.1, "verified": None}, "kd": {"rep_4": 0.2, "kl_own": 1.0}}
    section = behaviour_section(rows, prompts=7, new_tokens=8)
    assert [m["name"] for m in section["metrics"]] == ["rep_4", "kl_own"]
    assert section["models"] == [
        {"model": "teacher", "rep_4": 0.1, "kl_own": None},
        {"model": "kd", "rep_4": 0.2, "kl_own": 1.0},
    ]
    assert (section["prompts"], section["new_tokens"]) == (7, 8)
