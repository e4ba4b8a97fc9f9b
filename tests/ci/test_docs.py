"""docs/ builds into pages: every page in the table of contents, every link there, nothing from the net."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("site")
    words = ["-m", "mkdocs", "build", "--quiet", "-f", "ci/mkdocs.yml", "-d", str(at)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr  # strict: a broken link is an error
    return at


def test_every_page_is_built_and_listed(site):
    pages = {f.stem for f in (ROOT / "docs").glob("*.md")}
    assert {f.stem for f in site.glob("*.html")} - {"404", "index"} == pages
    contents = (site / "speed.html").read_text(encoding="utf-8")
    assert all(f'href="{page}.html"' in contents for page in pages - {"speed"})


def test_nothing_is_loaded_from_the_net(site):
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]+src="(https?:[^"]+)', text)
        loaded += re.findall(r'<link[^>]+rel="stylesheet"[^>]+href="(https?:[^"]+)', text)
        assert not loaded, page.name
