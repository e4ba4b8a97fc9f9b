"""Converted GE graphs as tables: what is in one, how two differ, and a run with inputs from a file."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import PortError
from ..hostnpu.ge import INPUTS, Graph, Node
from ..hostnpu.ge_cost import kernels_of
from ..weights.content import hash_bytes

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
        (str(n.attributes.get("index", 0)), n.origin, str((n.promises or [None])[0] or "?"))
        for n in graph.inputs
    ]


# ---- two graphs ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """counts: (operator type, in a, in b) where they differ; lines: "- " only in a, "+ " only in b,
    "~ " fed by another operator, each with how often."""

    counts: list[tuple[str, int, int]]
    lines: dict[str, int]

    def __bool__(self) -> bool:
        return bool(self.counts or self.lines)


def difference(a: Graph, b: Graph) -> Difference:
    """What a porting step, or a change of the conversion, did to the graph. Names do not count:
    torchair numbers them.

    An operator is described by its type, its attributes, what is said of its results, and what
    feeds it, two operators back: a constant by a hash of its values, an input of the graph by its
    place among the inputs. The two sequences of descriptions are aligned as lines of text would be;
    operators that then stand side by side must be fed by operators that do.
    """
    in_a, in_b = a.count(), b.count()
    kinds = sorted(
        in_a.keys() | in_b.keys(), key=lambda k: (-max(in_a.get(k, 0), in_b.get(k, 0)), k)
    )
    counts = [
        (k, in_a.get(k, 0), in_b.get(k, 0)) for k in kinds if in_a.get(k, 0) != in_b.get(k, 0)
    ]
    places, lines = _aligned_inputs(a, b)
    one, two = _Described(a, places[0]), _Described(b, places[1])
    beside: dict[str, str] = {}
    matcher = difflib.SequenceMatcher(None, one.texts, two.texts, autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag == "equal":
            pairs = zip(one.listed[i:j], two.listed[k:m], strict=True)
            beside |= {x.name: y.name for x, y in pairs}
            continue
        gone, new = Counter(one.texts[i:j]), Counter(two.texts[k:m])
        lines.update({f"- {t}": n for t, n in (gone - new).items()})
        lines.update({f"+ {t}": n for t, n in (new - gone).items()})
    lines.update(_rewired(one, two, beside))
    return Difference(counts, dict(lines))


def _aligned_inputs(a: Graph, b: Graph) -> tuple[list[dict[str, str]], Counter[str]]:
    """({name: its place} for each graph, lines of inputs that only one has). Equal lists have equal
    places; where one has more, they are aligned by type and shape."""
    one, two = (
        [(n.name, f"{n.type} {(n.promises or [None])[0] or 'of no noted type'}") for n in g.inputs]
        for g in (a, b)
    )
    matcher = difflib.SequenceMatcher(
        None, [t for _, t in one], [t for _, t in two], autojunk=False
    )
    places: list[dict[str, str]] = [{}, {}]
    lines: Counter[str] = Counter()
    for tag, i, j, k, m in matcher.get_opcodes():
        equal = tag == "equal"
        for x, (name, text) in enumerate(one[i:j], i):
            places[0][name] = f"input {x} {text}" if equal else f"input {x} of the first {text}"
        for y, (name, text) in enumerate(two[k:m], k):
            places[1][name] = (
                f"input {i + y - k} {text}" if equal else f"input {y} of the second {text}"
            )
        if not equal:
            lines.update(f"- {places[0][name]}" for name, _ in one[i:j])
            lines.update(f"+ {places[1][name]}" for name, _ in two[k:m])
    return places, lines


class _Described:
    """A graph's operators, and each one's description."""

    def __init__(self, graph: Graph, places: dict[str, str]) -> None:
        self.nodes = {n.name: n for n in graph.nodes}
        self.places = places
        self.values = {
            n.name: _content(n.attributes.get("value")) for n in graph.nodes if n.type == "Const"
        }
        self.listed = [n for n in graph.nodes if n.type not in (*INPUTS, "Const")]
        self.texts = [self._describe(n, 2) for n in self.listed]

    def _describe(self, node: Node, depth: int) -> str:
        if node.name in self.values:
            return self.values[node.name]
        if node.name in self.places:
            return self.places[node.name]
        if depth == 0:
            return node.type
        fed = [
            f"{name}={self._describe(self.nodes[e[0]], depth - 1)}" + (f":{e[1]}" if e[1] else "")
            for name, e in zip(
                node.names or [str(i) for i in range(len(node.inputs))], node.inputs, strict=False
            )
            if e
        ]
        if depth < 2:
            return f"{node.type}({', '.join(fed)})"
        given = [f"{k}={_content(v)}" for k, v in sorted(node.attributes.items())]
        said = [
            str(p)
            for both in zip(node.promises, node.declared, strict=True)
            for p in dict.fromkeys(both)
            if p
        ]
        return f"{node.type}({', '.join(fed + given)})" + (f" -> {', '.join(said)}" if said else "")


def _rewired(one: _Described, two: _Described, beside: dict[str, str]) -> Counter[str]:
    """Operators that look alike and stand side by side, and are fed by ones that do not."""
    lines: Counter[str] = Counter()
    for first, second in beside.items():
        a, b = one.nodes[first], two.nodes[second]
        pairs = [(x[0], y[0]) for x, y in zip(a.inputs, b.inputs, strict=False) if x and y]
        pairs += zip(a.control, b.control, strict=False)
        for x, y in pairs:
            if x in beside and beside[x] != y:
                lines[f"~ {a.type} {first}: from {x}, in the other graph from {y}"] += 1
        if len(a.control) != len(b.control):
            lines[
                f"~ {a.type} {first}: after {a.control}, in the other graph after {b.control}"
            ] += 1
    return lines


def _content(value: Any) -> str:
    """As _text, but nothing that differs looks alike."""
    if isinstance(value, Tensor):
        same = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        values = value.tolist() if value.numel() <= 8 else f"#{hash_bytes(same.data)[:12]}"
        return f"{value.dtype} {list(value.shape)} {values}"
    if isinstance(value, float) and float(np.float32(value)) == value:
        return str(np.float32(value))  # as many digits as it takes: attributes are float32
    return repr(value)


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
                f"{file}: input {index} ({node.origin}, {(node.promises or [None])[0] or 'type not noted'}) is not in "
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
