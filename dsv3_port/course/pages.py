"""Executed notebooks as pages that need no network (course/front.py makes the front page).

nbconvert's lab template does the work; formulas become MathML, which browsers draw themselves,
instead of a script from the net; links between notebooks become links between pages, pictures are
embedded.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Mapping
from functools import cache, lru_cache
from html import escape, unescape
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_path
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook
from traitlets.config import Config

from ..errors import PortError
from ..messages import language as reader
from ..messages import told, tr, using
from ..plots.style import CSS_CLASS, ON_DARK
from .diff import FOLD
from .links import embedded, page_link, page_name
from .sections import without_marks
from .translations import LANGUAGES, code, translated, versions

TEMPLATES = Path(__file__).with_name("templates")
LONG = 40  # characters of a cell that a phone has no room for beside three others
CONTENTS = "<!-- contents -->"  # where the page's template has room for them


def mathml(tex: str, display: str = "inline") -> str:
    """TeX as MathML; what the converter does not know stays legible as TeX."""
    try:
        return convert(tex.strip(), display=display)
    except Exception:  # its parser raises many kinds
        return f"<code>{escape(tex.strip())}</code>"


def row_cards(table: str) -> str:
    """A table of more than four columns, or of four with a long text, marked so that a phone shows each
    row as a card: every cell names its column."""
    head, _, body = table.partition("</thead>")
    names = [
        re.sub(r"<[^>]+>", "", name).strip()
        for name in re.findall(r"<th\b[^>]*>(.*?)</th>", head, re.DOTALL)
    ]
    texts = re.findall(r"<td\b[^>]*>(.*?)</td>", body, re.DOTALL)
    few = 4 if max((len(re.sub(r"<[^>]+>", "", t)) for t in texts), default=0) <= LONG else 3
    if len(names) <= few or not body:
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

    def __init__(self, notebooks_dir: Path, pages_dir: Path, template: str, language: str) -> None:
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
            language_code=language,
            extra_template_basedirs=[str(TEMPLATES)],
            extra_template_paths=[str(TEMPLATES)],
        )
        self.notebooks_dir, self.pages_dir = notebooks_dir, pages_dir
        self.environment.globals |= {"tr": tr, "told": told}

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


def exporter(notebooks_dir: Path, pages_dir: Path, template: str = "page") -> PageExporter:
    """The one for these folders and the reader's language, made at its first page: reading and compiling
    nbconvert's templates takes longer than a page."""
    return _exporter(notebooks_dir, pages_dir, template, reader())


_exporter = lru_cache(maxsize=16)(PageExporter)


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
    label, head = tr("contents of this page"), tr("Contents")
    table = (
        f'<nav class="contents" aria-label="{label}"><details open><summary>'
        f"{head}</summary><ol>{items}</ol></details></nav>"
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
    language: str = "",
    others: Mapping[str, str] | None = None,
) -> Path:
    """pages_dir/NAME.html of an executed notebook that stands in notebooks_dir, in a language ("":
    English) that the page's own words then have; others: language -> page."""
    pages_dir.mkdir(parents=True, exist_ok=True)
    resources = {
        "metadata": {"name": name, "path": str(notebooks_dir)},
        "course": {
            "previous": previous,
            "next": following,
            "others": switch(others or {}),
            "index": page_name("index", language),
            "dark": dark_colours(),
        },
    }
    with using(code(language)):
        text, _ = exporter(notebooks_dir, pages_dir).from_notebook_node(nb, resources)
        text = with_contents(text.replace(f"<details {FOLD}>", f"<details {FOLD} open>"))
    file = pages_dir / page_name(name, language)
    file.write_text(text, encoding="utf-8")
    return file


def switch(others: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(language's code, its name, page) of a page's other languages."""
    return [(lang or "en", LANGUAGES.get(lang, "English"), page) for lang, page in others.items()]


def write_pages(
    nb: NotebookNode, file: Path, pages_dir: Path, *, previous: str = "", following: str = ""
) -> list[Path]:
    """A page in each language of the notebook `file`, which was executed in one of them; they share
    its outputs and point at each other. A twin that does not fit any more, as after a cell of the
    learner's own, is left out and told: the notebook itself ran."""
    texts, made = {}, []
    for language, path in versions(file).items():
        try:
            texts[language] = path, nb if path == file else translated(nb, path, file)
        except PortError as error:
            print(f"{error}; no page of it is written", file=sys.stderr)
    there = {language: path for language, (path, _) in texts.items()}
    for language, (path, text) in texts.items():
        near = [
            page_name(name, language if (path.parent / f"{name}.ipynb").is_file() else "")
            for name in (previous, following)
        ]
        made.append(
            write_page(
                text,
                file.stem,
                pages_dir,
                path.parent,
                previous=near[0] if previous else "",
                following=near[1] if following else "",
                language=language,
                others={k: page_name(file.stem, k) for k in there if k != language},
            )
        )
    return made


def write_guide(folder: Path, guide_dir: Path) -> list[Path]:
    """guide_dir/NAME.html of every Markdown file in `folder`, and of its twins: the workshop's pages."""
    made = []
    for file in sorted(folder.glob("*.md")):
        there = versions(file)
        for language, path in there.items():
            text = without_marks(path.read_text(encoding="utf-8"))
            made.append(
                write_page(
                    new_notebook(cells=[new_markdown_cell(text)]),
                    file.stem,
                    guide_dir,
                    path.parent,
                    language=language,
                    others={k: page_name(file.stem, k) for k in there if k != language},
                )
            )
    return made
