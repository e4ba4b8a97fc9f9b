"""Built pages in a headless Chromium: what we build has no findings, what is broken is found.
Skipped without one."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dsv3_port.course.diff import diff as source_diff
from dsv3_port.course.front import write_index
from dsv3_port.course.notebook import Notebook
from dsv3_port.course.pages import write_page
from dsv3_port.course.run_notebook import NotebookRun
from dsv3_port.course.slides import write_slides
from dsv3_port.course.verdicts import STATES, Verdict
from dsv3_port.course.written import Place
from dsv3_port.course.yours import slots
from dsv3_port.plots.style import ON_DARK, LabFigure

sys.path.insert(0, str(Path(__file__).parents[2] / "ci" / "tools"))
import browser
import check_pages

pytestmark = pytest.mark.skipif(browser.find() is None, reason=browser.MISSING)
WIDE = (
    "| "
    + " | ".join(f"a long heading {n}" for n in range(12))
    + " |\n|"
    + "---|" * 12
    + "\n|"
    + " value |" * 12
)


DECK = """# A title, and a code
code:wide
???
say this
---
# A picture
Some words.
cell:plot
---
# Build it
build:00.last
???
the clock runs
---
# A diff
cell:wide
"""


@pytest.fixture(scope="module")
def page():
    with browser.browser() as made:
        yield made


def test_a_page_that_asks_before_it_goes_is_left(page, tmp_path):
    """JupyterLab with unsaved work asks; unanswered, the browser answers nothing any more."""
    asks, other = tmp_path / "asks.html", tmp_path / "other.html"
    script = "addEventListener('beforeunload', e => { e.preventDefault(); e.returnValue = 'x' })"
    asks.write_text(f"<title>asks</title><input id=i><script>{script}</script>", encoding="utf-8")
    other.write_text("<title>other</title>", encoding="utf-8")
    page.open(asks.as_uri())
    page.run("document.getElementById('i').focus()")
    page.write("typed")  # a browser asks only where somebody did something
    page.open(other.as_uri())
    assert page.run("document.title") == "other"


def _output(html: str) -> nbformat.NotebookNode:
    return new_output("display_data", {"text/html": html})


def verdicts() -> list[nbformat.NotebookNode]:
    """Every state as the judge shows it, with a place whose line and shapes are long."""
    shapes = {name: [2, 3, 5, 7, 11] for name in ("q_nope", "q_rope", "rows", "mask", "w_k", "w_v")}
    place = Place(
        "RuntimeError: " + "sizes do not fit " * 6, 7, "x = " + "a_long_name." * 9, shapes
    )
    where = {"raised": place, "late": place}
    slot = slots()["02.absorbed"]
    shown = [Verdict(slot, s, "why " * 30, "原因" * 20, place=where.get(s)) for s in STATES]
    return [_output(v._repr_html_()) for v in shown]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The kinds of things that notebooks hold, as page, slides and index."""
    out = tmp_path_factory.mktemp("site")
    plot = LabFigure(figsize=(6, 4))
    plot.alt_text = "A line that rises."
    plot.subplots().plot([1, 2])
    data, meta = plot._repr_mimebundle_()
    picture = new_output("display_data", data, metadata=meta)
    diff = _output(source_diff("merged_mlp")._repr_html_())
    cells = [
        new_markdown_cell("# 00 · One\n# 一\n\n[next](01_two.ipynb)\n\n" + WIDE),
        new_markdown_cell(
            "## Formula\n\n$$" + "a_{1} + " * 60 + "b$$\n\n<details><summary>?</summary>\n\nYes\n\n"
            "</details>",
        ),
        new_code_cell(
            "x = " + "'wide' + " * 40 + "''", outputs=[diff], execution_count=1, id="wide"
        ),
        new_code_cell("plot", outputs=[picture], execution_count=2, id="plot"),
        new_code_cell("...", metadata={"tags": ["yours"]}),
        new_code_cell("fit(last, model)", outputs=verdicts()),
        new_markdown_cell("## Last\n\nwords"),
    ]
    nb = new_notebook(cells=cells)
    runs = []
    (out / "workshop" / "deck").mkdir(parents=True)
    for number in ("00", "01"):
        (out / "workshop" / "deck" / f"{number}.md").write_text(DECK, encoding="utf-8")
    for name in ("00_one", "01_two"):
        around = {"following": "01_two.html"} if name == "00_one" else {"previous": "00_one.html"}
        write_page(nb, name, out / "pages", out, **around)
        write_slides(nb, name, out / "slides", out)
        runs.append(NotebookRun(name, "ok", 1.0, 2, f"pages/{name}.html"))
    for folder in ("executed", "results"):
        (out / folder).mkdir()
    (out / "results" / "ladder.png").write_bytes(plot.png())
    about = [
        Notebook(r.name, r.name, "一", "It works. And more.", {"Reading": "5 minutes"})
        for r in runs
    ]
    write_index(out, about, runs, "a cpu")
    return out


@pytest.mark.parametrize("name", ["index.html", "pages/00_one.html", "slides/00_one.html"])
def test_what_we_build_has_no_findings(page, site, name):
    assert list(check_pages.look(page, site / name, site)) == []


def test_slides_follow_the_keys(page, site):
    page.size(1280)
    page.open((site / "slides" / "00_one.html").as_uri())
    place = "document.querySelector('#place span').textContent"
    assert page.run(place) == "1 / 4"
    page.press("ArrowRight", 39)
    assert page.run(place) == "2 / 4"
    page.press("ArrowRight", 39)
    notes = "getComputedStyle(document.querySelector('.slide.here aside')).display"
    clock = "document.querySelector('.slide.here .clock').textContent"
    assert page.run(notes) == "none" and page.run(clock) == ""
    page.press("n", 78)
    assert page.run(notes) == "block" and page.run(clock) in ("5:00", "4:59")
    page.press("End", 35)
    assert page.run(place) == "4 / 4"


def test_every_slide_fits_a_small_projector(page, site):
    page.size(1280, 720)
    page.open((site / "slides" / "00_one.html").as_uri())
    for number in range(1, 5):
        assert list(check_pages.outside(page, number)) == []
    page.run(
        "document.querySelector('.slide.here').insertAdjacentHTML('beforeend', "
        "'<p style=\"height:900px\">x</p>')"
    )
    assert "below the window" in next(check_pages.outside(page, 4))
    page.run("document.querySelector('.slide.here .fit').style.zoom = .3")
    assert "shrunk to 30%" in list(check_pages.outside(page, 4))[-1]


def test_dark_readers_get_dark_pages(page, site):
    page.size(1280, dark=True)
    page.open((site / "pages" / "00_one.html").as_uri())
    colours = page.run(
        "[getComputedStyle(document.body).backgroundColor, "
        "getComputedStyle(document.querySelector('h1')).color]"
    )
    back, ink = (sum(int(n) for n in c[c.index("(") + 1 : -1].split(",")[:3]) for c in colours)
    assert back < 150 and ink > 500


@pytest.mark.parametrize("name", ["index.html", "pages/00_one.html"])
def test_a_picture_that_stays_white_is_found(page, site, name):
    text = (site / name).read_text(encoding="utf-8")
    assert ON_DARK in text
    file = site / name.replace(".html", "_white.html")
    file.write_text(text.replace(ON_DARK, "none"), encoding="utf-8")
    found = list(check_pages.look(page, file, site))
    assert len(found) == 1 and "glares on a dark page" in found[0] and "<img" in found[0], found


BROKEN = {
    "<img src='none.png' alt=''>": "picture not drawn",
    "<a href='no.html'>x</a>": "no.html, which does not exist",
    "<a href='#nowhere'>x</a>": "#nowhere, which is not",
    "<div style='width:700px'>x</div>": "sideways",
    "<p style='background:#eee;height:200px'>x</p>": "glares on a dark page",
    "<script>throw new Error('oh')</script>": "console: Error: oh",
    "<img src='data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=='>": "alternative text",
}


@pytest.mark.parametrize("damage", BROKEN, ids=BROKEN.values())
def test_damage_is_found(page, tmp_path, damage):
    file = tmp_path / "a.html"
    file.write_text(
        "<!DOCTYPE html><html lang='en'><head><title>a</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'></head><body>"
        f"<a href='a.html'>one</a><a href='a.html?2'>two</a>{damage}</body></html>"
    )
    found = list(check_pages.look(page, file, tmp_path))
    assert BROKEN[damage] in found[-1] and all("ERR_FILE" in text for text in found[:-1]), found
