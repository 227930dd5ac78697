"""Our models in lm-evaluation-harness, against the harness' own --model hf on the exported ones.

The comparison runs in a process of its own (this file as a program), without network.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tqdm import auto

from distill_jax.data.tokenizer import load_tokenizer
from distill_jax.evals import lm_eval_model
from distill_jax.evals.lm_eval_model import (
    Request,
    make_lm_eval_model,
    request_of,
    written,
)
from distill_jax.evals.lm_eval_tasks import evaluate_tasks
from distill_jax.evals.log_likelihoods import log_likelihoods, make_score_step, padded
from distill_jax.losses.vocabulary import head_logits
from distill_jax.models.binding import bind
from distill_jax.models.load import load_checkpoint
from distill_jax.types import UserError
from tests import cli, tiny

needs_lm_eval = pytest.mark.skipif(
    find_spec("lm_eval") is None or find_spec("peft") is None, reason="lm_eval[hf] is absent"
)
CHOICES = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - metric: acc
  - metric: acc_norm
"""
ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
"""
WRITTEN = """
task: tiny_written
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question or 'the'}}}}"
doc_to_target: "{{{{text}}}}"
generation_kwargs:
  until: ["e"]
  max_gen_toks: 12
  do_sample: false
metric_list:
  - metric: exact_match
"""
TASKS = {"tiny_choice": CHOICES, "tiny_rolling": ROLLING, "tiny_written": WRITTEN}


def write_tasks(root):
    """Questions from one word to more than the model's 64 positions, and an empty one."""
    r = np.random.default_rng(0)
    lines = []
    for i in range(24):
        words = " ".join(r.choice(cli.WORDS, [1, 3, 9, 70][i % 4]))
        choices = [" " + " ".join(r.choice(cli.WORDS, r.integers(1, 4))) for _ in range(4)]
        question = "" if i == 8 else words + " " * (i == 9)
        text = " ".join(r.choice(cli.WORDS, r.integers(2, 90)))
        record = {"question": question, "choices": choices, "label": i % 4}
        lines.append(json.dumps(record | {"text": text}))
    data = root / "data.jsonl"
    data.write_text("\n".join(lines) + "\n")
    for name, task in TASKS.items():
        (root / f"{name}.yaml").write_text(task.format(data=data))
    return root


def load(path):
    read = load_checkpoint(str(path), dtype=jnp.dtype("float32")).whole()
    model = bind(read.config, param_dtype="float32", compute_dtype="float32", remat="none")
    return model, jax.tree.map(jnp.asarray, read.params), load_tokenizer(path)


def main(root):
    """Both sides on the same tasks; what each answered to each request, as JSON."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, params, tokenizer = load(root / "model")
    sides = {
        "ours": make_lm_eval_model(model, params, tokenizer, batch_size=8),
        "hf": HFLM(pretrained=str(root / "model"), device="cpu", batch_size=4),
    }
    found = {}
    for name, side in sides.items():
        results = lm_eval.simple_evaluate(
            model=side,
            tasks=list(TASKS),
            task_manager=TaskManager(include_path=str(root), include_defaults=False),
            bootstrap_iters=0,
        )
        found[name] = {
            "results": results["results"],
            "answers": {
                task: [sample["resps"] for sample in samples]
                for task, samples in results["samples"].items()
            },
        }
    scores = evaluate_tasks(sides["ours"], list(TASKS), include_path=str(root))
    found["numbers"] = scores.numbers
    found["examples"] = [e._replace(values=e.values.tolist())._asdict() for e in scores.examples]
    lines = (root / "data.jsonl").read_text().splitlines()
    found["lines"] = [json.loads(line) for line in lines]
    (root / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp("harness")
    cli.write_model(root / "model", seed=3)
    write_tasks(root)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(root / "cache")}
    run = subprocess.run(
        [sys.executable, "-m", "tests.evals.test_lm_eval_model", str(root)],
        cwd=cli.ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | offline,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((root / "found.json").read_text())


@needs_lm_eval
def test_multiple_choice_equals_the_harness_on_the_exported_model(found):
    ours, theirs = (found[side]["answers"]["tiny_choice"] for side in ("ours", "hf"))
    assert len(ours) == 24
    for mine, other in zip(ours, theirs, strict=True):
        for [[value, greedy]], [[expected, theirs_greedy]] in zip(mine, other, strict=True):
            assert float(value) == pytest.approx(float(expected), abs=1e-4)
            assert greedy == theirs_greedy
    for name in ("acc,none", "acc_norm,none"):
        assert found["ours"]["results"]["tiny_choice"][name] == pytest.approx(
            found["hf"]["results"]["tiny_choice"][name], abs=1e-12
        )
    assert 0 < found["ours"]["results"]["tiny_choice"]["acc,none"] < 1


@needs_lm_eval
def test_rolling_likelihoods_and_texts_equal_the_harness_on_the_exported_model(found):
    ours, theirs = (found[side]["answers"]["tiny_rolling"] for side in ("ours", "hf"))
    value = lambda answer: float(np.ravel(answer)[0])
    assert [value(x) for x in ours] == pytest.approx([value(x) for x in theirs], rel=1e-5)
    assert found["ours"]["answers"]["tiny_written"] == found["hf"]["answers"]["tiny_written"]
    assert any(text for [[text]] in found["ours"]["answers"]["tiny_written"])


@needs_lm_eval
def test_tasks_give_the_numbers_of_the_harness(found):
    results = found["ours"]["results"]
    assert found["numbers"]["tiny_choice/acc"] == results["tiny_choice"]["acc,none"]
    assert found["numbers"]["tiny_choice/acc_stderr"] > 0
    words = results["tiny_rolling"]["word_perplexity,none"]
    assert found["numbers"]["tiny_rolling/word_perplexity"] == pytest.approx(words, rel=1e-6)
    assert {name.split("/")[0] for name in found["numbers"]} == set(TASKS)


@needs_lm_eval
def test_numbers_are_the_means_of_their_examples(found):
    examples = {(e["task"], e["metric"]): e for e in found["examples"]}
    # What an example has of a rolling likelihood are sums, which are no numbers of their own.
    assert set(examples) == {
        ("tiny_choice", "acc"),
        ("tiny_choice", "acc_norm"),
        ("tiny_written", "exact_match"),
    }
    answers = found["ours"]["answers"]["tiny_choice"]
    best = [np.argmax([float(value) for [[value, _]] in answer]) for answer in answers]
    right = [float(choice == i % 4) for i, choice in enumerate(best)]
    for (task, metric), own in examples.items():
        assert own["higher_is_better"]
        assert own["ids"] == [str(i) for i in range(24)]
        assert len(own["groups"]) == 24
        assert np.mean(own["values"]) == pytest.approx(found["numbers"][f"{task}/{metric}"])
    choice = examples["tiny_choice", "acc"]
    assert choice["values"] == right
    prompts = [line["question"] for line in found["lines"]]
    same = lambda names: [[a == b for a in names] for b in names]
    assert same(choice["groups"]) == same([prompt.strip() for prompt in prompts])


def test_bars_of_the_harness_are_not_drawn(capsys):
    from distill_jax.evals.lm_eval_tasks import _without_bars

    with _without_bars():
        list(auto.tqdm(range(3), disable=False))
    assert capsys.readouterr().err == ""
    list(auto.tqdm(range(3)))
    assert "3/3" in capsys.readouterr().err


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(UserError, match=r"pip install 'lm_eval>=") as error:
        evaluate_tasks(None, ["arc_easy"])
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def small():
    model = tiny.model()
    return model, tiny.params(model, 4)


def pairs(count=11, seed=0):
    r = np.random.default_rng(seed)
    ids = lambda least, most: r.integers(0, tiny.VOCAB, r.integers(least, most)).tolist()
    return [(ids(1, 50), ids(1, 12)) for _ in range(count)]


def test_log_likelihoods_equal_plain_passes(small):
    model, params = small

    @jax.jit
    def logits(tokens_BT, segment_BT):
        place = jnp.arange(64)[None]
        hidden = model.apply(params, tokens_BT, segment_BT, place)
        return head_logits(hidden.last_BTD[0], model.unembed(params))

    given = pairs()
    greedy = [0] * 64  # a continuation that greedy decoding writes
    greedy[0] = 7
    for i in range(1, 6):
        ones = (np.arange(64) < i).astype(np.int32)[None]
        greedy[i] = int(jnp.argmax(logits(np.array([greedy], np.int32), ones)[i - 1]))
    given.append((greedy[:1], greedy[1:6]))
    step = make_score_step(model, block_tokens=16)
    found = log_likelihoods(step, params, given, batch_size=4, max_length=64)
    for (context, continuation), (value, is_greedy) in zip(given, found, strict=True):
        ids = np.zeros((1, 64), np.int32)
        ids[0, : len(context) + len(continuation)] = context + continuation
        every = np.asarray(logits(ids, np.ones_like(ids)), np.float64)  # causal: the rest is unseen
        every -= np.log(np.exp(every).sum(-1, keepdims=True))
        rows = every[len(context) - 1 : len(context) + len(continuation) - 1]
        expected = rows[np.arange(len(continuation)), continuation].sum()
        assert value == pytest.approx(expected, abs=1e-3, rel=1e-5)
        assert is_greedy == (rows.argmax(-1).tolist() == list(continuation))
    assert found[-1][1]


def test_scores_depend_on_neither_batch_size_nor_order_nor_neighbors(small):
    model, params = small
    step = make_score_step(model, block_tokens=16)
    given = pairs()
    run = lambda some, size: log_likelihoods(step, params, some, batch_size=size, max_length=64)
    values = lambda results: [value for value, _ in results]
    together = values(run(given, 8))
    assert values(run(given, 3)) == pytest.approx(together, rel=1e-5)
    assert values(run(given[::-1], 8))[::-1] == pytest.approx(together, rel=1e-5)
    assert values(run(given[2:3], 8)) == pytest.approx(together[2:3], rel=1e-5)


def test_a_long_context_is_cut_from_the_left(small):
    model, params = small
    step = make_score_step(model, block_tokens=16)
    context, continuation = list(range(1, 60)), [3, 1, 4]
    run = lambda c: log_likelihoods(step, params, [(c, continuation)], batch_size=1, max_length=32)
    kept = 32 + 1 - len(continuation)
    assert run(context)[0][0] == pytest.approx(run(context[-kept:])[0][0], rel=1e-6)
    assert run(context)[0][0] != pytest.approx(run(context[-kept + 5 :])[0][0], rel=1e-3)


def test_few_programs_are_compiled(small):
    model, params = small
    step = make_score_step(model, block_tokens=16)
    given = [([1] * n, [2]) for n in range(1, 64)]
    log_likelihoods(step, params, given, batch_size=8, max_length=64)
    assert step._cache_size() == 2
    assert [padded(n, 2048) for n in (1, 32, 33, 64, 65, 1025)] == [32, 32, 64, 64, 128, 2048]
    assert padded(1900, 2000) == 2000


@pytest.mark.parametrize("pair", [([], [1]), ([1], [2] * 65)])
def test_a_request_that_cannot_be_scored_is_named(small, pair):
    model, params = small
    step = make_score_step(model)
    with pytest.raises(UserError, match="request 0 has"):
        log_likelihoods(step, params, [pair], batch_size=1, max_length=64)


def test_texts_come_back_in_the_order_of_their_requests(tmp_path):
    path = cli.write_model(tmp_path / "model", seed=3)
    model, params, tokenizer = load(path)
    run = lambda some, size: written(
        model, params, tokenizer, some, stop_ids=(tokenizer.eos_id,), batch_size=size,
        cache_dtype="float32",
    )  # fmt: skip
    ids = lambda text: tokenizer.backend.encode(text).ids
    texts = ["the quick fox", "a", "dog dog dog dog dog", "tree", "lazy old cat runs"]
    wanted = [Request(ids(t), ["zz"], 6 + 2 * (i % 2), 0.0) for i, t in enumerate(texts)]
    together = run(wanted, 4)
    assert together == [run([request], 1)[0] for request in wanted]
    assert len(set(together)) > 1
    letter = together[0][2]
    cut = run([wanted[0]._replace(until=["", letter])], 1)[0]
    assert cut == together[0][: together[0].index(letter)]
    long = Request(ids("the " * 90), [], 6, 0.0)
    assert run([long], 1) == run([long._replace(prompt=long.prompt[-58:])], 1)
    with pytest.raises(UserError, match="wants 64 new tokens"):
        run([long._replace(new_tokens=64)], 1)


def test_options_of_a_generation_task():
    assert request_of([1], {"until": "a", "max_gen_toks": 5}) == Request([1], ["a"], 5, 0.0)
    assert request_of([1], {"temperature": 0.7, "do_sample": True}).temperature == 0.7
    assert request_of([1], {"temperature": 0.7, "do_sample": False}).temperature == 0
    assert request_of([1], {"top_p": 0.9}).new_tokens == lm_eval_model.NEW_TOKENS
    with pytest.raises(UserError, match="samples with top_p"):
        request_of([1], {"temperature": 0.7, "do_sample": True, "top_p": 0.9})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
