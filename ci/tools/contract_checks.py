"""The argument checks of the NPU operators as their source has them: every statement that refuses an
argument. ci/tools/contracts.py asks which test makes each of them refuse."""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "dsv3_port"
FILES = ("ops/*.py", "hostnpu/fusion_attention.py")
NOT_CHECKS = ("checks.py", "wide.py")  # what the checks themselves call
HELPERS = ("floating", "same_dtype", "dtype_of", "shape_of", "one_of", "limit")


@dataclass(frozen=True)
class Check:
    """file: below dsv3_port; lines of its statement."""

    file: str
    function: str
    about: str  # the argument as the source names it
    number: int  # of those of one function about one argument
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.file}:{self.function}:{self.about}:{self.number}"


def call_of(statement: ast.stmt) -> ast.Call | None:
    """The call by which a statement refuses, if it does."""
    value = statement.exc if isinstance(statement, ast.Raise) else None
    wanted: tuple[str, ...] = ("bad", "ContractError")
    if isinstance(statement, ast.Expr):
        value, wanted = statement.value, HELPERS
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in wanted:
        return value
    return None


def _about(call: ast.Call) -> str:
    if len(call.args) < 2:
        return "words"
    argument = call.args[1]
    return str(argument.value) if isinstance(argument, ast.Constant) else ast.unparse(argument)


def checks() -> list[Check]:
    found = []
    for file in sorted(f for pattern in FILES for f in PACKAGE.glob(pattern)):
        if file.name in NOT_CHECKS:
            continue
        for function in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(function, ast.FunctionDef):
                continue
            seen: defaultdict[str, int] = defaultdict(int)
            for node in ast.walk(function):
                if not isinstance(node, ast.stmt) or (call := call_of(node)) is None:
                    continue
                about = _about(call)
                seen[about] += 1
                where = file.relative_to(PACKAGE).as_posix()
                last = node.end_lineno or node.lineno
                found.append(Check(where, function.name, about, seen[about], node.lineno, last))
    return sorted(found, key=lambda c: (c.file, c.first))
