"""report.json and report.html, without a browser: the page shows what the report holds."""

import copy
import json
import math
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.base import get_config
from distill_jax.command_line import parse
from distill_jax.config import flatten
from distill_jax.report import charts, number_formats, page, run, shown, tables
from distill_jax.report.taught import Taught
from tests.report import sample_report
from tests.report.html_walk import Walk, agrees, agrees_in_words, at, rounds, stray, text_of

REPORTS = {
    "study": sample_report.study(),
    "hostile": sample_report.hostile(),
    "run": sample_report.run(),
    "run without history": sample_report.run(history=False),
}
SCHEMA = json.loads((Path(run.__file__).parent / "report.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
every_report = pytest.mark.parametrize("name", REPORTS)


# A study with nothing but its verdict.
BARE = REPORTS["study"] | dict.fromkeys(
    ("slices", "behaviour", "calibration", "cost", "diagnose", "teacher")
)
BARE |= {"arms": [], "curves": [], "metrics": {}, "options": [], "samples": []}


def section_ids(walk):
    return [
        e.attributes["id"] for e in walk.elements if e.tag == "section" and "id" in e.attributes
    ]


def numbers(value, *before):
    """Paths of all numbers."""
    return [
        p for p in shown.leaves(value, *before) if number_formats.is_number(look(value, p, before))
    ]


def look(value, parts, before=()):
    for part in parts[len(before) :]:
        value = value[part]
    return value


# --- the structure ---


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@every_report
def test_reports_conform(name):
    VALIDATOR.validate(REPORTS[name])
    json.dumps(REPORTS[name], allow_nan=False)


@pytest.mark.parametrize("key", SCHEMA["required"])
def test_a_report_without_a_part_does_not_conform(key):
    broken = {k: v for k, v in REPORTS["study"].items() if k != key}
    assert not VALIDATOR.is_valid(broken)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("verdict", "equal_steps", "effect"), "-0.07"),
        (("verdict",), None),
        (("slices", "rows", 0, "comparison"), "equal_luck"),
        (("arms", 0, "nll"), 3.3),
        (("invented",), 1),
        (("calibration", "models", 0, "bins", 0, "count"), None),
    ],
)
def test_what_the_contract_forbids_does_not_conform(path, value):
    broken = copy.deepcopy(REPORTS["study"])
    look(broken, path[:-1])[path[-1]] = value
    assert not VALIDATOR.is_valid(broken)


def test_every_property_is_described():
    def undescribed(node, name):
        for key, inner in node.get("properties", {}).items():
            if not {"description", "$ref", "const", "enum", "anyOf", "items"} & set(inner):
                yield f"{name}.{key}"
            yield from undescribed(inner, f"{name}.{key}")

    assert not list(undescribed(SCHEMA, ""))


def test_a_run_keeps_its_evaluations_and_no_number_that_is_not_finite():
    rows = [tables.ModelRow("student after", 10, 3.0, None, None, float("inf"))]
    lines = [{"step": i, "train/loss": 1.0 / (i + 1)} for i in range(5000)]
    lines[1234]["eval/nll"] = 2.5
    lines[1300]["train/loss"] = float("nan")
    made = run.report_json(rows, {"eval/nll": float("nan")}, [], {"seed": 4}, {}, history=lines)
    VALIDATOR.validate(made)
    points = made["curves"][0]["points"]
    assert made["curves"][0]["seed"] == 4
    assert len(points) <= 2 * run.CURVE_POINTS
    assert {"step": 1234, "nll": 2.5}.items() <= next(p for p in points if p["nll"]).items()
    assert points[0]["step"] == 0
    assert points[-1]["step"] == 4999
    assert made["eval/nll"] is None
    assert made["models"][0]["decode_tokens_per_s"] is None


# --- the page shows the report ---


@every_report
def test_every_number_and_text_is_what_stands_at_its_path(name):
    walk = Walk(page.page(REPORTS[name]))
    placed = [e for e in walk.elements if "data-path" in e.attributes]
    assert len(placed) > 10
    wrong = [(e.attributes, text_of(e)) for e in placed if not agrees(e, REPORTS[name])]
    assert not wrong
    for e in walk.elements:
        if "data-key" in e.attributes:
            at(REPORTS[name], e.attributes["data-key"])
            last = e.attributes["data-key"].split(".")[-1]
            assert text_of(e) == last.replace("~1", ".").replace("~0", "~")
    worded = [e for e in walk.elements if {"data-word", "data-key-word"} & set(e.attributes)]
    assert not [e for e in worded if not agrees_in_words(e, REPORTS[name])]


@every_report
def test_no_digit_stands_outside_the_report(name):
    assert not stray(Walk(page.page(REPORTS[name])))


# Not shown as numbers: what charts draw, and what provenance and curves hold in full.
DRAWN = ("curves", "config", "schema", "calibration.models.*.bins", "diagnose.positions",
         "diagnose.passages.*.tokens", "eval/")  # fmt: skip


@pytest.mark.parametrize("name", ["study", "run"])
def test_every_number_of_the_report_is_shown(name):
    walk = Walk(page.page(REPORTS[name]))
    there = {e.attributes.get("data-path") for e in walk.elements}
    missing = []
    for parts in numbers(REPORTS[name]):
        where = shown.path(*parts)
        generic = ".".join("*" if isinstance(p, int) else p for p in parts)
        skipped = generic.startswith(DRAWN) or parts[-1] in ("step",) or parts[0] == "samples"
        if where not in there and not skipped and not hidden(REPORTS[name], parts):
            missing.append(where)
    assert not missing


def hidden(told, parts):
    """Of the documents of a slice only the tokens are shown; of a run's teacher, its table row."""
    return (
        parts[-1] == "documents"
        or (told["kind"] == "run" and parts[0] == "teacher")
        or (parts[0] == "teacher" and parts[-1] == "accuracy_top1")
    )


def test_a_wrong_number_would_be_noticed():
    made = page.page(REPORTS["study"])
    other = copy.deepcopy(REPORTS["study"])
    other["arms"][0]["nll"]["mean"] += 1e-9
    walk = Walk(made)
    assert not all(agrees(e, other) for e in walk.elements if "data-path" in e.attributes)
    assert stray(Walk(made.replace("<h1>", "<h1>7")))


def test_sections_stand_in_the_order_of_the_contract():
    ids = section_ids(Walk(page.page(REPORTS["study"])))
    assert ids == ["evidence", "slices", "behaviour", "calibration", "cost", "diagnose", "options",
                   "defaults", "provenance"]  # fmt: skip


EMPTY = {"slices": None, "calibration": None, "cost": None, "diagnose": None, "options": []}


@pytest.mark.parametrize("part", EMPTY)
def test_a_missing_part_is_left_out_with_its_reason(part):
    told = REPORTS["study"] | {part: EMPTY[part]}
    VALIDATOR.validate(told)
    walk = Walk(page.page(told))
    assert part not in section_ids(walk)
    assert any(e.tag == "a" and e.attributes.get("href") == "#cost" for e in walk.elements) == (
        part != "cost"
    )
    section = next(s for s in page.SECTIONS if s.name == part)
    text = "".join(t for t, _ in walk.texts)
    assert f"{section.title}: {section.why_not}." in text
    told["absent"] = {part: "the disk was 7% too small"}
    VALIDATOR.validate(told)
    assert "the disk was 7% too small" in page.page(told)


def test_a_study_with_nothing_but_a_verdict_has_a_page():
    told = dict(BARE)
    told["verdict"] = told["verdict"] | {"equal_flops": None, "ships": True}
    VALIDATOR.validate(told)
    walk = Walk(page.page(told))
    assert section_ids(walk) == ["defaults", "provenance"]


@pytest.fixture(scope="module")
def nullable():
    """Paths of the numbers that the schema lets be null, each kind of place judged once."""
    judged, found = {}, []
    told = copy.deepcopy(REPORTS["study"])
    for parts in numbers(told):
        kind = tuple("*" if isinstance(p, int) else p for p in parts)
        if kind not in judged:
            holder = look(told, parts[:-1])
            before, holder[parts[-1]] = holder[parts[-1]], None
            only = BARE | {parts[0]: told[parts[0]]}
            judged[kind] = parts[0] != "config" and VALIDATOR.is_valid(only)
            holder[parts[-1]] = before
        if judged[kind]:
            found.append(parts)
    return found


@pytest.mark.parametrize("broken", [None, math.nan, math.inf, -math.inf])
def test_absent_and_broken_numbers_are_absent_and_never_zero(nullable, broken):
    told = copy.deepcopy(REPORTS["study"])
    for parts in nullable:
        look(told, parts[:-1])[parts[-1]] = broken
    walk, clean = Walk(page.page(told)), page.finite(told)
    VALIDATOR.validate(clean)
    absent = [e for e in walk.elements if e.attributes.get("data-value") == "null"]
    assert len(absent) > 200
    assert {text_of(e) for e in absent} == {shown.ABSENT}
    assert all(agrees(e, clean) for e in walk.elements if "data-path" in e.attributes)
    for e in walk.elements:
        if e.tag in SHAPES:
            words = " ".join(v for k, v in e.attributes.items() if not k.startswith("data"))
            assert not re.search(r"\b(nan|inf|none)\b", words.lower()), e


SHAPES = ("line", "rect", "circle", "polyline", "text")


# --- what a model wrote stays text ---


def test_hostile_text_is_text():
    made = page.page(REPORTS["hostile"])
    walk = Walk(made)
    assert {e.tag for e in walk.elements}.isdisjoint({"script", "img", "b", "iframe", "object"})
    assert not [a for e in walk.elements for a in e.attributes if a.startswith("on")]
    assert sample_report.HOSTILE in "".join(t for t, _ in walk.texts)
    assert "49" not in text_of(next(e for e in walk.elements if e.tag == "title"))
    names = {e.tag for e in walk.elements}
    assert names == {e.tag for e in Walk(page.page(REPORTS["study"])).elements} | names & {
        "ul",
        "li",
    }


@every_report
def test_the_page_asks_for_nothing(name):
    walk = Walk(page.page(REPORTS[name]))
    for e in walk.elements:
        for key in ("src", "href", "srcset", "action", "data"):
            assert e.attributes.get(key, "#").startswith(("#", "data:,")), (e.tag, e.attributes)
    styles = "".join(text_of(e) for e in walk.elements if e.tag == "style")
    assert "url(" not in styles
    assert "@import" not in styles


# --- a single run ---


def seen_texts(told):
    """What stands in the body, piece by piece."""
    walk = Walk(page.page(told))
    return [
        t.strip() for t, around in walk.texts if t.strip() and any(e.tag == "body" for e in around)
    ]


def test_a_run_answers_first_and_says_second_what_it_cannot_tell():
    told = REPORTS["run"]
    seen = seen_texts(told)
    assert seen[0] == "Skip to the report"
    assert seen[2] == "Half the size, 2.0x as fast, NLL +0.73 over its teacher" == told["headline"]
    order = [seen.index(x) for x in (*told["findings"], "student before", run.NO_VERDICT)]
    assert order == sorted(order)
    assert order[-1] < seen.index("Evidence")
    command = seen[seen.index(run.NO_VERDICT) + 2 :][:4]
    assert " ".join(command).startswith("python -m distill_jax.main --config=")
    assert "Did distillation help" not in " ".join(seen)


def test_shares_among_the_metrics_are_percentages():
    styles = {
        name: page.style_of(name) for name in ("accuracy_top1", "rep_4", "ece", "nll", "brier")
    }
    assert styles == {
        "accuracy_top1": "share", "rep_4": "share", "ece": "metric", "nll": "metric",
        "brier": "metric",
    }  # fmt: skip


def test_a_study_that_tested_no_slice_says_so():
    told = copy.deepcopy(REPORTS["study"])
    told["slices"]["rows"] = []
    assert "scores of this measure have no slices" in " ".join(seen_texts(told))
    told["verdict"]["equal_steps"]["label"] = "INVALID"
    seen = " ".join(seen_texts(told))
    assert "kd could not be compared with sft , so no slice was tested for harm by it" in seen
    assert "Nothing could be compared" not in seen  # other arms may have been
    assert "no slice was tested for harm" not in page.page(REPORTS["study"])


def test_a_run_without_teacher_or_speed_has_no_column_for_them():
    told = without_teacher()
    VALIDATOR.validate(told)
    seen = seen_texts(told)
    assert told["headline"] == "Training lowered NLL from 3.771 to 3.350 nats per token"
    assert run.NO_TEACHER in seen
    assert not {"KL to the teacher", "agreement", "tokens/s"} & set(seen)
    assert "study_command" not in told


def without_teacher():
    rows = [
        tables.ModelRow("student before", 9000, 3.771, None, None, None),
        tables.ModelRow("student after", 9000, 3.35, None, None, None),
    ]
    alone, command = Taught(0, labels_alone=True), "never shown"
    return run.report_json(
        rows, {"eval/nll": 3.35}, [], {}, {}, study_command=command, taught=alone
    )


def test_a_student_that_its_own_average_taught_may_have_been_distilled():
    rows = [tables.ModelRow(f"student {when}", 9, 3.7, None, None, None)
            for when in ("before", "after")]  # fmt: skip
    told = run.report_json(rows, {}, [], {}, {}, taught=Taught(0, average=True))
    assert told["statement"] == run.NO_VERDICT
    assert not any("no teacher" in text for text in told["findings"])


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
def test_the_command_of_the_study_has_the_config_of_the_run():
    config, base = get_config(), flatten(get_config())
    config.teacher.path, config.data.source = "a teacher's", "*.jsonl"
    config.teacher.more, config.student.prune.refit = ("b", "c d"), False
    command = run.study_command(flatten(config), base, "runs/my run")
    config.job = "study"
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "distill_jax.main"]
    parsed = parse(["main", *words[3:]])
    assert flatten(parsed.config) == flatten(config)
    assert parsed.workdir == Path("runs/my run-study")


def test_a_run_that_no_study_can_follow_has_no_command():
    rows = [tables.ModelRow("student after", 1, 1.0, None, None, None)]
    made = run.report_json(rows, {}, [], {}, {})
    VALIDATOR.validate(made)
    assert "A study compares" not in page.page(made)


# --- for a terminal ---


def test_the_closing_table_has_no_column_without_a_number_and_no_model_of_size_0():
    rows = [tables.ModelRow("student after", 10_300, 3.35, None, None, None)]
    header, _, line = tables.text_table(rows).splitlines()
    assert header.split() == ["model", "parameters", "NLL", "perplexity"]
    assert line.split() == ["student", "after", "10.3", "k", "3.350", "28.50"]
    rows.insert(0, tables.ModelRow("teacher", 134_515_008, 2.6, 0.0, 1.0, None))
    header, _, *lines = tables.text_table(rows).splitlines()
    assert "KL to teacher" in header
    assert "tokens/s" not in header
    assert "134.5 M" in lines[0]
    assert len({len(line) for line in (header, *lines)}) == 1


def test_the_table_of_a_study_has_a_line_an_arm_and_both_verdicts():
    text = tables.study_table(REPORTS["study"])
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[2:8]] == ["teacher", *sample_report.ARMS]
    assert len({len(line) for line in lines[:8]}) == 1
    assert "at equal steps: NEW FAILURE MODE IN rare tokens (least frequent tenth)." in text
    assert "at equal FLOPs: INCONCLUSIVE." in text
    assert "\nrandom_teacher against kd: WORSE. kd is" in text
    assert "\nablation narrow.v2 against kd: WORSE. kd is" in text
    assert "\nby KL to the teacher, kd against sft: HELPS. kd is" in text
    assert text.count("\nwarning: 3 seeds miss a bad run") == 1
    assert lines[-1] == "fit to ship: no"


def test_a_run_that_broke_down_is_told_on_the_page_and_in_the_table():
    told = copy.deepcopy(REPORTS["study"])
    broken = told["arms"][0]["runs"][1]
    broken |= {"nll": None, "forward_kl": None, "failed": "3 updates were not finite"}
    VALIDATOR.validate(told)
    lines = tables.study_table(told).splitlines()
    assert lines[3].split()[:4] == ["kd", "2", "of", "3"]
    assert "".join(seen_texts(told)).count("3 updates were not finite") == 2
    assert not stray(Walk(page.page(told)))


def test_what_serving_costs_has_no_row_without_a_number():
    told = REPORTS["study"]
    assert "per million tokens" not in seen_texts(told)
    assert "config.study.price_per_hour" in seen_texts(told)
    priced = copy.deepcopy(told)
    priced["cost"]["models"][0]["cost_per_million_tokens"] = 0.25
    assert "per million tokens" in seen_texts(priced)


def test_the_table_of_a_study_bears_absent_numbers():
    told = copy.deepcopy(REPORTS["study"])
    told["teacher"], told["verdict"]["equal_flops"] = None, None
    told["arms"][0] |= {"forward_kl": None, "agreement_top1": None, "flops": None}
    told["arms"][0]["nll"] = {"mean": 3.0, "low": None, "high": None}
    kd = tables.study_table(told).splitlines()[2].split()
    assert kd[2:] == ["3.0000", "-", "-", "-", "-", "-"]


# --- how numbers are written ---

REALS = st.floats(-1e17, 1e17).filter(lambda x: x == 0 or abs(x) > 1e-9)
WHOLE = ("count", "plain", "bytes")
SMALL = ("p", "share", "level", "money", "times", "ms", "speed", "seconds", "cents")


@pytest.mark.parametrize("form", number_formats.FORMATS)
@given(data=st.data())
def test_a_number_is_shown_rounded(form, data):
    if form in WHOLE:
        value = data.draw(st.integers(0, 10**18))
    else:
        value = data.draw(REALS if form not in SMALL else st.floats(1e-4, 1e6) | st.just(0.0))
    assert rounds(number_formats.FORMATS[form](value), value), (
        value,
        number_formats.FORMATS[form](value),
    )


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        ("letters", 67_218_816, "67.2 M"),
        ("letters", 999_999, "1.00 M"),
        ("letters", 999, "999"),
        ("letters", 3.1416e14, "314 T"),
        ("letters", 0, "0"),
        ("effect", -0.07164, f"{number_formats.MINUS}0.0716"),
        ("effect", 0.118, "+0.1180"),
        ("level", 0.95, "95%"),
        ("level", 0.999, "99.9%"),
        ("p", 0.00002, "2.0e-05"),
        ("p", 0.0, "0.000"),
        ("general", 0.01, "0.01"),
        ("metric", 0.01, "0.01000"),
        ("metric", 12189, "12,189"),
        ("bytes", 512, "512 B"),
        ("bytes", 538_060_032, "538 MB"),
        ("share", 0.564, "56.4%"),
        ("share", 0.00032, "0.032%"),
        ("share", -0.00994, f"{number_formats.MINUS}0.99%"),
        ("share", 0.00996, "1.0%"),
        ("share", 0.0, "0.0%"),
        ("nats", 99999.0, "99999.000"),
        ("nats", 26004362.3, "2.6e+07"),
        ("effect", -12480000.0, f"{number_formats.MINUS}1.248e+07"),
        ("seconds", 0.42, "0.4"),
        ("seconds", 361.4, "361"),
        ("full", 1204411, "1204411"),
    ],
)
def test_known_numbers(form, value, text):
    shown = number_formats.FORMATS[form](value).replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert shown == text


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_paths_lead_back(keys):
    tree = 7
    for key in reversed(keys):
        tree = {key: tree}
    assert at(tree, shown.path(*keys)) == 7
    assert shown.Shown(tree).at(tuple(keys[:1]), *keys[1:]) == 7
    assert text_of(Walk(str(shown.Shown(tree).key(*keys))).elements[0]) == keys[-1]


@given(st.text())
def test_texts_are_escaped_and_come_back(text):
    text = text.replace("\r", "").replace("\0", "")
    made = str(shown.Shown({"a": text}).text("a"))
    assert text_of(Walk(made).elements[0]) == text


def test_colors_say_what_labels_say():
    labels = {"HELPS": "good", "NO BETTER": "flat", "INCONCLUSIVE": "flat", "WORSE": "bad"}
    labels |= {"INVALID": "bad", "NEW FAILURE MODE IN label:code": "bad"}
    assert {label: charts.tone(label) for label in labels} == labels
    assert [page.heat(x) for x in (None, 0.0, 0.1, 0.11, 0.3, 1.0, 3.0, 3.1, 50)] == [
        "h0", "h0", "h0", "h1", "h1", "h2", "h3", "h4", "h4",
    ]  # fmt: skip
