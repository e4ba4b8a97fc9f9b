"""The table of GE operators: how a function becomes one, and how a node's inputs and attributes
reach it.

A function takes its inputs by the names of the operator's definition (Ascend IR, as quoted in
torchair's converters) and its attributes by theirs. Both are checked: what the definition here does
not list raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import PortError
from . import launched

Results = list[Tensor]
# ge::DataType, as in the attributes dst_type and dtype: numbered as aclDataType
GE_TYPES = launched.DTYPES | {10: torch.uint64}


class GraphError(PortError):
    """A graph that cannot be executed as it stands."""


@dataclass(frozen=True)
class Operator:
    """What the interpreter knows of one operator type; `operator` describes the fields."""

    function: Callable[..., Any]
    inputs: tuple[str, ...]
    attributes: dict[str, Any]
    only: dict[str, Any]
    free: tuple[str, ...]
    writes: tuple[str, ...]
    written_at: int

    def settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """The function's attributes for a node that has the `given` ones; GraphError for one that
        is not known."""
        unknown = given.keys() - self.attributes.keys() - self.only.keys() - set(self.free)
        if unknown:
            raise GraphError(f"attribute {min(unknown)} is not known to the interpreter")
        for key, value in self.only.items():
            if given.get(key, value) != value:
                raise GraphError(
                    f"attribute {key} is {given[key]!r}; the interpreter knows {value!r} only"
                )
        values = self.attributes | {k: v for k, v in given.items() if k in self.attributes}
        missing = [k for k, v in values.items() if v is ...]
        if missing:
            raise GraphError(f"attribute {missing[0]} is missing")
        return values

    def __call__(
        self, names: list[str], fed: list[Tensor | None], given: dict[str, Any]
    ) -> Results:
        result = self.function(*_bind(self.inputs, names, fed), **self.settings(given))
        return [result] if isinstance(result, Tensor) else list(result)


OPERATORS: dict[str, Operator] = {}


def operator(
    name: str,
    inputs: str,
    only: dict[str, Any] | None = None,
    free: tuple[str, ...] = (),
    writes: str | None = None,
    written_at: int = 0,
    **attributes: Any,
) -> Callable[..., Any]:
    """Register a function as operator `name`.

    inputs: names in order, "?" behind an optional one, "*" behind a list (x0, x1, ...). attributes:
        name=default, `...`
    where there is none. only: attributes that may have just this value, and do not reach the
    function. free: those that say how to run it and not what comes out. writes: the inputs
    that it changes in place and returns, in their order, from output `written_at` on.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATORS[name] = Operator(
            function,
            tuple(inputs.split()),
            attributes,
            only or {},
            free,
            tuple((writes or "").split()),
            written_at,
        )
        return function

    return register


def _bind(wanted: tuple[str, ...], names: list[str], fed: list[Tensor | None]) -> list[Any]:
    if len(names) != len(fed):
        raise GraphError(f"{len(fed)} inputs, and {len(names)} descriptions of them")
    rest = dict(zip(names, fed, strict=True))
    if len(rest) != len(names):
        raise GraphError(f"two inputs have one name, of {', '.join(names)}")
    bound: list[Any] = []
    for word in wanted:
        name = word.rstrip("?*")
        if word.endswith("*"):
            bound.append(_listed(name, rest))
            continue
        value = rest.pop(name, None)
        if value is None and not word.endswith("?"):
            raise GraphError(f"input {name} is not fed")
        bound.append(value)
    if rest:
        raise GraphError(f"input {min(rest)} is not known to the interpreter")
    return bound


def _listed(name: str, rest: dict[str, Tensor | None]) -> list[Tensor]:
    """Takes name0, name1, ... out of `rest`."""
    keys = [k for k in rest if k[: len(name)] == name and k[len(name) :].isdecimal()]
    if keys != [f"{name}{i}" for i in range(len(keys))]:
        raise GraphError(f"the list {name} is fed as {', '.join(keys)}, not in order from 0")
    values = [rest.pop(k) for k in keys]
    if any(v is None for v in values):
        raise GraphError(f"input {keys[[v is None for v in values].index(True)]} is not fed")
    return [v for v in values if v is not None]


def ints(x: Tensor) -> list[int]:
    return [int(v) for v in x.reshape(-1).tolist()]


def same_type(x1: Tensor, x2: Tensor) -> None:
    if x1.dtype != x2.dtype:
        raise GraphError(f"inputs of {x1.dtype} and {x2.dtype}; the operator takes two of one type")


def all_of(x: list[Tensor], n: int) -> list[Tensor]:
    """A list input whose length is the attribute N."""
    if len(x) != n:
        raise GraphError(f"N is {n}, and the operator has {len(x)} inputs in its list")
    return x
