"""The argument checks of the NPU operators, read from their source, and the test that breaks each:
`python ci/tools/contracts.py [--record | --mutate [WORDS]]`.

A check is one statement of dsv3_port/ops or of hostnpu/fusion_attention.py that refuses an argument, or that
warns of a size which a card refuses (`limit`).
Without options the tests that tests/ops/refusals.json names are run, and each check has to refuse in
its own, with the words that stand there (exit code 1 with findings). --record runs all tests of the
checks and writes that file; docs/operator-checks.md is printed from it. --mutate takes each check away
in turn, in this process, and runs its test, which must fail then; WORDS: only checks with these in
their names.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import io
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FunctionType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from contract_checks import PACKAGE, Check, call_of, checks

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "ops" / "refusals.json"
TESTS = (
    "contracts rules quantised attention_forms argument_checks attention_checks mla_prolog"
).split()
WORDS = re.compile(
    r"^(?P<operator>\w+): (?P<argument>.+?) is (?P<got>.*?); it must be (?P<wants>.*)$"
)


# ---- which test makes which check refuse ---------------------------------------------------------


class Recorder:
    """A pytest plugin: notes every ContractError by the check that made it and the test function."""

    def __init__(self, known: list[Check]) -> None:
        self.known = defaultdict(list)
        for check in known:
            self.known[str(PACKAGE / check.file)].append(check)
        self.test = ""
        self.seen: dict[Check, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))

    def pytest_runtest_call(self, item: Any) -> None:
        file = Path(item.path).relative_to(ROOT / "tests").as_posix()
        self.test = f"{file}::{item.originalname}"

    def note(self, message: str) -> None:
        frame = sys._getframe(2)
        while frame is not None:
            for check in self.known.get(frame.f_code.co_filename, ()):
                if check.first <= frame.f_lineno <= check.last:
                    self.seen[check][self.test].add(message)
                    return
            frame = frame.f_back  # type: ignore[assignment]

    @contextmanager
    def listening(self) -> Iterator[None]:
        from dsv3_port.ops.checks import ContractError

        recorder = self

        def noted(self: Any, *args: Any) -> None:
            RuntimeError.__init__(self, *args)
            recorder.note(str(args[0]) if args else "")

        ContractError.__init__ = noted  # type: ignore[method-assign]
        try:
            yield
        finally:
            del ContractError.__init__


def run(tests: list[str], *plugins: Any) -> tuple[int, str]:
    """pytest in this process: exit code and output."""
    import pytest

    said = io.StringIO()
    with redirect_stdout(said):
        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests], list(plugins))
    return int(code), said.getvalue()


def observed(tests: list[str], known: list[Check]) -> Recorder:
    recorder = Recorder(known)
    with recorder.listening():
        code, said = run(tests, recorder)
    if code:
        raise SystemExit(said[-3000:])
    return recorder


def stored() -> dict[str, dict[str, str]]:
    data: dict[str, dict[str, str]] = json.loads(DATA.read_text(encoding="utf-8"))
    return data


def record(known: list[Check]) -> dict[str, dict[str, str]]:
    """Each check with the operators and the argument that it names, what it asks for, and the test
    that has the fewest other checks to see."""
    seen = observed([str(ROOT / "tests" / "ops" / f"test_{t}.py") for t in TESTS], known).seen
    load: defaultdict[str, int] = defaultdict(int)
    for tests in seen.values():
        for test in tests:
            load[test] += 1
    found = {}
    for check in known:
        if check not in seen:
            continue
        operators = {m.split(":")[0] for messages in seen[check].values() for m in messages}
        test = min(seen[check], key=lambda t: (load[t], t))
        message = min(seen[check][test], key=lambda m: (len(m), m))
        parts = WORDS.match(message.replace("\n", " "))
        found[check.name] = {
            "operator": ", ".join(sorted(operators)),
            "argument": parts["argument"] if parts else "",
            "wants": parts["wants"] if parts else message.partition(": ")[2],
            "test": test,
        }
    return found


def findings(known: list[Check], data: dict[str, dict[str, str]]) -> list[str]:
    names = {check.name for check in known}
    found = [f"{name}: no test makes it refuse" for name in names if name not in data]
    found += [f"{name}: there is no such check any more" for name in data if name not in names]
    if found:
        return sorted(found)
    tests = {row["test"] for row in data.values()}
    seen = observed([str(ROOT / "tests" / test) for test in sorted(tests)], known).seen
    for check in known:
        row = data[check.name]
        messages = seen[check].get(row["test"], set()) if check in seen else set()
        if not any(row["wants"] in message.replace("\n", " ") for message in messages):
            found.append(f"{check.name}: {row['test']} does not see “{row['wants']}” any more")
    return found


# ---- without a check its test fails --------------------------------------------------------------


class _Without(ast.NodeTransformer):
    def __init__(self, check: Check) -> None:
        self.check = check

    def generic_visit(self, node: ast.AST) -> ast.AST:
        node = super().generic_visit(node)
        at = (getattr(node, "lineno", 0), getattr(node, "end_lineno", 0))
        if (
            isinstance(node, ast.stmt)
            and call_of(node)
            and at == (self.check.first, self.check.last)
        ):
            return ast.copy_location(ast.Pass(), node)
        return node


@contextmanager
def without(check: Check) -> Iterator[None]:
    """The package in this process with that statement taken away."""
    file = PACKAGE / check.file
    module = importlib.import_module(f"dsv3_port.{check.file[:-3].replace('/', '.')}")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (function,) = (
        n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == check.function
    )
    function = ast.fix_missing_locations(_Without(check).visit(function))
    function.decorator_list = []
    future = ast.parse("from __future__ import annotations").body
    code = compile(ast.Module([*future, function], []), str(file), "exec")
    scope: dict[str, Any] = {}
    exec(code, module.__dict__, scope)
    real = inspect.unwrap(getattr(module, check.function))
    assert isinstance(real, FunctionType)
    before = real.__code__
    real.__code__ = scope[check.function].__code__
    try:
        yield
    finally:
        real.__code__ = before


def mutate(known: list[Check], words: str) -> list[str]:
    data, survived = stored(), []
    for check in known:
        if words not in check.name:
            continue
        with without(check):
            code, _ = run([str(ROOT / "tests" / data[check.name]["test"])])
        print(f"{'noticed ' if code == 1 else 'SURVIVED'} {check.name}", flush=True)
        if code != 1:
            survived.append(f"{check.name}: without it {data[check.name]['test']} ends with {code}")
    return survived


# ---- the table -----------------------------------------------------------------------------------


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def table() -> str:
    """For docs/operator-checks.md: one row a check, by operator."""
    from dsv3_port.hostnpu.rules import enforced_by

    rows = ["| operator | argument | must be | the device's side | test |", "|---|---|---|---|---|"]
    data = sorted(stored().items(), key=lambda item: (item[1]["operator"], item[0]))
    for _, row in data:
        names = row["operator"].split(", ")
        device = enforced_by(names[0], row["argument"], row["wants"])
        cells = [", ".join(f"`{n}`" for n in names), _code(row["argument"]), _code(row["wants"])]
        rows.append(f"| {' | '.join(cells)} | {device} | `{row['test'].partition('::')[2]}` |")
    return "\n".join(rows)


def main(argv: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--mutate", nargs="?", const="", metavar="WORDS")
    args = parser.parse_args(argv)
    known = checks()
    if args.record:
        text = json.dumps(record(known), indent=1, ensure_ascii=False)
        DATA.write_text(text + "\n", encoding="utf-8")
    found = mutate(known, args.mutate) if args.mutate is not None else findings(known, stored())
    for line in found:
        print(line)
    print(f"{len(known)} checks, {len(found)} findings")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
