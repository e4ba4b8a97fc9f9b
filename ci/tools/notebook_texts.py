"""Which texts the code of a notebook shows: cells and headings of its tables, sentences, names of models.

An f-string becomes a text with numbered fields, f"{n} cached steps" "{0} cached steps"; messages.told
finds it again by its pattern.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

WORD = re.compile(r"[A-Za-z]{2}")
SAYS = re.compile(r"[A-Za-z]{3,}[ ,:]|[ ,:][A-Za-z]{3,}")  # a word beside something else
CODE = re.compile(
    r"[\\{<]|\b=|=\b|==|__|^\S*(?:/|\w\.\w|\w\(|[a-z]_[a-z])\S*$"
)  # code; a path, a name
PICTURE = re.compile(r"^plots\.|_(?:picture|plot|split|curve|census)$|^text_table$")
# prompts, which the embedded model reads in English, and keys of records
KEPT = (
    *("Once upon", "One windy", "In his bag", "Ana lives", "The spoon", "These people", "Wei had"),
    *("7 plus", "6 plus", "notebook "),
)


def shown_texts(tree: ast.Module) -> Iterator[str]:
    """Texts, each as often as it is there."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = ast.unparse(call.func)
        if name == "show.table":
            yield from _headings(call)
            made = [call, *_made_of(tree, call)]
            made += _looped_over(tree, made)
            yield from (text for node in made for text in (*_sentences(node), *_words(node)))
        elif name == "show.Shown":
            yield from (text for a in call.args for text in _sentences(a))
        elif PICTURE.search(name):
            strings = [a for a in call.args if isinstance(a, ast.Constant | ast.JoinedStr)]
            yield from (text for a in strings for text in _sentences(a))
        for keyword in call.keywords:
            if keyword.arg in ("names", "name"):
                yield from _sentences(keyword.value)
    for node in ast.walk(tree):  # names of models in pictures and verdicts
        if isinstance(node, ast.Dict):
            yield from (text for key in node.keys if key is not None for text in _sentences(key))
        elif isinstance(node, ast.DictComp):
            yield from _sentences(node.key)


def _words(node: ast.AST) -> Iterator[str]:
    """Single words that are a cell of a row, or the head of a column."""
    for part in ast.walk(node):
        kept = part.keys if isinstance(part, ast.Dict) else getattr(part, "elts", [])
        for cell in kept:
            if isinstance(cell, ast.Constant) and isinstance(cell.value, str):
                yield from re.findall(r"\A[a-z]{4,}\Z", cell.value)


def _headings(call: ast.Call) -> Iterator[str]:
    keys = [
        k for node in ast.walk(call) if isinstance(node, ast.Dict) for k in node.keys
    ]  # dicts of rows, wherever they are made within the call
    listed = [k.value for k in call.keywords if k.arg == "headers"] + call.args[1:2]
    keys += [e for node in listed if isinstance(node, ast.List | ast.Tuple) for e in node.elts]
    for key in keys:
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and WORD.search(key.value):
            yield key.value


def _made_of(tree: ast.Module, call: ast.Call) -> Iterator[ast.AST]:
    """Where the names that a call uses get their values, in this cell."""
    used = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Subscript) and _name(target.value) in used:
                    yield from (target.slice, node.value)
                elif _name(target) in used:
                    yield node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("append", "extend") and _name(node.func.value) in used:
                yield from node.args


def _looped_over(tree: ast.AST, made: list[ast.AST]) -> Iterator[ast.AST]:
    """What the loops of a cell go through, whose names stand in rows."""
    used = {n.id for node in made for n in ast.walk(node) if isinstance(n, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.comprehension):
            names = {n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)}
            if names & used and isinstance(node.iter, ast.Tuple | ast.List):
                yield node.iter


def _name(node: ast.AST | None) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _sentences(node: ast.AST) -> Iterator[str]:
    """Texts of a node that say something; code, paths and prompts do not."""
    inner = {id(part) for f in ast.walk(node) if isinstance(f, ast.JoinedStr) for part in f.values}
    for part in ast.walk(node):
        if isinstance(part, ast.JoinedStr):
            text = _numbered(part)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            text = "" if id(part) in inner else part.value
        else:
            continue
        bare = re.sub(r"\{\d\}", "0", text)
        if SAYS.search(bare) and not CODE.search(bare) and not text.startswith(KEPT):
            yield text


def _numbered(node: ast.JoinedStr) -> str:
    """An f-string with numbered fields; "" if what surrounds them says nothing."""
    text, at = "", 0
    for part in node.values:
        if isinstance(part, ast.Constant):
            text += str(part.value)
        else:
            text, at = f"{text}{{{at}}}", at + 1
    return text
