"""The benchmark command: contenders agree, and its numbers are what they say."""

import json
from importlib.util import find_spec
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses.divergences import DIVERGENCES
from distill_jax.study.flops import matrix_flops
from experiments.benchmarks import contenders, programs, pytorch, report, run
from experiments.benchmarks.contenders import CONTENDERS, PARTS, PRODUCTS
from experiments.benchmarks.plot import Bar, bars_svg
from experiments.benchmarks.probes import compile_seconds, memory
from experiments.benchmarks.ratios import Spec, by_name, interval, paired, ratios
from experiments.benchmarks.shapes import Shape, llama, make_case
from experiments.benchmarks.timing import Outcome, Program, Sample, measure, warm

TINY = Shape(
    "tiny",
    llama(64, 1, 97, rope_theta=1e6),
    llama(128, 2, 97, heads=4, kv_heads=2, tied=True, rope_theta=1e6),
    2, 24,
)  # fmt: skip
MADE = {"peak": contenders.PEAKS, "matmuls": PRODUCTS, "parts": PARTS}
MADE["loss"] = ("loss", *(f"loss_{name}" for name in DIVERGENCES))


@pytest.fixture(scope="module")
def case():
    return make_case(TINY)


@pytest.fixture(scope="module")
def steps(case):
    """The programs of whole steps, each with the losses of its first two runs."""
    found = {}
    torch = ("torch_eager",) if find_spec("torch") else ()
    for name in ("step", "step_kl", "naive", "cached_hidden", "cached_top64", *torch):
        program = CONTENDERS[name].build(case)[name]
        found[name] = program, [program.run().loss for _ in range(2)]
    return found


@pytest.mark.parametrize("name", ["peak", "matmuls", "loss", "parts"])
def test_contenders_without_a_step_run(name, case, monkeypatch):
    small = {key: ((8, 4, 8), by) for key, (_, by) in contenders.PEAKS.items()}
    monkeypatch.setattr(contenders, "PEAKS", small)
    made = CONTENDERS[name].build(case)
    assert set(made) == set(MADE[name])
    for program in made.values():
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(program.run()))


@pytest.mark.parametrize("name", ["step", "cached_hidden", "torch_eager"])
def test_whole_steps_start_from_the_same_loss_and_learn_alike(name, steps):
    """As the naive step does, PyTorch's with the same weights."""
    if name not in steps:
        pytest.skip("torch is not installed")
    found, expected = steps[name][1], steps["naive"][1]
    assert expected[1] < expected[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(("peer", "like"), [("tunix", "step"), ("trl", "step_kl")])
def test_published_trainers_compute_the_same(peer, like, case):
    """The same loss, the same gradient norm and, after an update, the same loss again."""
    pytest.importorskip(peer)
    own = CONTENDERS[like].build(case)[like]
    expected = [own.run() for _ in range(2)]
    for program in CONTENDERS[peer].build(case).values():
        np.testing.assert_allclose([program.run() for _ in range(2)], expected, rtol=1e-3)


def test_top_entries_bound_the_loss_from_below(steps):
    """A bucket for all other entries merges them, which never raises a KL."""
    top, whole = steps["cached_top64"][1][0], steps["step"][1][0]
    assert 0.5 * whole < top < whole


def test_pytorch_groups_heads_and_ties_the_embedding(case):
    torch = pytest.importorskip("torch")
    weights = pytorch._tensors(torch, case.pair.teacher_params)
    tokens = torch.from_numpy(np.array(case.pair.batch.tokens_BT, np.int64))
    found = pytorch._logits(torch, weights, TINY.teacher, tokens).numpy()
    expected = programs.logits(case.pair.teacher, case.pair.teacher_params, case.pair.batch)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["products_once", "products_turned"])
def test_the_compiler_keeps_all_four_products(name, case):
    """Multiplying the small matrices first, or dropping one, would change the operation count."""
    inputs = case.loss
    x, y = (h.reshape(-1, h.shape[-1]) for h in (inputs.hidden_BTD, inputs.teacher_hidden_BTD))
    args = x, inputs.weight_DV, y, inputs.teacher_weight_DV
    cost = jax.jit(PRODUCTS[name]).lower(*args).compile().cost_analysis()
    tokens, vocab = TINY.rows * TINY.length, TINY.student.vocab
    expected = 2 * tokens * vocab * (3 * TINY.student.width + TINY.teacher.width)
    np.testing.assert_allclose(cost["flops"], expected, rtol=0.01)


def test_operations_in_scans_and_branches_are_counted_in_full():
    square = jnp.ones((4, 4))

    def program(x):
        x, _ = jax.lax.scan(lambda x, _: (x @ square, None), x, None, length=7)
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ square @ square, lambda x: x, x)

    assert matrix_flops(jax.make_jaxpr(program)(square)) == (7 + 2) * 2 * 4**3
    endless = lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ square, x)
    with pytest.raises(ValueError, match="while"):
        matrix_flops(jax.make_jaxpr(endless)(square))


def test_the_steps_operations_are_those_of_the_formula(steps):
    """Three products a weight matrix for the student, one for the teacher; attention on top."""
    tokens = TINY.rows * TINY.length
    of = lambda c: c.blocks * c.width * (
        2 * c.head_width * (c.heads + c.kv_heads) + 3 * c.neurons
    ) + c.width * c.vocab  # fmt: skip
    matrices = 2 * tokens * (3 * of(TINY.student) + of(TINY.teacher))
    counted = steps["step"][0].flops
    assert matrices < counted < 1.3 * matrices


def samples_of(walls):
    """Samples from {name: wall seconds of each round}; CPU seconds are twice those."""
    return [
        Sample(name, i, wall, 2 * wall)
        for name, all_ in walls.items()
        for i, wall in enumerate(all_)
    ]


def test_a_ratio_is_the_median_over_rounds_and_not_a_ratio_of_medians():
    """The machine slows down threefold in the last round; both slow down, and the ratio stays."""
    seconds = by_name(samples_of({"a": [1, 2, 9], "b": [2, 4, 9], "c": [2, 4, 9]}))
    ratio = paired(Spec("", ("a",), ("b", "c"), 0.3), "x", seconds)
    assert (ratio.median, ratio.cpu, ratio.verdict) == (0.25, 0.25, "met")
    assert (ratio.low, ratio.high) == (0.25, 0.5)
    assert paired(Spec("", ("a",), ("absent",), 1.0), "x", seconds) is None
    worse = paired(Spec("", ("a",), ("b",), 0.6, at_least=True), "x", seconds)
    assert worse.verdict == "missed"


def test_the_interval_covers_the_true_median():
    r = np.random.default_rng(0)
    bounds = [interval(r.normal(1.0, 0.1, 25), seed) for seed in range(100)]
    assert sum(low <= 1.0 <= high for low, high in bounds) >= 88
    assert max(high - low for low, high in bounds) < 0.2


def test_ratios_take_the_faster_products_and_the_best_peak():
    walls = {name: [0.2, 0.2, 0.2] for name in (*PRODUCTS, *PARTS, *contenders.PEAKS)}
    walls |= {"products_blocked": [0.1, 0.1, 0.1], "peak_xla": [0.1, 0.1, 0.1]}
    walls |= {"loss": [0.12, 0.12, 0.12], "step": [0.4, 0.4, 0.4]}
    flops = dict.fromkeys(contenders.PEAKS, 100) | {"step": 200}
    shape = TINY._replace(student=llama(256, 1, 97))
    found = {ratio.what: ratio for ratio in ratios(shape, samples_of(walls), flops)}
    assert len(found) == 3
    loss = found["loss ÷ its matrix products, width 256: forward_kl with CE"]
    assert (loss.median, loss.limit, loss.verdict) == (pytest.approx(1.2), 1.25, "met")
    assert found["step ÷ sum of its parts"].median == pytest.approx(0.5)
    share = found["share of the matrix-product peak in the step"]
    assert (share.median, share.verdict) == (pytest.approx(0.5), "missed")


def test_rounds_are_shuffled_alike_for_a_seed_and_end_with_the_budget():
    now, ran = [0.0], []

    def program(name, seconds):
        def work():
            now[0] += seconds
            ran.append(name)

        return Program(work)

    def order(seed, budget):
        ran.clear()
        programs = {"a": program("a", 1.0), "b": program("b", 2.0), "c": program("c", 3.0)}
        clock = lambda: now[0]
        found = measure(programs, rounds=9, seconds=budget, seed=seed, clock=clock, cpu_clock=clock)
        assert {(s.name, s.wall_s, s.cpu_s) for s in found} == {
            ("a", 1.0, 1.0), ("b", 2.0, 2.0), ("c", 3.0, 3.0)
        }  # fmt: skip
        assert [s.name for s in found] == ran
        return [tuple(ran[i : i + 3]) for i in range(0, len(ran), 3)]

    long = order(0, 1e9)
    assert len(long) == 9
    assert len(set(long)) > 2
    assert all(sorted(turn) == ["a", "b", "c"] for turn in long)
    assert order(0, 1e9) == long != order(1, 1e9)
    assert len(order(0, 25)) == 4
    assert len(order(0, 1)) == 2


def test_a_run_writes_lines_table_and_plots(tmp_path, case, steps, monkeypatch):
    monkeypatch.setattr(run, "make_case", lambda shape, seed: case)
    for name, (program, _) in steps.items():
        built = contenders.Contender("step", lambda _, n=name, p=program: {n: p})
        monkeypatch.setitem(CONTENDERS, name, built)
    names = ["matmuls", "cached_hidden", "step", "naive"]
    options = {"rounds": 2, "seconds": 10, "seed": 0, "memory": False}
    report.write(tmp_path, "tiny", run.run_shape(TINY, names, **options))
    lines = [json.loads(line) for line in (tmp_path / "tiny.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "sample" for line in lines) == 2 * (len(PRODUCTS) + 3)
    table = (tmp_path / "results.md").read_text()
    assert "| step, cached hidden ÷ live | tiny |" in table
    assert "| temporaries of the step ÷ naive | tiny |" in table
    assert {path.name for path in tmp_path.glob("*.svg")} == {"tiny_ratios.svg", "tiny_seconds.svg"}


def test_the_table_shows_measure_interval_limit_and_verdict():
    seconds = by_name(samples_of({"a": [1, 1], "b": [2, 2]}))
    ratio = paired(Spec("a ÷ b", ("a",), ("b",), 0.4), "tiny", seconds)
    skipped = {"torch_eager": "torch is not installed"}
    outcomes = warm({"step": Program(lambda: Outcome(1.5, 0.25)), "other": Program(lambda: 1.0)})
    lines = report.records(TINY, {}, [], [ratio], {"step": 5_000_000}, skipped, outcomes)
    table = report.table({"tiny": lines})
    assert "| a ÷ b | tiny | 0.500 | 0.500 to 0.500 | 0.500 | ≤ 0.4 | missed |" in table
    assert "| tiny | step | 5 |" in table
    assert "| tiny | step | 1.5 | 0.25 |" in table
    assert "other" not in table
    assert "Skipped on tiny: torch_eager: torch is not installed" in table


def test_bars_are_as_long_as_their_values():
    svg = bars_svg("a < b", "s", [Bar("x", 1.0, 0.9, 1.1, 1.2, "met"), Bar("y", 0.5)])
    rectangles = ElementTree.fromstring(svg).findall("{http://www.w3.org/2000/svg}rect")
    _, one, half = (float(rectangle.get("width")) for rectangle in rectangles)
    assert one == pytest.approx(2 * half, rel=0.01)
    assert "a &lt; b" in svg


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--shape", "smal"], "'smal'"),
        (["--contenders", "step", "torch"], "'torch'"),
        (["--rounds", "1"], "--rounds is 1"),
        (["--seconds", "0"], "--seconds is 0"),
    ],
)
def test_a_mistake_gives_one_line(flags, named, capsys):
    assert run.main(flags) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert named in printed.err


def test_contenders_that_cannot_run_are_skipped_with_a_reason(case, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr("shutil.which", lambda name: None)
    built, skipped = run.build(case, ["torch_compile"])
    assert built == {}
    assert "C++ compiler" in skipped["torch_compile"]


def test_probes_read_compiled_programs():
    (ratio,) = memory(TINY)
    assert 1.0 <= ratio.median < 20
    assert compile_seconds(1) > 0
