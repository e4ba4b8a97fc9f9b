"""The exercises of the notebooks as data: one module per notebook, each with a tuple EXERCISES.

A check returns None for a right answer, the name of an entry of `wrong` for a usual mistake, or a
sentence of its own for any other. Every solution and every usual mistake is run by
tests/course/test_judge.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Exercise:
    id: str  # "04.mask_value": notebook number, then a name
    notebook: str
    title: str
    minutes: int
    difficulty: int  # 1 to 3
    check: Callable[[Any], str | None]
    wrong: dict[
        str, tuple[Any, str]
    ]  # usual mistake -> (an answer that makes it, the hint it gets)
    solution: str  # Python code that assigns `answer`; the notebook shows it folded
    function: str = ""  # "f(x) that returns ...", where the answer must be a function

    def solved(self) -> Any:
        """The answer that the solution's code assigns."""
        names: dict[str, Any] = {}
        exec(self.solution, names)
        return names["answer"]

    def folded(self) -> str:
        """The Markdown of the folded solution, as it stands in the notebook."""
        return f"<details><summary>Solution 参考答案</summary>\n\n```python\n{self.solution.strip()}\n```\n\n</details>"
