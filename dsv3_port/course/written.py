"""What a learner wrote, as text and as a function: is there anything in it, has it the stub's
parameters, and on which line did it fail."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import textwrap
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import PortError
from ..messages import tr
from .slots import Function, Slot, function_of


@dataclass(frozen=True)
class Written:
    """A function with its text. `file` is the cell's or file's name, under which errors name lines;
    `text` is empty where Python kept none."""

    function: Function
    text: str = ""
    file: str = ""
    first: int = 1  # line of `file` on which the text begins

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def placed(self) -> str:
        """The text with its lines where they stand in `file`: what is executed elsewhere under that
        name."""
        return "\n" * (self.first - 1) + self.text


@dataclass(frozen=True)
class Sent:
    """A function on its way to other processes: its text, executed there under the cell's file name,
    so that errors show its line. It finds `torch` there and nothing else of the notebook."""

    text: str
    name: str
    file: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _loaded(self.text, self.name, self.file)(*args, **kwargs)


def written(function: Function) -> Written:
    """Of a function that was defined in a cell or a file."""
    try:
        text = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        text = ""
    code = getattr(function, "__code__", None)
    if code is None:
        return Written(function, text)
    return Written(function, text, code.co_filename, code.co_firstlineno if text else 1)


def _unmarked(_: str, filled: str = "") -> Any:
    """`@slot(...)` where a text is read for its function alone."""
    return lambda function: function


def load_function(text: str, name: str, file: str = "") -> Function:
    """The function `name` that a text of Python code defines, with `torch` given; errors show the
    text's lines under `file`. This is also how a rank gets it."""
    file = file or f"<{name} {abs(hash(text)):x}>"
    if file.startswith("<"):
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    # no __name__: Dynamo would import a module of that name
    names: dict[str, Any] = {"torch": torch, "slot": _unmarked}
    exec(compile(text, file, "exec"), names)
    if not callable(found := names.get(name)):
        raise PortError(f"{file}: defines no function {name}")
    return found


_loaded = functools.cache(load_function)


def is_empty(text: str, name: str = "") -> bool:
    """Nothing in the function but a docstring, then `...`, `pass` or `raise NotImplementedError`."""
    try:
        body = function_of(textwrap.dedent(text), name).body
    except (SyntaxError, IndexError):
        return False
    return all(_says_nothing(node) for node in body)


def _says_nothing(node: ast.stmt) -> bool:
    if isinstance(node, ast.Raise):
        what = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return isinstance(what, ast.Name) and what.id == "NotImplementedError"
    return isinstance(node, ast.Pass) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def other_parameters(function: Function, slot: Slot) -> str:
    """How its parameters differ from the stub's, as a sentence; empty if they do not."""
    wanted = inspect.signature(load_function(slot.stub, slot.name)).parameters
    try:
        found = inspect.signature(function).parameters
    except (TypeError, ValueError):
        said = tr("this is a {kind}, not a function {name}")
        return said.format(kind=type(function).__name__, name=slot.name)

    def shape(parameters: Mapping[str, inspect.Parameter]) -> list[tuple[Any, ...]]:
        return [(p.name, p.kind, p.default) for p in parameters.values()]

    if shape(found) == shape(wanted):
        return ""
    return tr(
        "the model calls {name}({wanted}); yours takes ({found}). Keep the first line as it was given"
    ).format(name=slot.name, wanted=", ".join(wanted), found=", ".join(found))


@dataclass(frozen=True)
class Place:
    """Where a function stopped: line of the cell or file, its text, shapes of the tensors there."""

    error: str  # kind and first line
    line: int = 0  # 0: not in the learner's text
    text: str = ""
    shapes: Mapping[str, list[int]] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.line:
            return self.error
        shapes = ", ".join(f"{name} {shape}" for name, shape in self.shapes.items())
        there = tr(" (there: {shapes})").format(shapes=shapes) if shapes else ""
        said = tr("line {n}, `{text}`: {error}{there}")
        return said.format(n=self.line, text=self.text, error=self.error, there=there)


def place_of(error: BaseException, file: str, text: str = "") -> Place:
    """The innermost frame of `error` that runs code of `file`, whose lines are `text` if Python keeps
    none."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    said = f"{type(error).__name__}: {first}".rstrip(": ")
    if isinstance(error, SyntaxError) and error.filename == file:
        return Place(said, error.lineno or 0, (error.text or "").strip())
    frames = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == file
    ]
    if not frames:
        return Place(said)
    frame, line = frames[-1]
    shapes = {n: list(v.shape) for n, v in frame.f_locals.items() if isinstance(v, Tensor)}
    kept = linecache.getline(file, line) or dict(enumerate(text.splitlines(), 1)).get(line, "")
    return Place(said, line, kept.strip(), shapes)
