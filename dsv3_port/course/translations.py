"""Notebooks in another language: files of their own with the same code cells, shown with the
outputs of the original.

notebooks/zh-CN/NAME.ipynb holds the text; cells have the ids of notebooks/NAME.ipynb, in its order.
Nothing runs twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from ..errors import PortError

LANGUAGES = {"zh-CN": "中文"}  # folder -> how a link to it reads


def differences(original: Sequence[Any], translation: Sequence[Any]) -> list[str]:
    """What keeps a translation from being one: other cells, or other code. Cells are nbformat's, or
    plain dicts."""
    ours, theirs = ([c["id"] for c in cells] for cells in (original, translation))
    if ours != theirs:
        odd = next(
            (a or b for a, b in zip([*ours, None], [*theirs, None], strict=False) if a != b), None
        )
        return [f"its cells are not those of the original, from {odd} on"]
    return [
        f"cell {a['id']}: its code differs from the original's"
        for a, b in zip(original, translation, strict=True)
        if a["cell_type"] != b["cell_type"] or a["cell_type"] == "code" and _text(a) != _text(b)
    ]


def _text(cell: Any) -> str:
    source = cell["source"]
    return "".join(source) if isinstance(source, list) else source


def translated(executed: NotebookNode, file: Path) -> NotebookNode:
    """The executed notebook with the text of the translation in `file`. PortError where the two do
    not match."""
    nb, texts = deepcopy(executed), nbformat.read(file, as_version=4).cells
    known = {c.id for c in texts}
    added = {"injected-parameters", "papermill-error-cell-tag"}
    own = [c for c in nb.cells if c.id in known or not added & set(c.metadata.get("tags", []))]
    wrong = differences(own, texts)
    if wrong:
        raise PortError(f"{file}: {wrong[0]}; change both files together")
    for cell, text in zip(own, texts, strict=True):
        cell.source = text.source
    return nb


def of_notebook(file: Path) -> dict[str, Path]:
    """Language -> translation of a notebook, for those that are there."""
    found = {language: file.parent / language / file.name for language in LANGUAGES}
    return {language: path for language, path in found.items() if path.is_file()}
