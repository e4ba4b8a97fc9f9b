"""A pytest plugin for one file of the vendor's operator tests: the host NPU enabled before it is
imported, a time limit on each test, and, when asked, skips lifted and hidden methods found.

Four things skip a test there: the decorators of unittest, SupportedDevices and
SkipIfNotGteCANNVersion of torch_npu.testing. A method that a later one of its name hides is run
under another name. Nothing is written: the file is changed in memory.
"""

from __future__ import annotations

import ast
import importlib
import os
import signal
import sys
import types
import unittest
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LIFT, LIMIT = "DSV3_VENDOR_LIFT", "DSV3_VENDOR_LIMIT"
HIDDEN = "__hidden"
CHIP = "Ascend910B"
# files about NZ and other internal formats that leave it to their caller to allow them
INTERNAL_FORMATS = (
    "test_format_cast.py",
    "test_mla_prolog_v3.py",
    "test_npu_grouped_matmul.py",
    "test_npu_quant_matmul.py",
)


def lifted() -> bool:
    return bool(os.environ.get(LIFT))


def pytest_load_initial_conftests() -> None:
    from . import enable

    enable()
    if lifted():
        lift_skips()


def _same(*_: Any, **__: Any) -> Any:
    return lambda test: test


def lift_skips() -> None:
    """After torch and torch_npu are imported, whose own code uses the same decorators."""
    # by its full name: torch_npu.testing.common_utils, the attribute, is PyTorch's module
    common_utils = importlib.import_module("torch_npu.testing.common_utils")

    def for_this_chip(self: Any, test: Any) -> Any:
        if any(name.startswith(CHIP) for name in self.supported_devices):
            return test
        return _SKIP(f"for {', '.join(self.supported_devices)} only")(test)

    _SKIP = unittest.skip
    unittest.skip = unittest.skipIf = unittest.skipUnless = _same
    common_utils.SupportedDevices.__call__ = for_this_chip
    common_utils.SkipIfNotGteCANNVersion.__call__ = lambda self, test: test


def unhide(source: str) -> str:
    """The source with the earlier ones of equally named methods of a class renamed."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            left = Counter(n.name for n in methods if n.name.startswith("test"))
            for method in methods:
                if left[method.name] > 1:
                    left[method.name] -= 1
                    method.name = f"{method.name}{HIDDEN}{left[method.name]}"
    return ast.unparse(tree)


class File(pytest.Module):
    """A test file whose hidden methods are found."""

    def _getobj(self) -> Any:
        module = types.ModuleType(self.path.stem)
        module.__file__ = str(self.path)
        sys.modules[module.__name__] = module
        source = unhide(self.path.read_text(encoding="utf-8"))
        try:
            exec(compile(source, str(self.path), "exec"), module.__dict__)
        except Exception as error:
            raise self.CollectError(f"{type(error).__name__}: {error}") from error
        return module


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> Any:
    return File.from_parent(parent, path=module_path) if lifted() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without torch_npu's decorators of that name, which a file imports and pytest takes for tests."""
    items[:] = [i for i in items if i.nodeid.count("::") > 1 or not _imported(i)]


def _imported(item: pytest.Item) -> bool:
    return str(getattr(item, "function", item).__module__).startswith("torch_npu.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    limit = int(os.environ.get(LIMIT, "0"))

    def over(*_: Any) -> None:
        raise TimeoutError(f"longer than {limit} s of processor time")

    # not wall time: a busy machine would fail what is right
    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, limit)
    set_formats(item.path.name in INTERNAL_FORMATS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def set_formats(internal: bool) -> None:
    """Off is torch_npu's own state, in which it makes no tensor of an internal format."""
    import torch

    if internal:
        torch.get_device_module("npu").config.allow_internal_format = True
