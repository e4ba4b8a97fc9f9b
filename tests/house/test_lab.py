"""Every name of dsv3_port.lab resolves, and so does every name that a notebook takes from the
package."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import nbformat
import pytest

from dsv3_port import lab
from dsv3_port.paths import repo_root

NOTEBOOKS = sorted((repo_root() / "notebooks").rglob("*.ipynb"))
# besides lab: the parts that a notebook teaches, and exercises' own data
TAUGHT = (
    "dsv3_port",
    "dsv3_port.course.exercises",
    "dsv3_port.engine",
    "dsv3_port.hostnpu",
    "dsv3_port.lab",
    "dsv3_port.model",
    "dsv3_port.ops",
    "dsv3_port.parallel",
    "dsv3_port.steps",
    "dsv3_port.weights",
)


@pytest.mark.parametrize("name", dir(lab))
def test_a_name_of_lab_resolves(name):
    assert getattr(lab, name) is not None


def test_a_name_that_is_not_there_is_told():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lab.nothing  # noqa: B018
    with pytest.raises(AttributeError, match=r"plots has no 'nothing': plots\.bars"):
        lab.plots.nothing  # noqa: B018


def test_several_modules_are_read_as_one():
    assert {"ladder", "cost_curve", "memory_bars", "save"} <= set(dir(lab.plots))
    assert lab.plots.ladder is importlib.import_module("dsv3_port.plots.bars").ladder


@lru_cache
def code(file: Path) -> ast.Module:
    cells = nbformat.read(file, as_version=4).cells
    lines = [line for c in cells if c.cell_type == "code" for line in c.source.splitlines()]
    return ast.parse("\n".join(line for line in lines if not line.lstrip().startswith(("%", "!"))))


def taken(file: Path) -> dict[str, tuple[str, str]]:
    """What a notebook imports from the package: its name there -> (module, name)."""
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(code(file))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dsv3_port")
        for alias in node.names
    }


def thing(module: str, name: str) -> Any:
    found = importlib.import_module(module)
    return (
        getattr(found, name)
        if hasattr(found, name)
        else importlib.import_module(f"{module}.{name}")
    )


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_what_a_notebook_takes_is_there(file):
    names = taken(file)
    assert {
        m for m, _ in names.values() if not m.startswith(TAUGHT[1:]) and m != TAUGHT[0]
    } == set()
    found = {name: thing(*at) for name, at in names.items()}
    for node in ast.walk(code(file)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            what = found.get(node.value.id)
            if what is not None and (
                isinstance(what, lab._Several)
                or hasattr(what, "__path__")
                or hasattr(what, "__file__")
            ):
                assert hasattr(what, node.attr), f"{node.value.id}.{node.attr}"


def test_what_times_eager_models_imports_no_dynamo():
    """Dynamo takes as long as the rest of torch, in every notebook and in every rank."""
    code = (
        "import sys\nimport dsv3_port.lab as lab\n"
        "[getattr(lab, name) for name in ('bench_ladder', 'decode_call', 'census', 'plots', 'check')]\n"
        "import dsv3_port.bench.sweep, dsv3_port.bench.worlds, dsv3_port.check.rank_calls\n"
        "print('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
