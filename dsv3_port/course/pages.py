"""Executed notebooks as pages that need no network (course/front.py makes the front page).

nbconvert's lab template does the work; formulas become MathML, which browsers draw themselves,
instead of a script from the net; links between notebooks become links between pages, pictures are
embedded.
"""

from __future__ import annotations

import base64
import itertools
import mimetypes
import os
import re
from collections.abc import Mapping
from functools import cache
from html import escape, unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from jupyter_core.paths import jupyter_path
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook
from traitlets.config import Config

from ..plots.style import CSS_CLASS, ON_DARK
from .diff import FOLD
from .translations import LANGUAGES, of_notebook, translated

TEMPLATES = Path(__file__).with_name("templates")
CONTENTS = "<!-- contents -->"  # where the page's template has room for them


def mathml(tex: str, display: str = "inline") -> str:
    """TeX as MathML; what the converter does not know stays legible as TeX."""
    try:
        return convert(tex.strip(), display=display)
    except Exception:  # its parser raises many kinds
        return f"<code>{escape(tex.strip())}</code>"


def page_link(url: str, notebooks_dir: Path, pages_dir: Path) -> str:
    """A link of a notebook as it must read in its page: NAME.ipynb -> NAME.html, other files
    relative to the page."""
    parts = urlsplit(url)
    if parts.scheme or parts.netloc or not parts.path:
        return url
    path = Path(unquote(parts.path))
    if len(path.parts) == 1 and path.suffix == ".ipynb":
        return parts._replace(path=f"{path.stem}.html").geturl()
    return parts._replace(
        path=Path(os.path.relpath(notebooks_dir / path, pages_dir)).as_posix()
    ).geturl()


def embedded(url: str, folder: Path) -> str:
    """A local picture as a data: URL; anything else as it was."""
    file = folder / unquote(url)
    if urlsplit(url).scheme or not file.is_file():
        return url
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def row_cards(table: str) -> str:
    """A table of more than four columns, marked so that a phone shows each row as a card: every cell
    names its column."""
    head, _, body = table.partition("</thead>")
    names = [
        re.sub(r"<[^>]+>", "", name).strip()
        for name in re.findall(r"<th\b[^>]*>(.*?)</th>", head, re.DOTALL)
    ]
    if len(names) <= 4 or not body:
        return table
    at = itertools.cycle(names)
    cells = re.sub(r"<td\b", lambda _: f'<td data-name="{next(at)}"', body)
    return f"{head}</thead>{cells}".replace("<table", '<table class="cards"', 1)


class _Renderer(IPythonRenderer):
    """Markdown to HTML with formulas, links and pictures as above."""

    def __init__(self, notebooks_dir: Path, pages_dir: Path, **options: Any) -> None:
        super().__init__(**options)
        self.notebooks_dir, self.pages_dir = notebooks_dir, pages_dir

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, page_link(url, self.notebooks_dir, self.pages_dir), title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return super().image(text, embedded(url, self.notebooks_dir), title)

    def _html_embed_images(self, html: str) -> str:
        """By the tags alone: nbconvert's parser would close a <details> that is opened here and
        ends further down."""
        return re.sub(
            r"""(<img\b[^>]*?\bsrc=["'])([^"']*)""",
            lambda found: found[1] + embedded(found[2], self.notebooks_dir),
            html,
        )


class PageExporter(HTMLExporter):
    """HTMLExporter with the package's renderer and one of its templates, "page" or "slides"."""

    def __init__(self, notebooks_dir: Path, pages_dir: Path, template: str = "page") -> None:
        hide = {
            "enabled": True,
            "remove_input_tags": {"hide-input"},
            "remove_cell_tags": {"injected-parameters"},
        }
        merge = {
            "enabled": True
        }  # a progress bar is one line that is written over, not a line for each state
        super().__init__(
            config=Config({"TagRemovePreprocessor": hide, "CoalesceStreamsPreprocessor": merge}),
            template_name=template,
            embed_images=True,
            extra_template_basedirs=[str(TEMPLATES)],
            extra_template_paths=[str(TEMPLATES)],
        )
        self.notebooks_dir, self.pages_dir = notebooks_dir, pages_dir

    def default_filters(self) -> Any:
        yield from super().default_filters()
        yield "markdown2html", self._markdown

    def _markdown(self, source: str) -> str:
        renderer = _Renderer(
            self.notebooks_dir,
            self.pages_dir,
            escape=False,
            embed_images=True,
            path=str(self.notebooks_dir),
            exclude_anchor_links=True,
        )
        html = MarkdownWithMath(renderer=renderer).render(source)
        tables = re.compile(r"<table>.*?</table>", re.DOTALL)  # of Markdown: raw HTML stays
        return tables.sub(lambda found: row_cards(found[0]), html)


def with_contents(page: str) -> str:
    """The page with a table of its second-level headings, which get names to link to; without where
    there are fewer than two."""
    links: dict[str, str] = {}

    def named(found: re.Match[str]) -> str:
        text = re.sub(r"<[^>]+>", "", found[1]).strip()
        name = re.sub(r"[^a-z0-9]+", "-", unescape(text).partition("·")[0].lower()).strip("-")
        name = name if name and name not in links else f"{name or 'section'}-{len(links) + 1}"
        links[name] = text
        return f'<h2 id="{name}">{found[1]}</h2>'

    page = re.sub(r"<h2>(.*?)</h2>", named, page, flags=re.DOTALL)
    items = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in links.items())
    table = (
        '<nav class="contents" aria-label="contents of this page"><details open><summary>Contents · '
        f"本页目录</summary><ol>{items}</ol></details></nav>"
    )
    return page.replace(CONTENTS, table if len(links) > 1 else "", 1)


@cache
def dark_colours() -> str:
    """JupyterLab's dark theme as nbconvert ships it, and dark pictures, for readers whose system is
    dark."""
    found = next(
        (
            folder / "nbconvert/templates/lab/static/theme-dark.css"
            for folder in map(Path, jupyter_path())
            if (folder / "nbconvert/templates/lab/static/theme-dark.css").is_file()
        ),
        None,
    )
    theme = found.read_text(encoding="utf-8") if found else ""
    return f"{theme}\n    .{CSS_CLASS} {{ filter: {ON_DARK}; }}"


def write_page(
    nb: NotebookNode,
    name: str,
    pages_dir: Path,
    notebooks_dir: Path,
    *,
    previous: str = "",
    following: str = "",
    others: Mapping[str, str] | None = None,
) -> Path:
    """pages_dir/NAME.html of an executed notebook that stands in notebooks_dir; others: page -> its
    language."""
    pages_dir.mkdir(parents=True, exist_ok=True)
    resources = {
        "metadata": {"name": name, "path": str(notebooks_dir)},
        "course": {
            "previous": previous,
            "next": following,
            "others": others or {},
            "dark": dark_colours(),
        },
    }
    text, _ = PageExporter(notebooks_dir, pages_dir).from_notebook_node(nb, resources)
    text = text.replace(f"<details {FOLD}>", f"<details {FOLD} open>")
    file = pages_dir / f"{name}.html"
    file.write_text(with_contents(text), encoding="utf-8")
    return file


def write_pages(
    nb: NotebookNode, file: Path, pages_dir: Path, *, previous: str = "", following: str = ""
) -> list[Path]:
    """The page of the executed notebook `file`, and one for each translation of it, which point at
    each other."""
    around = {"previous": previous, "following": following}
    others = of_notebook(file)
    links = {f"{file.stem}.{language}": LANGUAGES[language] for language in others}
    made = [write_page(nb, file.stem, pages_dir, file.parent, **around, others=links)]
    return made + [
        write_page(
            translated(nb, path, file),
            f"{file.stem}.{language}",
            pages_dir,
            file.parent,
            **around,
            others={file.stem: "English"},
        )
        for language, path in others.items()
    ]


def write_guide(folder: Path, guide_dir: Path) -> list[Path]:
    """guide_dir/NAME.html of every Markdown file in `folder`: the workshop's pages."""
    return [
        write_page(
            new_notebook(cells=[new_markdown_cell(file.read_text(encoding="utf-8"))]),
            file.stem,
            guide_dir,
            folder,
        )
        for file in sorted(folder.glob("*.md"))
    ]
