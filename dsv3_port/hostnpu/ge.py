"""An interpreter for converted GE graphs: what torchair hands to the graph engine, executed on the CPU.

Running the FX graph cannot show a wrong conversion (a transpose flag, swapped inputs, an attribute); running the
GraphDef can. `read` takes a ModelDef or GraphDef (serialised, `.air`, or pbtxt), `run` executes it operator by operator
from the table in ge_ops.py. Storage formats are tags here: values lie in plain order.
"""

from __future__ import annotations

import heapq
import importlib.util
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import PortError
from .ge_ops import OPERATORS, GraphError, flops
from .install import find

_PROTO = "torchair._ge_concrete_graph.ge_ir_by_protoc_3_19_pb2"
# of the message enum DataType; the attributes of operators number types otherwise (ge_ops.GE_TYPES)
_PROTO_TYPES = {1: torch.float32, 2: torch.float16, 3: torch.int8, 4: torch.uint8, 5: torch.int16, 7: torch.int32,
                8: torch.int64, 10: torch.uint64, 11: torch.bool, 12: torch.float64, 27: torch.bfloat16}
# bookkeeping of torchair that has no meaning for the values
_NOTES = frozenset(("_input_name_key", "_input_name_value", "_output_name_key", "_output_name_value",
                    "_readable_value", "_inputs_all_sym", "_origin_data_name", "_fx_tensor_name",
                    "_enable_storage_format_spread"))


@dataclass
class Node:
    """One operator. `inputs`: (producer, its output number), or None for an optional input that is not fed."""

    name: str
    type: str
    inputs: list[tuple[str, int] | None]
    names: list[str]  # of the inputs, in the operator's definition
    control: list[str]  # nodes that must have run before
    outputs: list[str]
    attributes: dict[str, Any]


@dataclass
class Graph:
    name: str
    nodes: list[Node]  # in an order that respects data and control edges

    def count(self) -> dict[str, int]:
        return dict(Counter(node.type for node in self.nodes).most_common())


@dataclass(frozen=True)
class Record:
    """What one execution of a node moved and computed."""

    name: str
    type: str
    shapes: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    nbytes: int  # read and written
    flops: int


@dataclass
class Run:
    outputs: list[Tensor]
    records: list[Record] = field(default_factory=list)
    peak: int = 0  # most bytes of intermediate values held at once, views counted by their storage


def messages() -> Any:
    """torchair's generated protobuf module; the file is read on its own where torchair is not imported."""
    if _PROTO in sys.modules:
        return sys.modules[_PROTO]
    folder = find()
    if folder is None:
        raise PortError("reading GE graphs needs torchair's message definitions: run `dsv3-port hostnpu install`")
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
    return Graph(graph.name, _ordered([_node(op) for op in graph.op]))


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
    for message in (forms.GraphDef(), forms.ModelDef()):
        try:
            text_format.Parse(data.decode(), message)
        except (text_format.ParseError, UnicodeDecodeError):
            continue
        found = [message] if isinstance(message, forms.GraphDef) else list(message.graph)
        if len(found) == 1 and found[0].op:
            return found[0]
    raise PortError("not a GE graph: expected a serialised ModelDef with one graph (.air) or its text form (pbtxt)")


def _value(name: str, key: str, attribute: Any) -> Any:
    kind = attribute.WhichOneof("value")
    if kind == "list":
        kinds = [list(getattr(attribute.list, k)) for k in ("i", "f", "b", "s") if len(getattr(attribute.list, k))]
        if len(kinds) > 1:
            raise GraphError(f"node {name}: attribute {key} mixes types in one list")
        return kinds[0] if kinds else []
    if kind == "t":
        return _constant(name, attribute.t)
    if kind in ("i", "f", "b", "s"):
        value = getattr(attribute, kind)
        return value.decode() if kind == "s" else value
    raise GraphError(f"node {name}: attribute {key} is of kind {kind}, which the interpreter does not read")


def _constant(name: str, message: Any) -> Tensor:
    """A tensor on the message's own bytes: no copy (bytearray would be one)."""
    dtype, shape = _PROTO_TYPES.get(message.desc.dtype), list(message.desc.shape.dim)
    if dtype is None:
        raise GraphError(f"node {name}: constant of proto type {message.desc.dtype} is not known")
    if not message.data:
        return torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bytes cannot be written; nobody does: Scatter takes graph inputs only
        return torch.frombuffer(message.data, dtype=dtype).view(shape)


def _node(op: Any) -> Node:
    inputs: list[tuple[str, int] | None] = []
    control = []
    for edge in op.input:
        source, _, number = edge.rpartition(":")
        if number == "-1":
            control.append(source)
        else:
            inputs.append((source, int(number)) if edge else None)
    attributes = {key: _value(op.name, key, op.attr[key]) for key in op.attr if key not in _NOTES}
    return Node(op.name, op.type, inputs, [d.name for d in op.input_desc], control,
                [d.name for d in op.output_desc], attributes)


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


def run(graph: Graph, inputs: Sequence[Tensor], records: bool = False) -> Run:
    """Execute on CPU tensors. inputs[i] feeds the Data node with index i, and is written where a Scatter refers to it.

    Each value is freed after its last use. GraphError (a PortError) names the node that is unknown or fails.
    """
    last = {edge: i for i, node in enumerate(graph.nodes) for edge in node.inputs if edge}
    values: dict[tuple[str, int], Tensor] = {}
    done = Run([])
    held: Counter[int] = Counter()  # storage address -> values on it
    sizes: dict[int, int] = {}
    borrowed = {t.untyped_storage().data_ptr() for t in inputs}
    for i, node in enumerate(graph.nodes):
        fed = [values[edge] if edge else None for edge in node.inputs]
        if node.type == "NetOutput":
            done.outputs = [t for t in fed if t is not None]
            continue
        results = _execute(node, fed, inputs)
        if records and node.type not in ("Data", "RefData", "Const"):
            done.records.append(_record(node, fed, results))
        for number, result in enumerate(results):
            edge = (node.name, number)
            if edge in last:
                values[edge] = result
                address = result.untyped_storage().data_ptr()
                if node.type != "Const" and address not in borrowed:
                    held[address] += 1
                    sizes[address] = result.untyped_storage().nbytes()
        done.peak = max(done.peak, sum(sizes.values()))
        for edge in {e for e in node.inputs if e and last[e] == i}:
            address = values.pop(edge).untyped_storage().data_ptr()
            if address in held:
                held[address] -= 1
                if held[address] == 0:
                    del held[address], sizes[address]
    return done


def _execute(node: Node, fed: list[Tensor | None], inputs: Sequence[Tensor]) -> list[Tensor]:
    if node.type in ("Data", "RefData"):
        index = node.attributes.get("index", 0)
        if not index < len(inputs):
            raise GraphError(f"node {node.name}: the graph has no input {index}; {len(inputs)} were given")
        return [inputs[index]]
    if node.type == "Const":
        return [node.attributes["value"]]
    operator = OPERATORS.get(node.type)
    if operator is None:
        raise GraphError(f"node {node.name}: operator {node.type} is not known to the interpreter")
    try:
        results = operator(node.names, fed, node.attributes)
    except GraphError as error:
        raise GraphError(f"node {node.name} ({node.type}): {error}") from error
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        raise GraphError(f"node {node.name} ({node.type}) cannot be computed: {error}") from error
    if len(results) != len(node.outputs):
        raise GraphError(f"node {node.name} ({node.type}) declares {len(node.outputs)} outputs, not {len(results)}")
    return results


def _record(node: Node, fed: list[Tensor | None], results: list[Tensor]) -> Record:
    moved = sum(t.nbytes for t in (*fed, *results) if t is not None)
    return Record(node.name, node.type, [tuple(t.shape) for t in results], [t.dtype for t in results], moved,
                  flops(node.type, node.attributes, fed, results))
