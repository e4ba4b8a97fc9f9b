"""Do something right after a module was imported, whenever that is: torchair takes longer to import
than torch, and most processes on the host NPU never need it."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any


class _Loader(importlib.abc.Loader):
    def __init__(
        self, real: Any, within: Callable[[], AbstractContextManager[Any]], then: Callable[[], None]
    ) -> None:
        self.real, self.within, self.then = real, within, then

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.real.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        with self.within():
            self.real.exec_module(module)
            self.then()

    def __getattr__(self, name: str) -> Any:  # get_source and the like, for inspect and tracebacks
        return getattr(self.real, name)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, *actions: Any) -> None:
        self.name, self.actions = name, actions

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, *self.actions)
        return spec


def after_import(
    name: str, within: Callable[[], AbstractContextManager[Any]], then: Callable[[], None]
) -> None:
    """`then()` when the module `name` has been imported: now, if it is there already. Import and
    `then` both run in the context `within()`; an error of either is the import's."""
    if name in sys.modules:
        with within():
            then()
    else:
        sys.meta_path.insert(0, _Finder(name, within, then))
