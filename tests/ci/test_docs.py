"""docs/ builds into pages: every page in the table of contents, every link there, nothing from the net."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from dsv3_port import PortError
from dsv3_port.course.docs import write_docs
from dsv3_port.course.front import write_index

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """docs/ of an output folder with the course's front page."""
    out = tmp_path_factory.mktemp("out")
    write_docs(ROOT, out / "docs")  # strict: a broken link is an error
    write_index(out, [], [], "a cpu")
    return out / "docs"


@pytest.mark.parametrize("language", ["", "zh-CN"])
def test_every_page_is_built_and_listed(site, language):
    pages = {f.stem for f in (ROOT / "docs" / language).glob("*.md")}
    assert len(pages) > 12
    assert {f.stem for f in (site / language).glob("*.html")} - {"404", "index"} == pages
    contents = (site / language / "speed.html").read_text(encoding="utf-8")
    assert all(f'href="{page}.html"' in contents for page in pages - {"speed"})


def test_each_page_leads_to_itself_in_the_other_language(site):
    for page in (f.stem for f in (ROOT / "docs").glob("*.md")):
        ours = (site / f"{page}.html").read_text(encoding="utf-8")
        theirs = (site / "zh-CN" / f"{page}.html").read_text(encoding="utf-8")
        assert '<html lang="en"' in ours and '<html lang="zh"' in theirs
        assert f'<a href="zh-CN/{page}.html" lang="zh" hreflang="zh">中文</a>' in ours
        assert f'<a href="../{page}.html" lang="en" hreflang="en">English</a>' in theirs
        assert '<a href="../../index.zh-CN.html">← 课程首页</a>' in theirs


def test_nothing_is_loaded_from_the_net(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]+src="(https?:[^"]+)', text)
        loaded += re.findall(r'<link[^>]+rel="stylesheet"[^>]+href="(https?:[^"]+)', text)
        assert not loaded, page.name


def test_the_front_page_leads_to_every_page_and_each_back(site):
    front = (site.parent / "index.html").read_text(encoding="utf-8")
    found = dict(re.findall(r'<a href="docs/([a-z-]+)\.html">([^<]+)</a>', front))
    assert set(found) == {f.stem for f in (ROOT / "docs").glob("*.md")}
    for page, title in found.items():
        assert (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").startswith(f"# {title}")
        text = (site / f"{page}.html").read_text(encoding="utf-8")
        assert '<a href="../index.html">' in text, page


def test_pages_are_built_once_and_a_broken_link_is_told(tmp_path):
    for name in ("docs", "ci/mkdocs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for config in ("mkdocs.yml", "mkdocs.zh-CN.yml"):
        shutil.copy(ROOT / "ci" / config, tmp_path / "ci")
    out = tmp_path / "out" / "docs"
    first = {f: f.stat().st_mtime_ns for f in write_docs(tmp_path, out)}
    assert {f: f.stat().st_mtime_ns for f in write_docs(tmp_path, out)} == first
    page = tmp_path / "docs" / "speed.md"
    page.write_text(page.read_text(encoding="utf-8") + "\n[lost](nowhere.md)\n", encoding="utf-8")
    with pytest.raises(PortError, match=r"docs: cannot be built: .*nowhere\.md"):
        write_docs(tmp_path, out)
    shutil.copy(ROOT / "docs" / "speed.md", page)
    twin = tmp_path / "docs" / "zh-CN" / "speed.md"
    twin.write_text(twin.read_text(encoding="utf-8") + "\n[无](nowhere.md)\n", encoding="utf-8")
    with pytest.raises(PortError, match=r"zh-CN: cannot be built: .*nowhere\.md"):
        write_docs(tmp_path, out)
    assert write_docs(tmp_path / "out", tmp_path / "none") == []  # a folder of `dsv3-port start`
