"""Rules for the cells of any notebook: format, no outputs, no slides, sizes, what pictures and paths they
name. ci/tools/check_notebooks.py has those of the anatomy and calls these."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MAX_CELLS, MAX_LINES, MAX_WIDTH = 42, 20, 100  # 40 and the two of the NPU picture
_REMOTE = re.compile(
    r"!\[[^\]]*\]\(\s*<?(?:https?:)?//|<img[^>]+src\s*=\s*[\"']?(?:https?:)?//", re.IGNORECASE
)
_IMAGE = re.compile(
    r"!\[[^\]]*\]\(\s*<?([^)\s>]+)|<img[^>]+src\s*=\s*[\"']?([^\"'\s>]+)", re.IGNORECASE
)
# folders that only one machine has; /usr/local and the like are documentation
_ABSOLUTE = re.compile(
    r"(?<![\w.:/~}>)-])/(?:home|root|Users|tmp|work|mnt|data)/[\w.-]+|\b[A-Z]:\\+Users\\"
)
Cell = dict[str, Any]


def source(cell: Cell) -> str:
    text = cell.get("source", "")
    return "".join(text) if isinstance(text, list) else text


def tags(cell: Cell) -> list[str]:
    return list(cell.get("metadata", {}).get("tags", []))


def code_cells(cells: Sequence[Cell]) -> list[Cell]:
    return [c for c in cells if c.get("cell_type") == "code"]


# ---- rules: each yields what is wrong, as (cell or None, sentence) -------------------------------

Finding = tuple["Cell | None", str]


def check_format(nb: dict[str, Any]) -> Iterator[Finding]:
    if (nb.get("nbformat"), nb.get("nbformat_minor")) != (4, 5):
        yield None, f"format {nb.get('nbformat')}.{nb.get('nbformat_minor')}, not 4.5"
    kernel = nb.get("metadata", {}).get("kernelspec", {}).get("name")
    if kernel != "python3":
        yield None, f"kernelspec {kernel!r}, not 'python3'"
    for left in sorted({"widgets", "papermill"} & set(nb.get("metadata", {}))):
        yield None, f"holds metadata of a run ({left}); strip it"
    seen: set[str] = set()
    for number, cell in enumerate(nb["cells"], 1):
        name = cell.get("id", "")
        if not name:
            yield None, f"cell {number} has no id"
        elif name in seen:
            yield cell, "its id is used twice"
        elif re.fullmatch(r"[0-9a-f]{8}(-?[0-9a-f]{4}){0,6}", name):
            yield cell, "its id is a random one that an editor gives; name the cell"
        seen.add(name)


def check_slides(nb: dict[str, Any]) -> Iterator[Finding]:
    for cell in nb["cells"]:
        if "slideshow" in cell.get("metadata", {}):
            yield cell, "has slideshow metadata; slides are written in workshop/deck"
            return


def check_stripped(nb: dict[str, Any]) -> Iterator[Finding]:
    for cell in code_cells(nb["cells"]):
        if cell.get("outputs"):
            yield cell, "has outputs; strip them (Edit, Clear Outputs of All Cells)"
        if cell.get("execution_count") is not None:
            yield cell, "has an execution count; strip it"


def check_size(nb: dict[str, Any]) -> Iterator[Finding]:
    if len(nb["cells"]) > MAX_CELLS:
        yield None, f"{len(nb['cells'])} cells, at most {MAX_CELLS}"
    for cell in code_cells(nb["cells"]):
        lines = source(cell).splitlines()
        if len(lines) > MAX_LINES:
            yield cell, f"{len(lines)} lines of code, at most {MAX_LINES}"
        for number, line in enumerate(lines, 1):
            if len(line) > MAX_WIDTH:
                yield cell, f"line {number} has {len(line)} characters, at most {MAX_WIDTH}"


def check_contents(nb: dict[str, Any], folder: Path = ROOT / "notebooks") -> Iterator[Finding]:
    """No remote picture, no path of one machine; pictures that are named exist."""
    for cell in nb["cells"]:
        text = source(cell)
        if cell.get("cell_type") == "markdown":
            if _REMOTE.search(text):
                yield cell, "shows a picture from the net; commit an SVG beside the notebook"
            for match in _IMAGE.finditer(text):
                name = match[1] or match[2]
                if "//" in name or name.startswith(("data:", "attachment:")):
                    continue
                if not (folder / name).is_file():
                    yield cell, f"shows {name}, which does not exist"
        if match_path := _ABSOLUTE.search(text):
            yield cell, f"names a path of one machine: {match_path[0]}"
