"""Slides of an executed notebook, from its own slideshow metadata: one HTML file, no net, keys and
touch.

slide and subslide begin a slide, fragment and no type go on with it, skip is left out, notes are
the speaker's (key N).
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from nbformat import NotebookNode

from .pages import PageExporter, dark_colours


def deck(nb: NotebookNode) -> NotebookNode:
    """A copy without what is skipped; metadata.deck says where a slide starts, where it ends, what
    is a note."""
    nb = deepcopy(nb)

    def kind(cell: NotebookNode) -> str:
        return str(cell.metadata.get("slideshow", {}).get("slide_type", "") or "-")

    hidden = {"injected-parameters", "papermill-error-cell-tag"}
    nb.cells = [
        c for c in nb.cells if kind(c) != "skip" and not hidden & set(c.metadata.get("tags", []))
    ]
    for at, cell in enumerate(nb.cells):
        starts = at == 0 or kind(cell) in ("slide", "subslide")
        ends = at + 1 == len(nb.cells) or kind(nb.cells[at + 1]) in ("slide", "subslide")
        cell.metadata.deck = {"start": starts, "end": ends, "note": kind(cell) == "notes"}
    return nb


def write_slides(nb: NotebookNode, name: str, slides_dir: Path, notebooks_dir: Path) -> Path:
    """slides_dir/NAME.html of an executed notebook that stands in notebooks_dir."""
    slides_dir.mkdir(parents=True, exist_ok=True)
    resources = {
        "metadata": {"name": name, "path": str(notebooks_dir)},
        "course": {"dark": dark_colours()},
    }
    text, _ = PageExporter(notebooks_dir, slides_dir, "slides").from_notebook_node(
        deck(nb), resources
    )
    file = slides_dir / f"{name}.html"
    file.write_text(text, encoding="utf-8")
    return file
