"""report.html in a real Chromium: what it asks for, shows, prints and says to a screen reader.

Needs Debian's package chromium and, for axe-core, npm; skipped with the reason where they are
absent, an error where DISTILL_JAX_BROWSER=required.
"""

import json
import os
import shutil
import subprocess
import tarfile

import pytest

from distill_jax.report import charts, page, shown
from distill_jax.report.verdict import verdict_page
from tests.report import chromium, sample_report
from tests.report.html_walk import at, rounds

REPORTS = {
    "study": sample_report.study(),
    "run": sample_report.run(),
    "hostile": sample_report.hostile(),
    "verdict": sample_report.verdict(),
}
VIEWS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]
AXE = "axe-core@4.14.1"

# Every element that says where it stands, and every text node that does not.
PLACED = """[...document.querySelectorAll('[data-path]')].map(
  e => [e.dataset.path, e.dataset.value ?? null, e.textContent])"""
STRAY = """(() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const around = node.parentElement.closest(
      '[data-path],[data-key],[data-word],[data-key-word],.tick,style,title');
    if (/\\d/.test(node.data) && !around) found.push(node.data);
  }
  return found;
})()"""
OPEN = "document.querySelectorAll('details').forEach(d => { d.open = true })"
# What reaches over either side of the screen, save what lies in a box that scrolls or in a drawing.
BEYOND = """[...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && !e.closest('.skip') && !e.parentElement.closest('.wide, svg')
    && (box.left < 0 || box.right > document.documentElement.clientWidth + 1);
}).map(e => e.outerHTML.slice(0, 120))"""
# Boxes of tables: how much is hidden, whether a key reaches them, their shades.
BOXES = """[...document.querySelectorAll('.wide')].map(e => [e.getAttribute('aria-label'),
  e.scrollWidth - e.clientWidth, e.tabIndex, getComputedStyle(e).backgroundImage])"""
CLIPPED = """[...document.querySelectorAll('body *')].filter(
  e => !e.closest('.wide, svg, .skip') && e.scrollWidth > e.clientWidth + 1
    && getComputedStyle(e).overflowX !== 'visible' && e.clientWidth
).map(e => e.outerHTML.slice(0, 120))"""
# axe does not judge contrast before a gradient; those here lie at the edge of a box that scrolls.
UNSHADED = "document.querySelectorAll('.wide').forEach(e => { e.style.background = 'none' })"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def missing(reason):
    """Skips, or fails where a browser is required."""
    if os.environ.get("DISTILL_JAX_BROWSER") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser():
    if chromium.find() is None:
        missing("no chromium on the path: apt-get install chromium")
    with chromium.Chromium() as one:
        yield one


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, told in REPORTS.items():
        made = verdict_page if told["kind"] == "verdict" else page.page
        (folder / f"{name}.html").write_text(made(told))
    return folder


@pytest.fixture(scope="module")
def axe(request):
    """The source of axe-core, fetched once with npm into pytest's cache."""
    folder = request.config.cache.mkdir("axe-core")
    source = folder / "package" / "axe.min.js"
    if not source.exists():
        if shutil.which("npm") is None:
            missing("no npm on the path, which fetches axe-core")
        command = ["npm", "pack", AXE, f"--pack-destination={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            missing(f"npm could not fetch {AXE}: {done.stderr.strip().splitlines()[-1]}")
        with tarfile.open(folder / done.stdout.split()[-1]) as package:
            package.extract("package/axe.min.js", folder, filter="data")
    return source.read_text()


def test_the_watch_sees_requests_errors_dialogs_and_overflow(browser, tmp_path):
    """The instruments themselves, on a page that does all that a report must not."""
    (tmp_path / "bad.html").write_text(
        "<img src='https://example.org/a.png'><div style='width:2000px'>7</div>"
        "<script>alert(5); console.error('no'); throw new Error('never')</script>"
    )
    browser.open(tmp_path / "bad.html", width=390)
    assert "https://example.org/a.png" in browser.requests
    assert browser.dialogs == ["5"]
    assert len(browser.errors) >= 2
    assert browser.evaluate(OVERFLOW) > 0
    assert browser.evaluate(STRAY)[0] == "7"


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_the_page_is_quiet_and_fits(browser, pages, name, width, scheme):
    browser.open(pages / f"{name}.html", width=width, scheme=scheme)
    assert [u for u in browser.requests if not u.startswith(("file:", "data:"))] == []
    assert len([u for u in browser.requests if u.startswith("file:")]) == 1
    assert browser.errors == []
    assert browser.dialogs == []
    assert browser.evaluate("document.scripts.length") == 0
    assert browser.evaluate(OVERFLOW) <= 0
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_clipped_and_what_scrolls_shows_it(browser, pages, name, width):
    browser.open(pages / f"{name}.html", width=width)
    browser.evaluate(OPEN)
    assert browser.evaluate(BEYOND) == []
    assert browser.evaluate(CLIPPED) == []
    boxes = browser.evaluate(BOXES)
    assert boxes
    for label, hidden, tab_index, shades in boxes:
        assert label
        assert tab_index == 0
        assert shades.count("linear-gradient") == 4
        if width == 1280 and name != "hostile":
            assert hidden <= 0, label
    if width == 390:
        assert any(hidden > 0 for _, hidden, _, _ in boxes)
    prose = browser.evaluate(
        "[...document.querySelectorAll('.below .what')].map(e => e.getBoundingClientRect())"
        ".map(box => [box.left, box.right, box.height])"
    )
    assert len(prose) == 0 if name == "run" else len(prose) > 0
    for left, right, height in prose:  # readable without scrolling, not a narrow column
        assert 0 <= left < right <= width
        assert height < 80 or name == "hostile"


def test_a_point_of_a_curve_tells_its_value_on_hover(browser, pages):
    browser.open(pages / "run.html")
    told = browser.evaluate(
        "[...document.querySelectorAll('.charts svg.chart')].map(chart => {"
        " const hit = chart.querySelector('.hit'); hit.scrollIntoView({block: 'center'});"
        " const box = hit.getBoundingClientRect();"
        " return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2)"
        ".querySelector('title')?.textContent; })"
    )
    first = REPORTS["run"]["curves"][0]["points"][0]
    assert told == [f"student, seed 3, 0 updates: {first[key]:g}"
                    for key in ("loss", "nll", "forward_kl")]  # fmt: skip


def test_names_of_rows_stay_while_a_table_scrolls(browser, pages):
    browser.open(pages / "study.html", width=390)
    place = "document.querySelector('.wide tbody th').getBoundingClientRect().left"
    before = browser.evaluate(place)
    assert browser.evaluate("document.querySelector('.wide').scrollLeft = 100") == 100
    assert browser.evaluate(place) == before


def test_empty_lines_are_folded_in_sight_alone(browser, pages):
    browser.open(pages / "run.html")
    said = browser.evaluate(
        "[...document.querySelectorAll('.fold')].map(e => [getComputedStyle(e, '::before').content,"
        " e.textContent, e.getBoundingClientRect().height])"
    )
    assert [one[:2] for one in said] == [
        ['"only white space, 16 empty lines"', "\n" * 16],
        ['"3 empty lines"', "\n\n \n"],
    ]
    assert all(height < 30 for *_, height in said)


@pytest.mark.parametrize("name", REPORTS)
def test_every_number_in_the_document_equals_the_report(browser, pages, name):
    browser.open(pages / f"{name}.html")
    placed = browser.evaluate(PLACED)
    assert len(placed) > 20
    for path, value, text in placed:
        there = at(REPORTS[name], path)
        if value is None:
            assert text == there, path
            continue
        assert json.loads(value) == there, path
        if there is None:
            assert text == shown.ABSENT, path
        elif isinstance(there, bool):
            assert text == ("yes" if there else "no"), path
        else:
            assert rounds(text, there), (path, text, there)
    assert browser.evaluate(STRAY) == []


@pytest.mark.parametrize("name", ["study", "run", "verdict"])
@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_axe_finds_nothing_serious(browser, pages, axe, name, width, scheme):
    browser.open(pages / f"{name}.html", width=width, scheme=scheme)
    browser.evaluate(OPEN)
    browser.evaluate(UNSHADED)
    browser.evaluate(axe + "; 0")
    found = browser.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v =>"
        " [v.impact, v.id, v.nodes.slice(0, 3).map(n => n.html.slice(0, 160))]))"
    )
    assert [v for v in found if v[0] in ("serious", "critical")] == []


def test_axe_would_find_a_table_cell_too_pale(browser, pages, axe, tmp_path):
    text = (pages / "study.html").read_text()
    (tmp_path / "pale.html").write_text(text.replace("</style>", "td { color: #aaaaaa }</style>"))
    browser.open(tmp_path / "pale.html")
    browser.evaluate(UNSHADED)
    browser.evaluate(axe + "; 0")
    found = browser.evaluate("axe.run(document).then(r => r.violations.map(v => v.id))")
    assert "color-contrast" in found


@pytest.mark.parametrize("name", REPORTS)
def test_it_prints(browser, pages, name):
    browser.open(pages / f"{name}.html", scheme="dark")
    assert browser.pdf().startswith(b"%PDF")
    browser.call("Emulation.setEmulatedMedia", media="print")
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)"  # also where the screen is dark
    hidden = browser.evaluate(
        "[...document.querySelectorAll('details table')].filter(t => !t.checkVisibility("
        "{contentVisibilityAuto: true})).length"
    )
    assert hidden == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_stand_alone(browser, tmp_path, scheme):
    for name, text in charts.svg_files(REPORTS["hostile"]).items():
        (tmp_path / name).write_text(text)
        browser.open(tmp_path / name, scheme=scheme)
        assert browser.errors == []
        assert browser.dialogs == []
        assert browser.evaluate("document.documentElement.tagName") == "svg"
        paper = browser.evaluate("getComputedStyle(document.querySelector('.paper')).fill")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
        assert browser.evaluate("document.querySelector('svg').getBoundingClientRect().width") > 100
