"""Converted GE graphs as tables: what is in one, how two differ, and a run with inputs from a file."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import PortError
from ..hostnpu.ge import INPUTS, Graph, Node
from ..hostnpu.ge_cost import kernels_of

Rows = list[tuple[str, ...]]


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(value.tolist()) if value.numel() <= 8 else f"{value.dtype} {list(value.shape)}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def node_lines(graph: Graph) -> list[str]:
    """Every operator in the order of execution: NAME = TYPE(inputs, attributes) -> outputs, "after"
    control edges."""
    lines = []
    for n in graph.nodes:
        fed = [
            f"{name}={edge[0]}:{edge[1]}"
            for name, edge in zip(n.names, n.inputs, strict=False)
            if edge
        ]
        given = [f"{k}={_text(v)}" for k, v in n.attributes.items()]
        after = f" after {', '.join(n.control)}" if n.control else ""
        results = ", ".join(str(p) for p in n.promises if p)
        lines.append(
            f"{n.name} = {n.type}({', '.join(fed + given)})"
            + (f" -> {results}" if results else "")
            + after
        )
    return lines


def input_rows(graph: Graph) -> Rows:
    """(index, name, type and shape) of every input: what `read_inputs` must find in the file."""
    return [
        (str(n.attributes.get("index", 0)), n.origin, str(n.promises[0] or "?"))
        for n in graph.inputs
    ]


# ---- two graphs ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """counts: (operator type, in a, in b) where they differ; lines: "- " only in a, "+ " only in b,
    with how often."""

    counts: list[tuple[str, int, int]]
    lines: dict[str, int]

    def __bool__(self) -> bool:
        return bool(self.counts or self.lines)


def difference(a: Graph, b: Graph) -> Difference:
    """What a porting step, or a change of the conversion, did to the graph. Names do not count:
    torchair numbers them.

    An operator is described by its type, its attributes and what feeds it, two operators back,
    constants by value; the two sequences of descriptions are aligned as lines of text would be.
    """
    in_a, in_b = a.count(), b.count()
    kinds = sorted(
        in_a.keys() | in_b.keys(), key=lambda k: (-max(in_a.get(k, 0), in_b.get(k, 0)), k)
    )
    counts = [
        (k, in_a.get(k, 0), in_b.get(k, 0)) for k in kinds if in_a.get(k, 0) != in_b.get(k, 0)
    ]
    lines: Counter[str] = Counter()
    one, two = _described(a), _described(b)
    for tag, i, j, k, m in difflib.SequenceMatcher(None, one, two, autojunk=False).get_opcodes():
        if tag != "equal":
            gone, new = Counter(one[i:j]), Counter(two[k:m])
            lines.update({f"- {t}": n for t, n in (gone - new).items()})
            lines.update({f"+ {t}": n for t, n in (new - gone).items()})
    return Difference(counts, dict(lines))


def _described(graph: Graph) -> list[str]:
    nodes = {n.name: n for n in graph.nodes}
    return [_describe(n, nodes, 2) for n in graph.nodes if n.type not in (*INPUTS, "Const")]


def _describe(node: Node, nodes: dict[str, Node], depth: int) -> str:
    if node.type == "Const":
        return _text(node.attributes["value"])
    if node.type in INPUTS:
        return str(
            node.promises[0] or "input"
        )  # as a constant of that size: exported graphs carry their weights
    if depth == 0:
        return node.type
    fed = [
        f"{name}={_describe(nodes[e[0]], nodes, depth - 1)}" + (f":{e[1]}" if e[1] else "")
        for name, e in zip(node.names, node.inputs, strict=False)
        if e
    ]
    given = [f"{k}={_text(v)}" for k, v in sorted(node.attributes.items())] if depth == 2 else []
    return f"{node.type}({', '.join(fed + given)})"


def census(graph: Graph, kernels: bool = False) -> dict[str, int]:
    """Operators by type, most frequent first; kernels: without those that no kernel stands behind."""
    return kernels_of(graph.count()) if kernels else graph.count()


# ---- a run ---------------------------------------------------------------------------------------


def read_inputs(graph: Graph, path: str | Path) -> list[Tensor]:
    """The graph's inputs from a safetensors file, by name or by index. PortError names one that is
    missing or left."""
    file = Path(path)
    try:
        given = load_file(file)
    except (OSError, SafetensorError) as error:
        raise PortError(f"{file}: not a safetensors file that can be read: {error}") from error
    found: list[Tensor] = []
    for node in graph.inputs:
        index = node.attributes.get("index", 0)
        if index != len(found):
            raise PortError(
                f"graph {graph.name}: no input has index {len(found)}, {node.origin} has {index}"
            )
        keys = [k for k in (node.name, node.origin, str(index)) if k in given]
        if not keys:
            raise PortError(
                f"{file}: input {index} ({node.origin}, {node.promises[0] or 'type not noted'}) is not in "
                "the file, neither by name nor by index"
            )
        found.append(given.pop(keys[0]))
    if given:
        raise PortError(
            f"{file}: tensor {min(given)!r} is no input of the graph; `dsv3-port ge` lists them"
        )
    return found


def result_tensors(
    graph: Graph, before: list[Tensor], after: list[Tensor], outputs: list[Tensor]
) -> dict[str, Tensor]:
    """What a run gave: "output.N", and "input.NAME" for each input that the graph wrote into."""
    written = {
        f"input.{n.origin}": new
        for n, old, new in zip(graph.inputs, before, after, strict=True)
        if not torch.equal(old, new)
    }
    return {f"output.{i}": t.contiguous().clone() for i, t in enumerate(outputs)} | written
