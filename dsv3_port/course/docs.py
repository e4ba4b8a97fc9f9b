"""docs/ of this checkout as pages beside the course's, by mkdocs, a site for each language."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from importlib.util import find_spec
from pathlib import Path

from ..errors import PortError
from .translations import LANGUAGES


def write_docs(root: Path, folder: Path) -> list[Path]:
    """folder/NAME.html of every root/docs/NAME.md, and folder/zh-CN/NAME.html of its twin, made anew
    where a source is younger.

    Nothing without docs/ (a folder of `dsv3-port start`) or without mkdocs (an environment without
    [dev]). PortError with mkdocs' own words for a broken link.
    """
    configs = {
        language: config
        for language in ("", *LANGUAGES)  # English first: mkdocs empties the folder
        if (config := root / "ci" / f"mkdocs{language and '.'}{language}.yml").is_file()
    }
    sources = {f: folder / k / f"{f.stem}.html" for k in configs for f in _texts(root, k)}
    if not sources or find_spec("material") is None:
        return []
    theme = [f for f in (root / "ci" / "mkdocs").rglob("*") if f.is_file()]
    newest = max(f.stat().st_mtime for f in (*sources, *theme, *configs.values()))
    pages = list(sources.values())
    if not all(f.is_file() and f.stat().st_mtime > newest for f in pages):
        for language, config in configs.items():
            _build(root / "docs" / language, config, folder / language)
    return pages


def _texts(root: Path, language: str) -> list[Path]:
    return sorted((root / "docs" / language).glob("*.md"))


def _build(texts: Path, config: Path, site: Path) -> None:
    # not --quiet, which hides from --strict the warnings that it counts
    words = ["build", "--strict", "--config-file", str(config), "--site-dir", str(site.resolve())]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *words],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise PortError(f"{texts}: cannot be built: {' '.join(done.stderr.split())[-300:]}")


def docs_links(out_dir: Path, language: str = "") -> list[tuple[str, str]]:
    """(link, title) of each page that lies in out_dir/docs, by name; in a language where it is there
    in that."""
    found = []
    for file in sorted((out_dir / "docs").glob("*.html")):
        if file.stem not in ("404", "index"):
            other = file.parent / language / file.name
            page = other if language and other.is_file() else file
            found.append((page.relative_to(out_dir).as_posix(), title_of(page)))
    return found


def title_of(page: Path) -> str:
    """Its first heading, without tags."""
    found = re.search(r"<h1[^>]*>(.*?)</h1>", page.read_text(encoding="utf-8"), re.DOTALL)
    text = re.sub(r"<a class=\"headerlink\".*?</a>|<[^>]+>", "", found[1]) if found else ""
    return unescape(text).strip() or page.stem
