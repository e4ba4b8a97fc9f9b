"""Notebooks in another language: twins with the same code cells, shown with each other's outputs.

notebooks/zh-CN/NAME.ipynb holds the text; its cells have the ids of notebooks/NAME.ipynb, in its order.
A text cell keeps, as metadata.dsv3.source, the `fingerprint` of the text that it translates, and so
does the learner's own cell, whose comments and docstring may be translated. ci/tools/twins.py
writes twins and holds them against their originals; course/sections.py does the same for Markdown.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from ..errors import PortError

LANGUAGES = {"zh-CN": "中文"}  # folder -> how a link to it reads
OWN = "yours"  # tag of the learner's own cell: its comments and docstring are text
_ADDED = {"injected-parameters", "papermill-error-cell-tag"}  # cells that papermill puts in


def text_of(cell: Any) -> str:
    """The source of a cell, nbformat's or a plain dict's."""
    source = cell["source"]
    return "".join(source) if isinstance(source, list) else source


def fingerprint(text: str) -> str:
    """Twelve hexadecimal digits of a text, blind to white space at the ends of lines."""
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def tags(cell: Any) -> set[str]:
    return set(cell.get("metadata", {}).get("tags", []))


def is_text(cell: Any) -> bool:
    """Whether a cell holds something to translate: Markdown, or the learner's own code where it says
    anything beside code."""
    if cell["cell_type"] != "code":
        return True
    return OWN in tags(cell) and _says(text_of(cell))


def seal_of(cell: Any) -> str:
    """The fingerprint that a twin's cell keeps; "" if nobody has looked at it yet."""
    return str(cell.get("metadata", {}).get("dsv3", {}).get("source", ""))


def differences(original: Sequence[Any], twin: Sequence[Any]) -> list[str]:
    """What keeps a twin from being one: other cells, or other code. Cells are nbformat's, or plain
    dicts."""
    ours, theirs = ({c["id"]: c for c in cells} for cells in (original, twin))
    found = [f"cell {name}: missing" for name in ours if name not in theirs]
    found += [f"cell {name}: the original has no such cell" for name in theirs if name not in ours]
    if not found and [*ours] != [*theirs]:
        odd = next(a for a, b in zip(ours, theirs, strict=True) if a != b)
        found.append(f"cell {odd}: stands at another place than in the original")
    return found + [
        f"cell {name}: its {what} differs from the original's"
        for name, cell in ours.items()
        if name in theirs
        for what in _differs(cell, theirs[name])
    ]


def _differs(a: Any, b: Any) -> list[str]:
    if a["cell_type"] != b["cell_type"]:
        return ["kind"]
    found = ["list of tags"] if tags(a) != tags(b) else []
    if a["cell_type"] == "code":
        form = _bare if OWN in tags(a) else str
        found += ["code"] if form(text_of(a)) != form(text_of(b)) else []
    return found


def _bare(text: str) -> str:
    """Code without comments and docstrings, as Python writes it; the text itself if it is none."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return text
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return ast.unparse(tree)


def _says(text: str) -> bool:
    """Whether a cell of code has a comment or a docstring."""
    try:
        kinds = {t.type for t in tokenize.generate_tokens(io.StringIO(text).readline)}
        return tokenize.COMMENT in kinds or _bare(text) != ast.unparse(ast.parse(text))
    except (SyntaxError, tokenize.TokenError):
        return True


def stale(original: Sequence[Any], twin: Sequence[Any]) -> list[str]:
    """Ids of the cells whose text is to be translated, or looked at again."""
    theirs = {c["id"]: c for c in twin}
    return [
        cell["id"]
        for cell in original
        if is_text(cell)
        and cell["id"] in theirs
        and seal_of(theirs[cell["id"]]) != fingerprint(text_of(cell))
    ]


def translated(executed: NotebookNode, file: Path, original: Path) -> NotebookNode:
    """The executed notebook with the text of `file`, where it was made of `original`. PortError where
    the two do not match. What was written into the learner's cells stays."""
    nb, texts = deepcopy(executed), nbformat.read(file, as_version=4).cells
    source = nbformat.read(original, as_version=4).cells
    wrong = differences(source, texts)
    if wrong:
        raise PortError(f"{file}: {wrong[0]}; change both files together")
    before, after = ({c.id: c for c in cells} for cells in (source, texts))
    for cell in nb.cells:
        if cell.id in after and not tags(cell) & _ADDED and cell.source == before[cell.id].source:
            cell.source = after[cell.id].source
    return nb


def versions(file: Path) -> dict[str, Path]:
    """Language ("" for English) -> file, of a notebook or text that is there in one or more."""
    home = file.parent.parent if file.parent.name in LANGUAGES else file.parent
    found = {"": home / file.name} | {name: home / name / file.name for name in LANGUAGES}
    return {language: path for language, path in found.items() if path.is_file()}


def of_language(file: Path, reader: str) -> Path:
    """The version of an original for a reader of en or zh, the original where there is none."""
    return next((p for name, p in versions(file).items() if code(name) == reader), file)


def code(language: str) -> str:
    """A folder's language as messages.py calls it: zh-CN -> zh, "" -> en."""
    return language.partition("-")[0] or "en"
