"""The slots of the notebooks as data: places in the model for one function of the learner's. One module
a notebook, each with a tuple SLOTS. Titles, hints and names of answers are shown in the reader's
language: their Chinese is in locale/zh.po.

Texts of Python code (stub, solution, accepted and wrong answers) define one function of the same name
and use `torch` only. tests/course/test_slots.py judges every one of them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...model.decoder import DeepseekV3
from ...plan import PortPlan
from ...steps import SECOND

Function = Callable[..., Any]


@dataclass(frozen=True)
class Wrong:
    """A usual wrong answer. `seen_by`: "model", the strict gate alone fails it too; "toy", only the
    toy's planted data or a refusal tell; "count", its numbers are right and a count is too high."""

    source: str
    hint: str
    seen_by: Literal["model", "toy", "count"] = "model"


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One place. Everything a notebook, the judge and the tests need, and nothing that runs.

    attach(twin, function) sets attributes of this twin and nothing else (model/decoder.py lists the
    hooks). toy(function, slot) is None for a right answer, the name of a wrong one, or a sentence;
    what the function raises goes through (`toys.Toy` makes one from data). calls(twin, cached) is
    how often the model calls the function for a prompt and so many cached steps, where that is
    known. count(twin) gives what must not be more than with the finished code: name -> number.
    """

    id: str  # "02.absorbed": notebook number, then the function's name
    notebook: str
    title: str
    minutes: int
    difficulty: int  # 1 to 3
    stub: str  # the cell as shipped: signature, docstring with shapes, body `...`
    solution: str  # 5 to 15 lines
    finished: str  # "model.attention:LowRankAttention.absorbed", shown beside a right answer
    hints: tuple[str, str, str]  # direction; the shapes line by line; one line of the solution
    wrong: Mapping[str, Wrong]  # three or more
    accepted: Mapping[str, str] = field(default_factory=dict)  # other right ways
    plan: PortPlan  # a whole model that runs the finished code here
    needs: Mapping[str, Any] = field(default_factory=dict)  # of any plan, for it to run here
    toy: Callable[[Function, Slot], str | None]
    attach: Callable[[DeepseekV3, Function], None]
    calls: Callable[[DeepseekV3, int], int] | None = None
    moment: str = ""  # of the calls, where it is not a prompt and cached steps
    count: Callable[[DeepseekV3], Mapping[str, int]] | None = None
    # (base, function) -> twin, where attributes are not enough: other weights, other ranks
    make: Callable[[DeepseekV3, Function], DeepseekV3] | None = None
    # the finished code into a twin, where the plan does not put it there
    finish: Callable[[DeepseekV3], None] | None = None
    # where no step of the model calls the function: (finished twin, judged twin) runs what does, in place
    # of the gate and the greedy tokens; "" or what is wrong. `looked` says what it looked at
    use: Callable[[DeepseekV3, DeepseekV3], str] | None = None
    # a further judge of the model, after the calls: (finished twin, source, file name) -> as a toy
    extra: Callable[[DeepseekV3, str, str], str | None] | None = None
    looked: str = ""  # what `extra` or `use` looked at, for a right function's verdict

    @property
    def part(self) -> int:
        """Of the course: 2 in a notebook of Part II."""
        return 2 if self.notebook in {s.notebook for s in SECOND} else 1

    @property
    def name(self) -> str:
        """Of the function."""
        return function_of(self.stub).name

    @property
    def parameters(self) -> list[str]:
        return [a.arg for a in function_of(self.stub).args.args]


def function_of(source: str, name: str = "") -> ast.FunctionDef:
    """The function of that name, or the last one, that a text defines at its top level; IndexError
    if there is none."""
    found = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)]
    return [n for n in found if name in ("", n.name)][-1]


def changed(source: str, *pairs: tuple[str, str]) -> str:
    """`source` with each (old, new), where old stands there exactly once: a wrong answer in the
    form of what it changes."""
    for old, new in pairs:
        if source.count(old) != 1:
            raise AssertionError(f"{old!r} stands {source.count(old)} times in the solution")
        source = source.replace(old, new)
    return source
