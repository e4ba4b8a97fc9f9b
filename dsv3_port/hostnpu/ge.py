"""Converted GE graphs: what torchair hands to the graph engine, read from memory or from a file.

Running the FX graph cannot show a wrong conversion (a transpose flag, swapped inputs, an
attribute); running the GraphDef can. `read` takes a ModelDef or GraphDef (serialised, `.air`, or
pbtxt) and ge_run.py executes it. Storage
formats are tags here: values lie in plain order, and so do inputs (graphs.py reads FRACTAL_NZ).
"""

from __future__ import annotations

import heapq
import importlib.util
import math
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import PortError
from . import ge_text
from .ge_promise import INPUTS as INPUTS
from .ge_promise import PROTO_TYPES, Promise, declared, noted
from .ge_table import OPERATORS, GraphError
from .install import find

_PROTO = "torchair._ge_concrete_graph.ge_ir_by_protoc_3_19_pb2"
# bookkeeping of torchair that has no meaning for the values
_NOTES = frozenset(
    (
        "_input_name_key",
        "_input_name_value",
        "_output_name_key",
        "_output_name_value",
        "_readable_value",
        "_inputs_all_sym",
        "_origin_data_name",
        "_fx_tensor_name",
        "_enable_storage_format_spread",
        "_force_unknown_shape",
    )
)
Edge = tuple[str, int]  # a node, and the number of its output


@dataclass
class Node:
    """One operator. `inputs`: (producer, its output number), or None for an optional input that is
    not fed."""

    name: str
    type: str
    inputs: list[Edge | None]
    names: list[str]  # of the inputs, in the operator's definition
    control: list[str]  # nodes that must have run before
    promises: list[Promise | None]  # one for each output, as torchair notes it; None: it does not
    declared: list[Promise | None]  # likewise, what the operator's own description says
    attributes: dict[str, Any]
    origin: str  # its name before dynamo_export renamed it


@dataclass
class Graph:
    name: str
    nodes: list[Node]  # in an order that respects data and control edges

    def count(self) -> dict[str, int]:
        return dict(Counter(node.type for node in self.nodes).most_common())

    @property
    def inputs(self) -> list[Node]:
        """Data and RefData, by their index."""
        return sorted(
            (n for n in self.nodes if n.type in INPUTS), key=lambda n: n.attributes.get("index", 0)
        )

    @property
    def unknown(self) -> list[str]:
        """Operator types that the interpreter does not have."""
        from . import ge_int8, ge_npu, ge_ops, ge_paged  # noqa: F401  # they fill the table

        return sorted(
            {n.type for n in self.nodes} - OPERATORS.keys() - {*INPUTS, "Const", "NetOutput"}
        )


def messages() -> Any:
    """torchair's generated protobuf module; the file is read on its own where torchair is not
    imported."""
    if _PROTO in sys.modules:
        return sys.modules[_PROTO]
    folder = find()
    if folder is None:
        raise PortError(
            "reading GE graphs needs torchair's message definitions: run `dsv3-port hostnpu install`"
        )
    path = folder / "torch_npu" / "dynamo" / (_PROTO.replace(".", "/") + ".py")
    spec = importlib.util.spec_from_file_location("dsv3_port_ge_ir", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise PortError(f"{path}: not there; versions of torch_npu known to work: 2.13.0")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_file(path: str | Path) -> Graph:
    """A saved graph: `.air` (serialised ModelDef) or text. PortError where it is neither."""
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise PortError(f"{file}: cannot be read: {error.strerror or error}") from error
    try:
        return read(data)
    except PortError as error:
        raise PortError(f"{file}: {error}") from error


def read(source: Any) -> Graph:
    """source: a GraphDef message, torchair's GeGraph, or the bytes of a ModelDef or of a text form."""
    graph = _parse(source) if isinstance(source, bytes) else source
    return Graph(graph.name, _ordered([_checked_node(op) for op in graph.op]))


def _checked_node(op: Any) -> Node:
    try:
        return _node(op)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        if isinstance(error, GraphError):
            raise
        raise GraphError(f"node {op.name}: cannot be read: {error}") from error


def _parse(data: bytes) -> Any:
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError

    forms = messages()
    model = forms.ModelDef()
    try:
        model.ParseFromString(data)
        if len(model.graph) == 1 and model.graph[0].op:
            return model.graph[0]
    except DecodeError:
        pass
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if ge_text.is_dump(text):
        return ge_text.parse(text, forms)
    for message in (forms.GraphDef(), forms.ModelDef()):
        try:
            text_format.Parse(text, message)
        except text_format.ParseError:
            continue
        found = [message] if isinstance(message, forms.GraphDef) else list(message.graph)
        if len(found) == 1 and found[0].op:
            return found[0]
    raise PortError(
        "not a GE graph: expected a serialised ModelDef with one graph (.air) or its text form (pbtxt)"
    )


def _value(name: str, key: str, attribute: Any) -> Any:
    kind = attribute.WhichOneof("value")
    if kind == "list":
        kinds = [
            list(getattr(attribute.list, k))
            for k in ("i", "f", "b", "s")
            if len(getattr(attribute.list, k))
        ]
        if len(kinds) > 1:
            raise GraphError(f"node {name}: attribute {key} mixes types in one list")
        return kinds[0] if kinds else []
    if kind == "t":
        return _constant(name, attribute.t)
    if kind in ("i", "f", "b", "s"):
        value = getattr(attribute, kind)
        return value.decode() if kind == "s" else value
    raise GraphError(
        f"node {name}: attribute {key} is of kind {kind}, which the interpreter does not read"
    )


def _constant(name: str, message: Any) -> Tensor:
    """A tensor on the message's own bytes: no copy (bytearray would be one)."""
    dtype, shape = PROTO_TYPES.get(message.desc.dtype), list(message.desc.shape.dim)
    if dtype is None:
        raise GraphError(f"node {name}: constant of proto type {message.desc.dtype} is not known")
    if not message.data:
        if math.prod(shape):
            raise GraphError(f"node {name}: a constant of {shape} has no data in the file")
        return torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # bytes cannot be written; nobody does: Scatter takes graph inputs only
        return torch.frombuffer(message.data, dtype=dtype).view(shape)


def _node(op: Any) -> Node:
    if not op.name or not op.type:
        raise GraphError(f"a node without a name or type (name {op.name!r}, type {op.type!r})")
    inputs: list[Edge | None] = []
    control = []
    for edge in op.input:
        source, _, number = edge.rpartition(":")
        if number == "-1":
            control.append(source)
        elif edge and not (source and number.isdecimal()):
            raise GraphError(f"node {op.name}: its input {edge!r} is not NODE:NUMBER")
        else:
            inputs.append((source, int(number)) if edge else None)
    attributes = {
        key: _value(op.name, key, op.attr[key]) for key in sorted(op.attr) if key not in _NOTES
    }
    origin = op.attr["_origin_data_name"].s.decode() if "_origin_data_name" in op.attr else op.name
    return Node(
        op.name,
        op.type,
        inputs,
        [d.name for d in op.input_desc],
        control,
        [noted(op.type, d) for d in op.output_desc],
        [None if op.type in INPUTS else declared(d) for d in op.output_desc],
        attributes,
        origin,
    )


def _ordered(nodes: list[Node]) -> list[Node]:
    """Data and control edges first; otherwise the order of the file."""
    place = {node.name: i for i, node in enumerate(nodes)}
    if len(place) != len(nodes):
        raise GraphError("two nodes of the graph have one name")
    waits: list[set[int]] = []
    users: list[list[int]] = [[] for _ in nodes]
    for i, node in enumerate(nodes):
        sources = {edge[0] for edge in node.inputs if edge} | set(node.control)
        unknown = sources - place.keys()
        if unknown:
            raise GraphError(f"node {node.name}: its input {min(unknown)} is not in the graph")
        waits.append({place[s] for s in sources})
        for s in waits[-1]:
            users[s].append(i)
    ready = [i for i, w in enumerate(waits) if not w]
    heapq.heapify(ready)
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(nodes[i])
        for user in users[i]:
            waits[user].discard(i)
            if not waits[user]:
                heapq.heappush(ready, user)
    if len(order) != len(nodes):
        raise GraphError("the edges of the graph form a cycle")
    return order
