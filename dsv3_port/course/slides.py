"""Slides of an executed notebook, from its written deck: one HTML file, no net, keys and touch.

Each slide fits 1280 × 720: a figure shrinks to the room that title and words leave. Arrow keys go on,
N shows the notes, and on a slide that builds something a countdown.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ..messages import tr, using
from .deck import WIDTH, Figure, Slide, deck_of, read_deck
from .diff import FOLD
from .gallery import gallery
from .links import page_name
from .pages import dark_colours, exporter, switch
from .slots import Slot, function_of
from .translations import code, versions
from .yours import slots

HIDE = {"tags": ["hide-input"]}


def deck(slides: list[Slide], nb: NotebookNode) -> NotebookNode:
    """The slides as a notebook: metadata.deck says where one starts and ends, what is a figure, what
    is a note. Outputs are those of the executed notebook `nb`."""
    cells: list[NotebookNode] = []
    by_id = {cell.get("id"): cell for cell in nb.cells}
    for slide in slides:
        shown = [new_markdown_cell(f"# {slide.title}\n\n{slide.text}")]
        notes = slide.notes
        for figure in slide.figures:
            shown.append(_shown(figure, by_id))
            if figure.kind == "build":
                clock = f'<span class="clock" data-minutes="{slots()[figure.of].minutes}"></span>'
                notes = f"{clock}\n\n{notes}"
        kinds = ["text", *["figure"] * (len(shown) - 1)]
        if notes:
            shown.append(new_markdown_cell(notes))
            kinds.append("note")
        for at, (cell, kind) in enumerate(zip(shown, kinds, strict=True)):
            cell.metadata.deck = {"start": at == 0, "end": at + 1 == len(shown), "kind": kind}
        cells += shown
    return new_notebook(cells=cells)


def _shown(figure: Figure, by_id: Mapping[str, NotebookNode]) -> NotebookNode:
    if figure.kind == "gallery":
        return _output(gallery(slots()[figure.of])._repr_html_() or "")
    if figure.kind == "build":
        slot = slots()[figure.of]
        minutes = tr("{n} minutes").format(n=slot.minutes)
        return new_markdown_cell(f"```python\n{signature(slot)}\n```\n\n**{minutes}**")
    cell = by_id.get(figure.of)
    if figure.kind == "code" and cell is not None:
        return new_markdown_cell(f"```python\n{cell.source}\n```")
    found = _chosen(cell.get("outputs", []) if cell is not None else [], figure.output)
    if found is None:
        none = tr("{cell}: this run has no such output.").format(cell=figure.of)
        return new_markdown_cell(f"*{none}*")
    return new_code_cell("", outputs=[found], metadata=HIDE)


def _chosen(outputs: list[Any], number: int) -> NotebookNode | None:
    """An output by its number from 1; 0: the first picture, else the first of all."""
    rich: list[NotebookNode] = [o for o in outputs if "data" in o]
    if number:
        return rich[number - 1] if number <= len(rich) else None
    pictures = [o for o in rich if {"image/png", "image/svg+xml"} & set(o.data)]
    return next(iter([*pictures, *rich]), None)


def _output(html: str) -> NotebookNode:
    return new_code_cell(
        "", outputs=[new_output("display_data", {"text/html": html})], metadata=HIDE
    )


def signature(slot: Slot) -> str:
    """The stub's first line and docstring, as wide as a slide has room at 24 pt."""
    function = function_of(slot.stub)
    said = " ".join((ast.get_docstring(function) or "").split())
    first = f"def {function.name}({', '.join(slot.parameters)}):"
    head = textwrap.wrap(first, WIDTH, subsequent_indent=" " * (len(function.name) + 5))
    text = textwrap.wrap(
        f'"""{said}"""',
        WIDTH,
        initial_indent="    ",
        subsequent_indent="    ",
        break_on_hyphens=False,
    )
    return "\n".join([*head, *text])


def write_slides(nb: NotebookNode, name: str, slides_dir: Path, notebooks_dir: Path) -> list[Path]:
    """slides_dir/NAME.html of an executed notebook that stands in notebooks_dir, if it has a deck, and
    one for each of the deck's twins."""
    there = versions(deck_of(notebooks_dir, name))
    made = []
    for language, written in there.items():
        slides_dir.mkdir(parents=True, exist_ok=True)
        page = page_name(name, language)
        known = (slides_dir.parent / "pages" / page).is_file()
        others = {k: page_name(name, k) for k in there if k != language}
        resources = {
            "metadata": {"name": name, "path": str(notebooks_dir)},
            "course": {
                "dark": dark_colours(),
                "others": switch(others),
                "index": page_name("index", language),
                "page": page if known else page_name(name),
            },
        }
        with using(code(language)):
            text, _ = exporter(notebooks_dir, slides_dir, "slides").from_notebook_node(
                deck(read_deck(written.read_text(encoding="utf-8")), nb), resources
            )
        text = text.replace(f"<details {FOLD}>", f"<details {FOLD} open>")
        file = slides_dir / page
        file.write_text(text, encoding="utf-8")
        made.append(file)
    return made
