"""Executes a GE graph with PyTorch on the CPU, operator by operator, from the tables in ge_ops.py
and ge_npu.py."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import PortError
from . import ge_int8, ge_npu, ge_ops, ge_paged  # noqa: F401  # they fill the table
from .ge import INPUTS, Edge, Graph, Node
from .ge_cost import Record, record
from .ge_table import OPERATORS, GraphError


@dataclass
class Run:
    """What a run gave and took.

    outputs: those of NetOutput. surprises: where a result is not of the type and shape that the
    operator's description has, or that torchair noted (a note is no part of the graph; its view
    optimisation leaves stale ones behind).
    peak: most bytes of intermediate values held at once, views counted by their storage; inputs and
    constants are neither copied nor counted. seconds: on this CPU, no time of an NPU.
    """

    outputs: list[Tensor]
    records: list[Record] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    peak: int = 0
    seconds: float = 0.0


class _Values:
    """The live outputs of nodes. A storage is counted from its first value to its last."""

    def __init__(self, outside: set[int]) -> None:
        self.live: dict[Edge, Tensor] = {}
        self.outside = outside  # addresses of inputs and constants
        self.holders: Counter[int] = Counter()
        self.held = self.peak = 0

    def put(self, edge: Edge, value: Tensor) -> None:
        self.live[edge] = value
        storage = value.untyped_storage()
        address = storage.data_ptr()
        if address in self.outside:
            return
        if not self.holders[address]:
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
        self.holders[address] += 1

    def drop(self, edge: Edge) -> None:
        storage = self.live.pop(edge).untyped_storage()
        address = storage.data_ptr()
        if address in self.outside:
            return
        self.holders[address] -= 1
        if not self.holders[address]:
            del self.holders[address]
            self.held -= storage.nbytes()

    def keep_apart(self, written: Tensor, same: set[Edge]) -> None:
        """Before `written` changes: a view of it that is still needed, and not the reference
        itself, becomes a copy."""
        address = written.untyped_storage().data_ptr()
        for edge in [
            e
            for e, t in self.live.items()
            if e not in same and t.untyped_storage().data_ptr() == address
        ]:
            copy = self.live[edge].clone()
            self.drop(edge)
            self.put(edge, copy)


@torch.no_grad()
def run(graph: Graph, inputs: Sequence[Tensor], records: bool = False) -> Run:
    """Execute on CPU tensors. inputs[i] feeds the Data node with index i, and is written where a
    Scatter refers to it.

    Each value is freed after its last use. GraphError (a PortError) names the node that is unknown
    or fails, or the input that is not of the type and shape in the graph.
    """
    begin = time.perf_counter()
    done = Run([])
    last = {edge: i for i, node in enumerate(graph.nodes) for edge in node.inputs if edge}
    outside = [*inputs, *(n.attributes["value"] for n in graph.nodes if n.type == "Const")]
    values = _Values({t.untyped_storage().data_ptr() for t in outside if t.numel()})
    references: set[Edge] = set()  # inputs, and outputs that are an input
    for i, node in enumerate(graph.nodes):
        fed = [values.live[edge] if edge else None for edge in node.inputs]
        if node.type == "NetOutput":
            done.outputs = [t for t in fed if t is not None]
            continue
        _before_writing(node, fed, values, references)
        results = _execute(node, fed, inputs)
        if records and node.type not in INPUTS and node.type != "Const":
            done.records.append(
                record(node.name, node.type, node.attributes, node.names, fed, results)
            )
        done.surprises += _surprises(node, results)
        for number, result in enumerate(results):
            if (node.name, number) in last:
                values.put((node.name, number), result)
        references |= _references(node)
        del fed, results
        for edge in {e for e in node.inputs if e and last[e] == i}:
            values.drop(edge)
    done.peak, done.seconds = values.peak, time.perf_counter() - begin
    return done


def _references(node: Node) -> set[Edge]:
    """Its outputs that are an input of the graph, or of itself."""
    if node.type in INPUTS:
        return {(node.name, 0)}
    operator = OPERATORS.get(node.type)
    if operator is None:
        return set()
    return {(node.name, operator.written_at + n) for n in range(len(operator.writes))}


def _before_writing(
    node: Node, fed: list[Tensor | None], values: _Values, references: set[Edge]
) -> None:
    operator = OPERATORS.get(node.type)
    for name in operator.writes if operator is not None else ():
        if name not in node.names:
            continue
        place = node.names.index(name)
        written, edge = fed[place], node.inputs[place]
        if written is not None and edge is not None:
            values.keep_apart(written, references | {edge})


def _execute(node: Node, fed: list[Tensor | None], inputs: Sequence[Tensor]) -> list[Tensor]:
    if node.type == "Const":
        return [node.attributes["value"]]
    if node.type not in INPUTS:
        return _compute(node, fed)
    index = node.attributes.get("index", 0)
    if not 0 <= index < len(inputs):
        raise GraphError(
            f"node {node.name}: the graph has no input {index}; {len(inputs)} were given"
        )
    wrong = _surprises(node, [inputs[index]])
    if wrong:
        raise GraphError(f"input {index}: {wrong[0]}")
    return [inputs[index]]


def _surprises(node: Node, results: list[Tensor]) -> list[str]:
    return [
        f"node {node.name} ({node.type}): output {number} is {result.dtype} {list(result.shape)}, the graph says "
        f"{promise}"
        for number, result in enumerate(results)
        for promise in dict.fromkeys((node.promises[number], node.declared[number]))
        if promise and not promise.kept(result)
    ]


def _compute(node: Node, fed: list[Tensor | None]) -> list[Tensor]:
    operator = OPERATORS.get(node.type)
    if operator is None:
        raise GraphError(f"node {node.name}: operator {node.type} is not known to the interpreter")
    try:
        results = operator(node.names, fed, node.attributes)
    except GraphError as error:
        raise GraphError(f"node {node.name} ({node.type}): {error}") from error
    except (
        PortError,
        RuntimeError,
        ValueError,
        TypeError,
        IndexError,
        NotImplementedError,
    ) as error:
        raise GraphError(f"node {node.name} ({node.type}) cannot be computed: {error}") from error
    if len(results) != len(node.promises):
        raise GraphError(
            f"node {node.name} ({node.type}) declares {len(node.promises)} outputs, not {len(results)}"
        )
    return results
