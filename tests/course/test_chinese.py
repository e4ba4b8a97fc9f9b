"""A Chinese notebook in full, as `DSV3_LANG=zh ci/run.py tutorial` runs it: what a learner reads is Chinese
wherever the catalogue has it."""

from __future__ import annotations

import os
import re
from html import unescape
from pathlib import Path

import nbformat
import pytest

from dsv3_port.messages import catalogue
from tests import forks

ROOT = Path(__file__).parents[2]
HAN = re.compile(r"[\u4e00-\u9fff]")
NAMES = ("00_start_here",)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    only = ",".join(name.partition("_")[0] for name in NAMES)
    env = os.environ | {"DSV3_LANG": "zh", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = ("tutorial", "--quiet", "--out", str(folder), "--only", only)
    done = forks.start(*words, env=env).end(600)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return folder


def outputs(nb: nbformat.NotebookNode) -> list[str]:
    """What cells show: text and alternative text, no source code."""
    found = []
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", "")})
            kind = next(
                (k for k in ("text/html", "text/markdown", "text/plain") if data.get(k)), ""
            )
            text = re.sub(r'src(?:set)?="data:[^"]*"|<style>.*?</style>', "", data.get(kind, ""))
            if "show.diff" not in cell.source:
                alts = " ".join(re.findall(r'(?:alt|title|aria-label)="([^"]*)"', text))
                found.append(unescape(re.sub(r"<[^>]+>", " ", text) + " " + alts))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_a_learner_reads_is_chinese(name, out):
    nb = nbformat.read(out / "executed" / f"{name}.ipynb", as_version=4)
    assert nb.metadata.dsv3.language == "zh-CN"
    shown = outputs(nb)
    assert sum(bool(HAN.search(text)) for text in shown) >= 8
    there = [m for m in catalogue("zh").messages if len(re.findall(r"[a-z]{2,}", m)) > 3]
    texts = [" ".join(re.sub(r"\{[^}]*\}", "{}", m).split()) for m in there]
    pieces = {p.strip() for t in texts for p in t.split("{}") if len(p.split()) > 3}
    left = {p for p in pieces for text in shown if p in " ".join(text.split())}
    drawn = {a for a in left if any(a in alt for alt in pictures(nb))}
    assert left <= drawn  # a picture keeps English where no font is there


def pictures(nb: nbformat.NotebookNode) -> list[str]:
    """Alternative texts of drawn pictures: English without a font, or not in the catalogue yet."""
    html = [
        o.data.get("text/html", "") for c in nb.cells for o in c.get("outputs", []) if "data" in o
    ]
    alts = [alt for text in html for alt in re.findall(r'<img[^>]*alt="([^"]*)"', text)]
    return [" ".join(unescape(alt).split()) for alt in alts]


@pytest.mark.parametrize("name", NAMES)
def test_both_pages_share_its_outputs(name, out):
    ours, theirs = (
        (out / "pages" / f"{name}{end}.html").read_text(encoding="utf-8") for end in ("", ".zh-CN")
    )
    assert '<html lang="en"' in ours and '<html lang="zh"' in theirs
    assert HAN.search(theirs) and 'role="status"' in ours and 'role="status"' in theirs
