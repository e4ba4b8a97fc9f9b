"""Running the course on made-up notebooks: what fails is named, the rest still runs, pages need no
net."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from dsv3_port import PortError
from dsv3_port.course import pages, run_notebook, tutorial
from dsv3_port.course.notebook import read_notebook

PARAMETERS = 'profile = "tiny"\ndevice = "auto"\nresults_dir = "results"\nseed = 0'
PROFILE = "profile: tiny\ndevice: cpu\nseed: 7\n"


@pytest.fixture
def course(tmp_path, monkeypatch):
    """write(name, *cells) puts a notebook into a small checkout; returns it and the checkout."""
    folder, profiles = tmp_path / "notebooks", tmp_path / "ci" / "profiles"
    folder.mkdir()
    profiles.mkdir(parents=True)
    (profiles / "tiny.yaml").write_text(PROFILE)
    # an unfriendly kernelspec of the user must not win over the running interpreter
    evil = tmp_path / "share" / "kernels" / "python3"
    evil.mkdir(parents=True)
    (evil / "kernel.json").write_text(
        '{"argv": ["/nonexistent"], "display_name": "x", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))

    def write(name, *cells):
        made = [
            new_markdown_cell(f"intro\n\n# The title of {name}\n\n## more"),
            new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        ]
        made += [new_code_cell(c) if isinstance(c, str) else c for c in cells]
        spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(
            new_notebook(cells=made, metadata={"kernelspec": spec}), folder / f"{name}.ipynb"
        )

    return write, tmp_path


def start(root: Path, **options):
    return tutorial.run_tutorial(root / "notebooks", root / "out", progress=False, **options)


def test_good_and_failing_notebooks(course):
    write, root = course
    write(
        "00_good",
        "import os, sys\nfrom pathlib import Path\nprint(seed, device, sys.executable)\n"
        "Path(results_dir, 'ladder.png').write_bytes(b'png')\nPath(results_dir, 'cwd').write_text(os.getcwd())",
    )
    write("01_bad", "x = 1", "\nprint('start')\nraise ValueError('no\\nsuch luck')", "y = 2")
    write("02_dead", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "y = 2")
    write("03_last", new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]}), "y = 2")
    told = []
    runs = start(root, on_done=told.append)
    assert told == runs
    assert [r.status for r in runs] == ["ok", "failed", "failed", "ok"]
    assert runs[1].error == "cell 4 of 5 (`print('start')`): ValueError: no"
    assert runs[2].error.startswith("cell 3 of 4 (`import os, signal`): the kernel died by SIGKILL")
    assert runs[0].cells == 2
    assert all(r.seconds > 0.05 for r in runs)
    out = root / "out"
    assert (out / "results" / "cwd").read_text() == str(root / "notebooks")
    executed = nbformat.read(out / "executed" / "00_good.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text.startswith("7 cpu ")  # from the profile
    index = (out / "index.html").read_text()
    assert "ValueError: no" in index
    assert "The title of 03_last" in index
    assert 'src="results/ladder.png"' in index
    assert "2 failed" in index
    page = (out / "pages" / "01_bad.html").read_text()
    assert "../index.html" in page
    assert "00_good.html" in page
    assert "02_dead.html" in page
    assert "such luck" in page
    assert "An Exception was encountered" not in (out / "pages" / "03_last.html").read_text()


def test_single_notebooks_add_to_what_is_there_and_a_whole_run_starts_anew(course):
    write, root = course
    write("00_a", "from pathlib import Path\nPath(results_dir, 'results.json').write_text('[]')")
    write("01_b", "raise KeyError('x')")
    write("10_c", "x = 1")
    assert [r.name for r in start(root, only=["0", "10_c.ipynb"])] == ["00_a", "10_c"]
    assert "not run yet" in (root / "out" / "index.html").read_text()
    write("01_b", "x = 1")
    assert [r.name for r in start(root, only=["01"])] == ["01_b"]
    assert {r["name"] for r in json.loads((root / "out" / "runs.json").read_text())} == {
        "00_a",
        "01_b",
        "10_c",
    }
    assert not (root / "out" / "results" / "results-before.json").exists()
    start(root)
    assert (root / "out" / "results" / "results-before.json").exists()


def test_an_endless_cell_is_stopped(course):
    write, root = course
    write("00_slow", "import time\ntime.sleep(60)")
    (run,) = start(root, timeout=1)
    assert run.error == "cell 3 of 3 (`import time`): still running after 1 s, stopped"
    assert run.seconds < 20


def test_a_notebook_that_ran_nothing_has_failed(course):
    nb = new_notebook(cells=[new_code_cell("x = 1"), new_code_cell("y = 2"), new_code_cell("")])
    assert run_notebook._failure(nb, nb, None, 1) == "only 0 of 2 code cells ran"
    nb.cells[0].execution_count = 1
    assert run_notebook._failure(nb, nb, None, 1) == "only 1 of 2 code cells ran"
    nb.cells[1].execution_count = 2
    assert run_notebook._failure(nb, nb, None, 1) == ""
    empty = new_notebook(cells=[new_markdown_cell("x")])
    assert run_notebook._failure(empty, empty, None, 1) == "only 0 of 0 code cells ran"


def test_bad_input_is_refused_before_anything_runs(course):
    write, root = course
    write("00_a", "x = 1")
    profiles = root / "ci" / "profiles"
    for text, named in (
        ("a: [", "not readable as YAML"),
        ("- 1", "must hold"),
        ("profile: tiny\nspeed: 1", "must hold"),
    ):
        (profiles / "odd.yaml").write_text(text)
        with pytest.raises(PortError, match=named):
            start(root, profile="odd")
    with pytest.raises(PortError, match="unknown profile 'none'.*odd, tiny"):
        start(root, profile="none")
    with pytest.raises(PortError, match="no notebook '5'; there are 00_a"):
        start(root, only=["5"])
    with pytest.raises(PortError, match="quantum"):
        start(root, device="quantum")
    with pytest.raises(PortError, match="no notebooks here"):
        tutorial.run_tutorial(profiles, root / "out")
    (root / "file").write_text("")
    with pytest.raises(PortError, match="cannot be written"):
        tutorial.run_tutorial(root / "notebooks", root / "file" / "out")


def test_profiles_of_the_repository_are_readable():
    from dsv3_port.course.session import PROFILES

    folder = Path(__file__).parents[2] / "ci" / "profiles"
    found = {f.stem: tutorial.read_profile(f.stem, folder) for f in folder.glob("*.yaml")}
    assert set(found) == {"tiny", "small", "npu"}
    assert all(values["profile"] in PROFILES for values in found.values())
    assert found["npu"]["device"] == "npu"


def test_pages_fetch_nothing_from_the_net(course):
    _, root = course
    folder = root / "notebooks"
    (folder / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    text = (
        "Formulas $W^K_h$ and\n\n$$\\mathrm{silu}(a) = \\frac{a}{1 + e^{-a}}$$\n\n![picture](a.svg)\n\n"
        "[next](02_b.ipynb#part), [file](../data/x.json), [web](https://example.org/a.ipynb)"
    )
    nb = new_notebook(
        cells=[
            new_markdown_cell(text),
            new_code_cell("secret = 1", metadata={"tags": ["hide-input"]}),
            new_code_cell("injected = 1", metadata={"tags": ["injected-parameters"]}),
            new_code_cell("shown = 1"),
        ]
    )
    page = pages.write_page(
        nb, "01_a", root / "out" / "pages", folder, following="02_b.html"
    ).read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"'](?:https?:)?//", page)
    assert "cdnjs" not in page
    assert page.count("<math") == 2
    assert "$" not in re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)
    assert "data:image/svg+xml;base64," in page
    assert 'href="02_b.html#part"' in page
    assert 'href="../../data/x.json"' in page
    assert 'href="https://example.org/a.ipynb"' in page
    assert "shown" in page
    assert "secret" not in page
    assert "injected" not in page


def test_a_formula_that_cannot_be_converted_stays_legible(monkeypatch):
    def fail(tex, display):
        raise ValueError

    monkeypatch.setattr(pages, "convert", fail)
    assert pages.mathml(" a < b ") == "<code>a &lt; b</code>"


def test_title_is_the_first_heading(course):
    write, root = course
    write("00_a")
    assert read_notebook(root / "notebooks" / "00_a.ipynb").title == "The title of 00_a"
    nbformat.write(
        new_notebook(cells=[new_code_cell("# no heading")]), root / "notebooks" / "01_b.ipynb"
    )
    assert read_notebook(root / "notebooks" / "01_b.ipynb").title == "01_b"
