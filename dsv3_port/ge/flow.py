"""The decoder layers of a converted GE graph, and one of them collapsed into a few boxes.

Nothing in a GraphDef says where a layer begins. It follows from the data flow: whatever a layer's
attention and the next one's both depend on, and last, is where the layer begins (their nearest
common dominator: the residual sum).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..errors import PortError
from ..hostnpu.ge import INPUTS, Graph, Node
from ..hostnpu.ge_cost import MATMULS, NO_KERNEL
from ..messages import tr

# each is a box of its own; all other operators between two of them share one
MAJOR = MATMULS | {
    "SoftmaxV2",
    "RmsNorm",
    "AddRmsNorm",
    "SwiGlu",
    "RotaryMul",
    "MoeInitRouting",
    "Scatter",
    "MoeComputeExpertTokens",
    "MoeFinalizeRoutingV2",
    "HcomAllReduce",
    "HcomAllGather",
}
MOVES = frozenset(
    (
        "Transpose",
        "Identity",
        "Cast",
        "SplitV",
        "ConcatV2",
        "StridedSliceV2",
        "Pack",
        "BroadcastTo",
        "TensorMove",
        "Fill",
        "Range",
        "ZerosLike",
        "Empty",
    )
)


@dataclass
class Box:
    """Operators drawn as one. kind: matmul, attention, norm, routing, cache, ranks, gate,
    arithmetic or moves."""

    label: str
    kind: str
    nodes: list[Node]
    after: set[int] = field(default_factory=set)  # boxes whose results it takes


class _Flow:
    """The part of a graph that depends on the token embeddings: dominators and ancestors, by
    topological place."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes
        place = {n.name: i for i, n in enumerate(graph.nodes)}
        self.sources = [[place[e[0]] for e in n.inputs if e] for n in graph.nodes]
        root = next(
            (i for i, n in enumerate(graph.nodes) if n.type == "GatherV2" and self._is_table(i)),
            None,
        )
        self.dominator: dict[int, int] = {}
        self.above: dict[int, int] = {}  # ancestors as bits
        if root is None:
            return
        self.dominator[root], self.above[root] = root, 0
        for i in range(root + 1, len(graph.nodes)):
            known = [s for s in self.sources[i] if s in self.dominator]
            if known:
                common = known[0]
                for s in known[1:]:
                    common = self.common(common, s)
                self.dominator[i] = common
                self.above[i] = 0
                for s in known:
                    self.above[i] |= self.above[s] | 1 << s

    def _is_table(self, i: int) -> bool:
        source = self.nodes[self.sources[i][0]]
        if source.type == "Const":  # an exported graph carries its weights
            table = source.attributes["value"]
            return bool(table.dim() == 2 and table.is_floating_point())
        promise = source.promises[0] if source.type in INPUTS else None
        if promise is None or promise.shape is None:
            return False
        return len(promise.shape) == 2 and promise.dtype.is_floating_point

    def common(self, a: int, b: int) -> int:
        """The nearest node through which every way to a and to b leads."""
        while a != b:
            a, b = (self.dominator[a], b) if a > b else (a, self.dominator[b])
        return a

    def between(self, first: int, end: int) -> list[int]:
        """`first` and what depends on it, but on `end` not; without `end`."""
        return [
            i
            for i in sorted(self.dominator)
            if i != end
            and not self.above[i] >> end & 1
            and (i == first or self.above[i] >> first & 1)
        ]


def layers(graph: Graph) -> list[list[Node]]:
    """The operators of each decoder layer, in order; [] where the graph has no attention."""
    flow = _Flow(graph)
    marks = [i for i in sorted(flow.dominator) if graph.nodes[i].type == "SoftmaxV2"]
    heads = [i for i in flow.dominator if graph.nodes[i].type in MATMULS]
    if not marks or not heads:
        return []
    starts = [flow.common(a, b) for a, b in zip(marks, [*marks[1:], max(heads)], strict=True)]
    ends = [*starts[1:], max(heads)]
    return [[graph.nodes[i] for i in flow.between(a, b)] for a, b in zip(starts, ends, strict=True)]


def collapsed(graph: Graph, layer: int) -> list[Box]:
    """One layer as boxes in topological order. PortError where the graph has no such layer."""
    found = layers(graph)
    if not 0 <= layer < len(found):
        raise PortError(
            f"graph {graph.name} has {len(found)} decoder layers that could be told apart, none is number "
            f"{layer} (the first is 0)"
        )
    nodes = found[layer]
    place = {n.name: i for i, n in enumerate(nodes)}
    sources = [[place[e[0]] for e in n.inputs if e and e[0] in place] for n in nodes]
    group = _groups(nodes, sources)
    members: dict[int, list[int]] = {}
    for i, g in enumerate(group):
        members.setdefault(g, []).append(i)
    boxes: list[Box] = []
    outs: dict[
        int, set[int]
    ] = {}  # of each group: its box, or, where it is only reshapes, the boxes before it
    depth = _depth(nodes, sources)
    for g in sorted(members, key=lambda g: (depth[g], nodes[g].type in MAJOR, g)):
        took = {s for i in members[g] for s in sources[i] if group[s] != g}
        before = set().union(*(outs[group[s]] for s in took)) if took else set()
        inside = [nodes[i] for i in members[g]]
        if all(n.type in NO_KERNEL for n in inside):
            outs[g] = before
            continue
        outs[g] = {len(boxes)}
        boxes.append(Box(_label(inside), _kind(inside), inside, before))
    return boxes


def _depth(nodes: list[Node], sources: list[list[int]]) -> list[int]:
    """How many major operators lie before each node, at most."""
    depth: list[int] = []
    for i in range(len(nodes)):
        depth.append(max((depth[s] + (nodes[s].type in MAJOR) for s in sources[i]), default=0))
    return depth


def _groups(nodes: list[Node], sources: list[list[int]]) -> list[int]:
    """The box of each node, named by its first node. Connected small operators of one depth share a
    box: no cycles."""
    depth, group = _depth(nodes, sources), list(range(len(nodes)))

    def root(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    for i, node in enumerate(nodes):
        for s in sources[i] if node.type not in MAJOR else ():
            if nodes[s].type not in MAJOR and depth[s] == depth[i]:
                a, b = sorted((root(s), root(i)))
                group[b] = a
    return [root(i) for i in range(len(nodes))]


def _kind(nodes: list[Node]) -> str:
    kind = nodes[0].type
    if kind in MATMULS:
        return "matmul"
    if kind.startswith("Moe"):
        return "routing"
    if kind.startswith("Hcom"):
        return "ranks"
    named = {
        "SoftmaxV2": "attention",
        "RotaryMul": "attention",
        "RmsNorm": "norm",
        "AddRmsNorm": "norm",
        "Scatter": "cache",
        "SwiGlu": "arithmetic",
    }
    if len(nodes) == 1 and kind in named:
        return named[kind]
    kinds = {n.type for n in nodes} - NO_KERNEL
    return "gate" if "TopKV2" in kinds else "moves" if kinds <= MOVES else "arithmetic"


def _label(nodes: list[Node]) -> str:
    if len(nodes) == 1 and nodes[0].type in MAJOR:
        promise = nodes[0].promises[0] if nodes[0].promises else None
        return nodes[0].type + (f"\n{str(promise).partition(' ')[2]}" if promise else "")
    counts = Counter(n.type for n in nodes if n.type not in NO_KERNEL).most_common()
    words = [kind if n == 1 else f"{kind} ×{n}" for kind, n in counts]
    more = tr("{n} more")
    if len(words) > 4:
        words = [*words[:3], more.format(n=sum(n for _, n in counts[3:]))]
    gate = tr("gate: ") if any(n.type == "TopKV2" for n in nodes) else ""
    return gate + ",\n".join(", ".join(words[i : i + 2]) for i in range(0, len(words), 2))
