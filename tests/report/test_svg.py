"""Charts: coordinates mean what the axes say, texts are escaped, colors can be told apart."""

import copy
import math
import re
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from distill_jax.report import (
    arm_styles,
    charts,
    learning_curves,
    page,
    svg,
    svg_curves,
    svg_intervals,
    svg_models,
)
from distill_jax.report.svg import Scale, Text
from distill_jax.report.svg_curves import Arm, Seed
from distill_jax.report.svg_intervals import Interval
from tests.report import sample_report

NAME = "{http://www.w3.org/2000/svg}"
STUDY, HOSTILE = sample_report.study(), sample_report.hostile()
REAL = st.floats(-1e6, 1e6, allow_nan=False)


def parsed(drawing):
    return ET.fromstring(str(drawing))


def number(text):
    """A tick's value."""
    power = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}.get(text[-1], 1.0)
    share = 0.01 if text.endswith("%") else 1.0
    return float(text.replace("\N{MINUS SIGN}", "-").rstrip("kMGTPE%")) * power * share


def axis(root, along):
    """From a coordinate to a value, by a line through the ticks of one axis."""
    ticks = [t for t in root.iter(f"{NAME}text") if t.get("class") == "tick"]
    anchor = {"x": "middle", "y": "end"}[along]
    pairs = [
        (float(t.get(along)) - (4 if along == "y" else 0), number(t.text))
        for t in ticks
        if t.get("text-anchor") == anchor
        and re.fullmatch(r"[\N{MINUS SIGN}\d.]+[kMGTPE%]?", t.text)
    ]
    assert len(pairs) >= 2
    slope, start = np.polyfit(*np.array(pairs).T, 1)
    return lambda at: slope * at + start


def arm(name, *seeds, compared=True):
    """An arm of one or more seeds."""
    runs = [Seed(str(i), points) for i, points in enumerate(seeds)]
    return Arm(Text(name), f"s-{name}", runs, compared)


def places(line):
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


@given(REAL, REAL, st.integers(2, 9))
def test_ticks_are_round_and_inside(a, b, count):
    low, high = sorted((a, b))
    assume(high - low > 1e-6 * max(1.0, abs(low), abs(high)))
    values = svg.ticks(low, high, count)
    room = (high - low) * 1e-6
    assert all(low - room <= v <= high + room for v in values)
    assert len(values) <= 2 * count
    steps = np.diff(values)
    if len(steps):
        np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
        lead = steps[0] / 10.0 ** math.floor(math.log10(steps[0]) + 1e-9)
        assert min(abs(lead - m) for m in (1, 2, 2.5, 5, 10)) < 1e-3


@given(st.lists(st.floats(-1e15, 1e15), min_size=1, max_size=6))
def test_texts_of_ticks_are_their_values(values):
    values = [float(f"{v:.3g}") for v in values]
    assume(max(map(abs, values)) == 0 or min((abs(v) for v in values if v), default=1) > 1e-4)
    texts = svg.tick_text(values)
    largest = max(map(abs, values))
    for text, value in zip(texts, values, strict=True):
        assert abs(number(text) - value) <= 1e-6 * max(largest, 1)


def test_points_of_one_seed_lie_where_the_axes_say():
    points = [(0, 3.7), (100, 3.52), (200, 3.41), (400, 3.39)]
    root = parsed(svg_curves.lines([arm("kd", points)], "updates", "NLL", "told"))
    x, y = axis(root, "x"), axis(root, "y")
    (drawn,) = root.findall(f".//{NAME}polyline")
    there = [(x(a), y(b)) for a, b in places(drawn)]
    np.testing.assert_allclose(there, points, atol=2e-2, rtol=2e-3)
    assert (root.get("aria-label"), root.get("role")) == ("told", "img")
    hovered = [c.find(f"{NAME}title").text for c in root.iter(f"{NAME}circle")]
    assert hovered[1] == "kd, seed 0, 100: 3.52"


@pytest.mark.parametrize("key", ["step", "flops"])
@pytest.mark.parametrize("measure", ["nll", "forward_kl"])
def test_an_arm_is_its_mean_with_a_band_that_holds_every_seed(key, measure):
    root = parsed(learning_curves.chart(STUDY, key, measure))
    x, y = axis(root, "x"), axis(root, "y")
    drawn = [(e.get("class").split(), e) for e in root.iter(f"{NAME}polyline")]
    look = arm_styles.arm_styles(STUDY)
    for name in sample_report.ARMS:
        of = lambda kind, name=name: [
            [(x(a), y(b)) for a, b in places(e)]
            for classes, e in drawn
            if kind == " ".join(c for c in classes if c not in look[name].split())
            and set(look[name].split()) <= set(classes)
        ]
        seeds = [
            [(p[key], p[measure]) for p in c["points"]] for c in STUDY["curves"] if c["arm"] == name
        ]
        close = {"rtol": 6e-3, "atol": seeds[0][-1][0] * 2e-3}
        np.testing.assert_allclose(of("line faint"), seeds, **close)
        np.testing.assert_allclose(of("line"), [np.mean(seeds, 0)], **close)
        (band,) = of("band")
        low, high = np.array(band[: len(band) // 2]), np.array(band[len(band) // 2 :][::-1])
        np.testing.assert_allclose(low[:, 1], np.min(seeds, 0)[:, 1], rtol=6e-3)
        np.testing.assert_allclose(high[:, 1], np.max(seeds, 0)[:, 1], rtol=6e-3)


def test_one_seed_and_seeds_without_a_common_step_have_no_band():
    one = str(svg_curves.lines([arm("kd", [(0, 2.0), (1, 1.0)])], "updates", "NLL", ""))
    apart = arm("kd", [(0, 2.0), (2, 1.0)], [(1, 2.0), (3, 1.0)])
    for drawing in (one, str(svg_curves.lines([apart], "updates", "NLL", ""))):
        assert "band" not in drawing
        assert "faint" not in drawing


def test_absent_points_are_not_drawn_and_one_point_is_no_line():
    nan, inf = math.nan, math.inf
    points = [(0, 1.0), (1, None), (2, nan), (3, inf), (None, 2.0), (4, 0.5)]
    root = parsed(svg_curves.lines([arm("kd", points)], "updates", "NLL", ""))
    assert len(places(root.find(f".//{NAME}polyline"))) == 2
    assert svg_curves.lines([arm("kd", points[:4])], "updates", "NLL", "") is None
    assert svg_curves.lines([], "updates", "NLL", "") is None
    constant = arm("kd", [(5, 1.0), (5, 1.0)])
    assert parsed(svg_curves.lines([constant], "updates", "NLL", "")) is not None


def edges(root):
    """Texts about arms beyond the scale."""
    return [e.text for e in root.iter(f"{NAME}text") if e.get("class") == "tick edge"]


def test_a_far_arm_is_named_at_the_edge_and_flattens_nothing():
    near = [arm(name, [(0, 4.0), (1, 3.0)]) for name in ("kd", "sft")]
    far = arm("far", [(0, 3.9), (1, 10.52)], compared=False)
    dip = arm("dip", [(0, 3.9), (1, -7.0), (2, 3.5)], compared=False)
    root = parsed(svg_curves.lines([*near, far, dip], "updates", "NLL", ""))
    assert edges(root) == ["far 10.52 \N{UPWARDS ARROW}",
                           "dip down to \N{MINUS SIGN}7 \N{DOWNWARDS ARROW}"]  # fmt: skip
    alone = parsed(svg_curves.lines(near, "updates", "NLL", ""))
    assert edges(alone) == []
    ticks = lambda root: [number(t.text) for t in root.iter(f"{NAME}text")
                          if t.get("text-anchor") == "end"]  # fmt: skip
    assert ticks(root) == ticks(alone)
    x, y = axis(root, "x"), axis(root, "y")
    arrow = next(e for e in root.iter(f"{NAME}polyline") if e.get("class") == "dot s-far")
    across, up = places(arrow)[1]  # its tip, where the line leaves
    assert y(up) == pytest.approx(3.9 + x(across) * (10.52 - 3.9), abs=0.05)


def outside(root):
    """(class, whether above) of every line of which a point lies outside of the plotted area."""
    area = root.find(f"{NAME}svg")
    left, top, wide, high = map(float, area.get("viewBox").split())
    found = set()
    for e in area.iter(f"{NAME}polyline"):
        for across, up in places(e):
            assert left - 0.01 <= across <= left + wide + 0.01
            if not top - 0.01 <= up <= top + high + 0.01:
                found.add((e.get("class").split()[-1], up < top))
    return found


VALUES = st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=4)


@given(st.lists(st.tuples(st.lists(VALUES, min_size=1, max_size=3), st.booleans()), max_size=5))
def test_every_point_lies_inside_or_its_arm_is_named_at_that_edge(drawn):
    arms = [
        arm(f"arm{i}", *(list(enumerate(values)) for values in seeds), compared=compared)
        for i, (seeds, compared) in enumerate(drawn)
    ]
    assume(arms)
    root = parsed(svg_curves.lines(arms, "updates", "NLL", ""))
    named = {(f"s-{text.split()[0]}", text[-1] == "\N{UPWARDS ARROW}") for text in edges(root)}
    assert outside(root) == named
    if any(one.compared for one in arms):
        assert not {f"s-{one.name.text}" for one in arms if one.compared} & {n for n, _ in named}


def test_a_steep_start_of_a_run_is_drawn_whole():
    told = copy.deepcopy(sample_report.run())
    for point, value in zip(
        told["curves"][0]["points"], (11.0, 4.0, 3.0, *[2.9] * 99), strict=False
    ):
        point["forward_kl"] = value
    root = parsed(learning_curves.chart(told, "step", "forward_kl"))
    assert outside(root) == set()
    assert edges(root) == []
    top = float(root.find(f"{NAME}svg").get("y"))
    assert axis(root, "y")(top) >= 11.0


@pytest.mark.parametrize("measure", ["nll", "forward_kl"])
def test_the_table_of_the_curves_has_every_value(measure):
    found = learning_curves.table(STUDY, measure)
    shown = {place for row in found.rows for place in row.by_seed.values()}
    assert shown == {(i, j) for i, c in enumerate(STUDY["curves"]) for j in range(len(c["points"]))}
    row = found.rows[1]
    values = [STUDY["curves"][i]["points"][j][measure] for i, j in row.by_seed.values()]
    assert float(row.mean) == pytest.approx(np.mean(values), rel=1e-3)
    assert not found.thinned


def test_the_table_of_a_long_run_is_thinned_and_says_so():
    told = sample_report.run()
    one = told["curves"][0]["points"][0]
    told["curves"][0]["points"] = [one | {"step": i, "loss": 1.0 + i} for i in range(5000)]
    found = learning_curves.table(told, "loss")
    assert found.thinned
    assert len(found.rows) <= learning_curves.MOST_ROWS + 1
    assert found.rows[-1].point == (0, 4999)
    assert learning_curves.table(told | {"curves": []}, "loss") is None


@given(st.lists(st.floats(20, 200), max_size=8))
def test_names_of_points_do_not_overlap(heights):
    moved = svg_models.spread(sorted(heights), 15, 200)
    assert all(b - a >= 15 - 1e-9 for a, b in pairwise(moved))
    assert all(m <= 200 + 1e-9 for m in moved)


def test_an_interval_lies_between_its_ends():
    row = Interval(Text("a"), 0.1, -0.2, 0.3, "flat")
    x = Scale(-1, 1, 0, 200)
    root = ET.fromstring(f"<g>{svg_intervals.strip(row, x, 10)}</g>")
    bar, dot = root.find("line"), root.find("rect")
    assert (float(bar.get("x1")), float(bar.get("x2"))) == pytest.approx((80, 130))
    assert float(dot.get("x")) + 4 == pytest.approx(110)
    assert svg_intervals.strip(row._replace(effect=None, low=None, high=None), x, 10) == ""


def test_a_forest_has_a_line_a_slice_and_the_margin():
    root = parsed(charts.forest(STUDY, "equal_steps"))
    rows = [r for r in STUDY["slices"]["rows"] if r["comparison"] == "equal_steps"]
    bars = [e for e in root.iter(f"{NAME}line") if e.get("class").startswith("bar")]
    assert len(bars) == sum(r["low"] is not None for r in rows)
    assert [e.get("class") for e in bars].count("bar bad") == sum(r["harmed"] for r in rows)
    x = axis(root, "x")
    margin = next(e for e in root.iter(f"{NAME}line") if e.get("class") == "margin")
    assert x(float(margin.get("x1"))) == pytest.approx(STUDY["slices"]["margin"], abs=1e-3)
    shown = [r for r in rows if r["low"] is not None]
    for bar, row in zip(bars, shown, strict=True):
        assert x(float(bar.get("x1"))) == pytest.approx(row["low"], abs=1e-3)
        assert x(float(bar.get("x2"))) == pytest.approx(row["high"], abs=1e-3)


def test_bins_without_tokens_have_no_dot():
    root = parsed(charts.reliability(STUDY))
    x, y = axis(root, "x"), axis(root, "y")
    dots = list(root.iter(f"{NAME}circle"))
    bins = [b for m in STUDY["calibration"]["models"] for b in m["bins"] if b["count"]]
    assert len(dots) == len(bins)
    for dot, one in zip(dots, bins, strict=True):
        assert x(float(dot.get("cx"))) == pytest.approx(one["confidence"], abs=2e-3)
        assert y(float(dot.get("cy"))) == pytest.approx(one["accuracy"], abs=2e-3)


def test_an_arm_of_which_no_run_finished_is_left_out_of_the_retention():
    lost = copy.deepcopy(STUDY)
    name = lost["arms"][0]["arm"]
    lost["arms"][0]["nll"], lost["metrics"][name] = None, {}
    assert f"{name}, " in charts.retention(STUDY).split("aria-label")[1][:200]
    assert f"{name}, " not in charts.retention(lost).split("aria-label")[1][:200]
    lost["arms"] = lost["arms"][:1]
    assert charts.retention(lost) is None


def test_retention_is_of_the_accuracy_and_without_it_the_loss():
    root = parsed(charts.retention(STUDY))
    assert "accuracy" in root.get("aria-label")
    x, y = axis(root, "x"), axis(root, "y")
    got = sorted((x(float(c.get("cx"))), y(float(c.get("cy")))) for c in root.iter(f"{NAME}circle"))
    right = {a: m["accuracy_top1"]["mean"] for a, m in STUDY["metrics"].items()}
    want = sorted(
        [(a["parameters"], right[a["arm"]] / right["teacher"]) for a in STUDY["arms"]]
        + [(STUDY["teacher"]["parameters"], 1.0)]
    )
    np.testing.assert_allclose(got, want, rtol=5e-3)
    told = copy.deepcopy(STUDY)
    del told["metrics"]["sft"]["accuracy_top1"]
    assert "NLL" in parsed(charts.retention(told)).get("aria-label")
    assert charts.retention(STUDY | {"arms": []}) is None


def test_shares_of_a_stack_are_widths():
    root = parsed(charts.classes(STUDY))
    track, *bars = [r for r in root.iter(f"{NAME}rect") if r.get("height") == "28"]
    wide = [float(b.get("width")) + 1 for b in bars]
    shares = [c["share_of_kl"] for c in STUDY["diagnose"]["classes"]]
    np.testing.assert_allclose(np.array(wide) / float(track.get("width")), shares, atol=1e-3)


def test_a_stack_marks_a_limit_and_a_part_keeps_its_color_where_others_are_absent():
    parts = [(Text(name), share) for name, share in (("a", 0.25), ("b", 0.0), ("c", 0.5))]
    root = parsed(svg_models.stack(parts, "shares", limit=0.6))
    track, first, last = [r for r in root.iter(f"{NAME}rect") if r.get("height") == "28"]
    assert (first.get("class"), last.get("class")) == ("b0", "b2")
    (line,) = [x for x in root.iter(f"{NAME}line") if x.get("class") == "limit"]
    place = (float(line.get("x1")) - float(track.get("x"))) / float(track.get("width"))
    assert place == pytest.approx(0.6, abs=1e-3)


def test_columns_stand_on_zero():
    root = parsed(charts.positions(STUDY))
    y = axis(root, "y")
    bars = [r for r in root.iter(f"{NAME}rect") if r.get("class") == "b0"]
    for bar, one in zip(bars, STUDY["diagnose"]["positions"], strict=True):
        assert y(float(bar.get("y"))) == pytest.approx(one["mean_kl"], abs=5e-3)
        assert y(float(bar.get("y")) + float(bar.get("height"))) == pytest.approx(0, abs=5e-3)


@pytest.mark.parametrize("report", [STUDY, HOSTILE], ids=["study", "hostile"])
def test_files_are_whole_and_hold_nothing_foreign(report):
    files = charts.svg_files(report)
    assert set(files) == {"curves.svg", "curves_flops.svg", "forest.svg", "forest_flops.svg",
                          "reliability.svg", "retention.svg"}  # fmt: skip
    for text in files.values():
        root = ET.fromstring(text)
        tags = {e.tag.removeprefix(NAME) for e in root.iter()}
        assert tags <= {"svg", "style", "rect", "line", "polyline", "circle", "text", "title"}
        assert not [a for e in root.iter() for a in e.attrib if a.startswith("on") or "href" in a]
        assert "prefers-color-scheme: dark" in text


def test_files_of_a_report_without_numbers_are_none():
    empty = STUDY | {"arms": [], "curves": [], "slices": None, "calibration": None}
    assert charts.svg_files(empty) == {}


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])))
def test_names_are_escaped(text):
    assume("\ufffe" not in text and "\uffff" not in text)
    root = ET.fromstring(svg.tag("text", text, data_path=text))
    assert (root.text or "", root.get("data-path")) == (text, text)


def test_arms_keep_their_style_and_own_arms_get_others():
    found = arm_styles.styles(["kd", "mine", "yours", "mine"])
    assert found["kd"] == arm_styles.styles([])["kd"]
    assert len({found[name] for name in (*arm_styles.KNOWN, "teacher", "mine", "yours")}) == 8
    assert arm_styles.styles(["mine", "yours"]) == found


def many_arms(count):
    """The study with kd, sft and further arms."""
    told = copy.deepcopy(STUDY)
    names = ["kd", "sft", *(f"ablation {i}" for i in range(count - 2))]
    told["arms"] = [told["arms"][0] | {"arm": name} for name in names]
    told["curves"] = [told["curves"][0] | {"arm": name} for name in names]
    return told


def looks(text):
    """(color, dash) of every line of a legend, by the rules of the style sheet in the same file."""
    rules = re.findall(r"svg \.(\w+) \{ (stroke|stroke-dasharray): ([^;]*);", text)
    value = {(name, key): v for name, key, v in rules}
    classes = re.findall(r'<line class="line ([^"]*)"', text)
    pick = lambda names, key: next(value[n, key] for n in names if (n, key) in value)
    return [(pick(c.split(), "stroke"), pick(c.split(), "stroke-dasharray")) for c in classes]


@pytest.mark.parametrize("count", [14, 33])
def test_every_arm_has_a_color_and_dash_of_its_own(count):
    told = many_arms(count)
    drawing = str(learning_curves.chart(told, "step", "nll"))
    made = page.page(told)
    style = made[made.index("<style>") : made.index("</style>")]
    for text in (charts.svg_files(told)["curves.svg"], style + drawing):
        assert len(looks(text)) == len(set(looks(text))) == count
    assert drawing in made


def test_a_far_effect_is_an_arrow_and_does_not_flatten_the_others():
    rows = [Interval(Text(str(i)), 0.1 * i, 0.1 * i - 0.05, 0.1 * i + 0.05, "flat") for i in (1, 2)]
    far = Interval(Text("far"), 40.0, 39.0, 41.0, "bad")
    x = svg_intervals.near_scale([*rows, far], [0.01], 0, 100)
    assert x.low < 0
    assert 0.25 < x.high < 1
    arrow = ET.fromstring(f"<g>{svg_intervals.strip(far, x, 10)}</g>").find("polyline")
    assert places(arrow)[1] == (100, 10)
    assert ET.fromstring(f"<g>{svg_intervals.strip(rows[1], x, 10)}</g>").find("polyline") is None
    assert [i for i, _ in charts.comparisons(STUDY)] == [0, 1]


# --- colors ---


def schemes():
    """The variables of the page in both schemes."""
    text = "".join((charts.TEMPLATES / n).read_text() for n in ("charts.css", "page.css"))
    dark_blocks = re.findall(r"prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}", text, re.S)
    light_blocks = re.findall(r"(?m)^:root \{(.*?)\}", text, re.S)
    read = lambda blocks: {k: v for b in blocks for k, v in re.findall(r"--(\w+): (#\w{6})", b)}
    light = read(light_blocks)
    return {"light": light, "dark": light | read(dark_blocks)}


def linear(color):
    """Linear-light red, green and blue of #rrggbb."""
    value = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    """WCAG 2.2, contrast ratio."""
    high, low = sorted((linear(c) @ [0.2126, 0.7152, 0.0722] for c in (a, b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


TEXT = ("ink", "soft", "good", "bad", "flat")
ARMS = ("teacher", *(f"c{i}" for i in range(arm_styles.COLORS)))
GRAPHIC = (*ARMS, "axis", *(f"b{i}" for i in range(svg_models.STYLES)))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough(scheme):
    colors = schemes()[scheme]
    for ground in ("paper", "card", "goodwash", "badwash"):
        for name in TEXT:
            assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)
    for heat in ("h1", "h2", "h3", "h4"):
        assert contrast(colors["ink"], colors[heat]) >= 4.5, heat
    for name in GRAPHIC:
        least = 2.7 if name.startswith("b") else 3.0  # bars have their number beside them
        assert contrast(colors[name], colors["paper"]) >= least, name


# Machado, Oliveira and Fernandes 2009, severity 1, on linear light.
BLINDNESS = {
    "none": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                        [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                        [-0.011820, 0.042940, 0.968881]]),
}  # fmt: skip


def lab(rgb):
    """CIELAB, white D65."""
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(matrix) @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("blindness", BLINDNESS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colors_of_arms_can_be_distinguished(scheme, blindness):
    colors = schemes()[scheme]
    seen = {a: lab(BLINDNESS[blindness] @ linear(colors[a])) for a in ARMS}
    for a, b in combinations(ARMS, 2):
        assert np.linalg.norm(seen[a] - seen[b]) > 25, (a, b)
    # The two that a verdict compares, kd and sft; and a gain and a harm.
    assert np.linalg.norm(seen["c0"] - seen["c1"]) > 40
    good, bad = (lab(BLINDNESS[blindness] @ linear(colors[c])) for c in ("good", "bad"))
    assert np.linalg.norm(good - bad) > 40
