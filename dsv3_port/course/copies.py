"""Copies of the notebooks for a class: with every answer filled in, and without prose."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from .filled import answers, fill
from .judge import EXERCISES
from .notebook import course_files

SOLVED, CLEAN = "solved", "clean"
_ASKED = re.compile(r"check\(\"([\w.]+)\"")


def solved(nb: NotebookNode) -> NotebookNode:
    """A copy whose slots hold their solutions and whose exercises their tested answers."""
    nb = deepcopy(nb)
    fill(nb, answers("solution"))
    for cell in nb.cells:
        asked = _ASKED.search(cell.source)
        if cell.cell_type == "code" and "exercise" in cell.metadata.get("tags", []) and asked:
            answer = EXERCISES[asked[1]].solution.strip()
            cell.source = f'{answer}\n\ncheck("{asked[1]}", answer)'
    return nb


def clean(nb: NotebookNode) -> NotebookNode:
    """A copy with headings and code only, for someone who tells the rest; solutions are left out."""
    nb = deepcopy(nb)
    kept = []
    for cell in nb.cells:
        if "solution" in cell.metadata.get("tags", []):
            continue
        if cell.cell_type == "markdown":
            prose = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
            cell.source = "\n".join(line for line in prose.splitlines() if re.match("#+ ", line))
        if cell.source.strip():
            kept.append(cell)
    nb.cells = kept
    return nb


def write_copies(notebooks_dir: Path, out_dir: Path) -> list[Path]:
    """out_dir/solved/NAME.ipynb and out_dir/clean/NAME.ipynb of every notebook of the course."""
    made = []
    for file in course_files(notebooks_dir):
        nb = nbformat.read(file, as_version=4)
        for name, copy in ((SOLVED, solved), (CLEAN, clean)):
            target = out_dir / name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(copy(nb), target)
            made.append(target)
    return made
