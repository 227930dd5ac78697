"""An update far above what is usual is refused, finite or not; ordinary ones never are.

The spikes are real: the tokens and labels of some steps are drawn at random, as damaged text would
be.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.losses.terms import CROSS_ENTROPY, Term, make_plan
from distill_jax.setup import data
from distill_jax.spikes import ENOUGH, WINDOW, followed, is_spike, no_updates
from distill_jax.step import init_state, make_train_step
from distill_jax.types import Mean
from tests import cli, tiny
from tests.test_rollback import weights
from tests.test_step import KEY, difference, loss_of
from tests.test_workdir_damage import numbers

BOTH = (Term("forward_kl", 1.0), Term(CROSS_ENTROPY, 0.0))
FACTOR = 6.0


def means(kl, nll):
    mean = lambda value: Mean(jnp.float32(10 * value), jnp.float32(10))
    return {"nll": mean(nll), "forward_kl": mean(kl)}


def window(terms, updates):
    """What is usual after updates, each of (gradient norm, KL, NLL)."""
    recent = no_updates(terms)
    for norm, *values in updates:
        recent = followed(recent, jnp.float32(norm), means(*values))
    return recent


ORDINARY = [(1 + 0.1 * (i % 5), 0.4 + 0.1 * (i % 4), 3.0) for i in range(90)]

# By case: the updates before, the one that is judged, the weight of the labels, and whether it is
# a spike.
RULE = {
    "as the others": (ORDINARY, (1.2, 0.5, 3.0), 0, False),
    "far above": (ORDINARY, (30, 3.0, 9.0), 0, True),
    "a large gradient alone": (ORDINARY, (100, 1.2, 3.0), 0, False),
    "a large loss alone": (ORDINARY, (5, 3.0, 9.0), 0, False),
    "a term without weight": (ORDINARY, (30, 0.7, 30.0), 0, False),
    "a term that sets in": (ORDINARY, (30, 0.7, 3.0), 100, False),
    "a term that sets in, and a spike": (ORDINARY, (30, 0.7, 9.0), 100, True),
    "before anything is usual": (ORDINARY[: ENOUGH - 1], (30, 3.0, 9.0), 0, False),
    "as soon as it is": (ORDINARY[:ENOUGH], (30, 3.0, 9.0), 0, True),
    "twice the largest, no more": ([*ORDINARY, (1, 1.5, 3)], (30, 2.9, 3.0), 0, False),
    "what was largest long ago": ([(1, 1.5, 3), *ORDINARY], (30, 2.9, 3.0), 0, True),
    "less than 0.1 nats": ([(1e-6, 1e-6, 3.0)] * 20, (1.0, 0.05, 3.0), 0, False),
    "up from nothing": ([(0.0, 0.0, 3.0)] * 20, (1.0, 0.5, 3.0), 0, True),
}


@pytest.mark.parametrize("case", RULE)
def test_the_rule(case):
    updates, (norm, *values), weight, expected = RULE[case]
    terms = (BOTH[0], Term(CROSS_ENTROPY, weight))
    recent = window(terms, updates)
    judged = lambda factor: is_spike(recent, jnp.float32(norm), means(*values), terms, factor)
    assert bool(judged(FACTOR)) == expected
    assert not bool(judged(0.0))


def test_a_window_holds_the_last_updates():
    recent = window(BOTH, [(i, 2 * i, 3 * i) for i in range(WINDOW + 5)])
    assert sorted(recent.norm_W.tolist()) == list(range(5, WINDOW + 5))
    assert sorted(recent.means_W["nll"].tolist()) == [3 * i for i in range(5, WINDOW + 5)]
    nothing = {name: Mean(mean.total * 0, mean.count * 0) for name, mean in means(1, 1).items()}
    after = followed(recent, jnp.float32(0), nothing)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), after, recent))


def noise(batch, seed):
    """The same with tokens and labels drawn at random."""
    draw = lambda x, more: np.random.default_rng(seed + more).integers(0, 40, x.shape, np.int32)
    return batch._replace(tokens_BT=draw(batch.tokens_BT, 0), labels_BT=draw(batch.labels_BT, 9))


def learnable(seed):
    """A batch in which a token tells its successor."""
    batch = tiny.batch(seed % 8, rows=8)
    return batch._replace(labels_BT=((batch.tokens_BT * 3 + 1) % 61).astype(np.int32))


def trained(batches, *, names=(CROSS_ENTROPY,), microbatches=1, schedules=None):
    model = tiny.model()
    plan = make_plan(tuple(Term(name, 1.0) for name in names), 90, schedules)
    pair = model, tiny.model(width=24, blocks=3)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-2))
    step = make_train_step(
        loss_of(pair), optimizer, plan, microbatches=microbatches, spike_factor=FACTOR
    )
    state, spikes = init_state(tiny.params(model, 1), optimizer, plan), []
    teacher = tiny.params(pair[1], 2)
    for batch in batches:
        state, metrics = step(state, (teacher,), batch, KEY)
        spikes.append(int(metrics["spikes"]))
    assert int(state.skipped) == 0
    return state, spikes


@pytest.mark.parametrize("microbatches", [1, 4])
def test_a_planted_spike_leaves_no_trace(microbatches):
    """Parameters and moments are those of a run that never met the batch, bit by bit."""
    before, after = [learnable(i) for i in range(80)], [learnable(i) for i in range(5)]
    without, none = trained([*before, *after], microbatches=microbatches)
    met, spikes = trained([*before, noise(before[0], 1), *after], microbatches=microbatches)
    assert none == [0] * 85
    assert spikes == [0] * 80 + [1] * 6
    for field in ("params", "opt_state", "recent"):
        assert difference(getattr(met, field), getattr(without, field)) == 0.0
    assert (int(met.step), int(met.skipped_in_a_row)) == (86, 0)


@pytest.mark.parametrize(
    ("names", "schedules"),
    [
        (("taid",), {}),
        (("forward_kl", CROSS_ENTROPY), {CROSS_ENTROPY: "steps:0=0,40=1,60=1e4,70=1e-3"}),
    ],
)
def test_ordinary_training_has_no_spikes(names, schedules):
    """From a random student on, also where weights jump and the target moves."""
    batches = [tiny.batch(i) for i in range(80)]
    _, spikes = trained(batches, names=names, schedules=schedules)
    assert spikes[-1] == 0


@pytest.fixture(scope="module")
def start(flags, tmp_path_factory):
    """A student that the text has taught, so that noise is far above what is usual."""
    workdir = tmp_path_factory.mktemp("start") / "run"
    more = ("--config.steps=28", "--config.eval.every=0", "--config.checkpoint.every=0")
    result = cli.run(f"--workdir={workdir}", *flags, *LABELS, *more)
    assert result.returncode == 0, result.stderr
    return workdir / "student"


LABELS = (
    "--config.terms.forward_kl.weight=0", "--config.terms.cross_entropy.weight=1",
    "--config.optim.learning_rate=0.02", "--config.generate.max_new_tokens=4",
)  # fmt: skip


def run(workdir, flags, start, *more, planted):
    """A run in which the batches of some steps are noise."""
    real = data.training_batches

    def batches(c, rows, mesh, first):
        for step, (host, batch) in enumerate(real(c, rows, mesh, first), first + 1):
            bad = step in planted
            yield noise(host, step) if bad else host, noise(batch, step) if bad else batch

    settings = (
        f"--config.student.path={start}", "--config.steps=28", "--config.eval.every=0",
        "--config.optim.schedule=constant", "--config.optim.max_skipped=2",
        "--config.checkpoint.every=4",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "training_batches", batches)
        return cli.run(f"--workdir={workdir}", *flags, *LABELS, *settings, *more)


@pytest.fixture(scope="module")
def whole(flags, start, tmp_path_factory):
    """A run that met two spikes in a row."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    result = run(workdir, flags, start, planted={20, 21})
    assert result.returncode == 0, result.stderr
    return workdir, result


def test_spikes_in_a_row_are_skipped_once_and_the_run_goes_on(whole):
    workdir, result = whole
    assert "2 updates in a row were refused, the last one because it is a spike (loss" in (
        result.stderr
    )
    assert "back to the checkpoint of step 16, and on from step 22 (batches of steps 17 to 21" in (
        result.stderr
    )
    assert "2 of 28 updates were refused: 0 were not finite, 2 were spikes\n" in result.stdout
    lines = [line for line in cli.metrics(workdir) if "train/spikes" in line]
    assert [line["step"] for line in lines if line["train/skipped_in_a_row"]] == [20, 21]
    assert lines[-1]["train/loss"] < 3.0


@pytest.mark.parametrize("stopped", [20, 24])
def test_a_run_that_was_stopped_knows_what_is_usual(stopped, whole, flags, start, tmp_path):
    """Between the spikes, and after the run went back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill_jax.loop.shared", lambda flag, step: step == stopped)
        assert run(tmp_path, flags, start, planted={20, 21}).returncode == 75
    again = run(tmp_path, flags, start, planted={20, 21})
    assert again.returncode == 0, again.stderr
    assert numbers(tmp_path) == numbers(whole[0])
    assert weights(tmp_path) == weights(whole[0])


def test_a_single_spike_ends_no_run_and_harms_none(flags, start, tmp_path):
    result = run(tmp_path / "met", flags, start, planted={20})
    assert result.returncode == 0, result.stderr
    assert "back to the checkpoint" not in result.stderr
    assert run(tmp_path / "without", flags, start, planted=()).returncode == 0
    last = lambda name: cli.metrics(tmp_path / name)[-1]["eval/nll"]
    assert math.isclose(last("met"), last("without"), rel_tol=0.05)


def test_spikes_that_stay_end_the_run(flags, start, tmp_path):
    result = run(tmp_path, flags, start, planted=range(20, 29))
    assert result.returncode == 76, result.stderr
    assert result.stderr.count("back to the checkpoint") == 1
    assert (
        "2 updates in a row, up to step 23 of 28, were refused, the last one because it is a"
        in (result.stderr)
    )


def test_a_replay_knows_what_is_usual(whole, flags, start):
    """The window is part of what is compared, and of what the steps go on from."""
    replay = ("--config.job=replay",)
    again = run(whole[0], flags, start, *replay, planted={20, 21})
    assert again.returncode == 0, again.stderr
    assert "nothing differs" in again.stdout
