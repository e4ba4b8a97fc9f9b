"""Two graphs differ in what they hold and where it stands; names do not count."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dsv3_port.ge.tables import difference
from dsv3_port.hostnpu.ge import Graph, Node
from dsv3_port.hostnpu.ge_promise import Promise

F32 = torch.float32


def node(name, kind, inputs=(), names=(), shape=(2, 2), dtype=F32, **attributes):
    promise = Promise(dtype, shape)
    return Node(name, kind, list(inputs), list(names), [], [promise], [None], attributes, name)


def graph(weight=None, **changes):
    """x @ w through three equal layers of Mul and Add, and a cache as large as x."""
    weight = torch.arange(16.0).view(4, 4) if weight is None else weight
    nodes = [
        node("x", "Data", index=0),
        node("cache", "RefData", index=1),
        node("w", "Const", value=weight),
        node("mm", "MatMul", [("x", 0), ("w", 0)], ["x1", "x2"], transpose_x2=False),
    ]
    last = "mm"
    for i in range(3):
        nodes.append(node(f"mul{i}", "Mul", [(last, 0), (last, 0)], ["x1", "x2"]))
        nodes.append(node(f"add{i}", "Add", [(f"mul{i}", 0), ("mm", 0)], ["x1", "x2"]))
        last = f"add{i}"
    nodes.append(node("write", "Assign", [("cache", 0), (last, 0)], ["ref", "value"]))
    nodes.append(node("out", "NetOutput", [("write", 0)], ["x"]))
    return Graph("g", [replace(n, **changes.get(n.name, {})) for n in nodes])


def renamed(g):
    new = {n.name: f"other_{n.name}" for n in g.nodes}
    return Graph(
        "h",
        [
            replace(n, name=new[n.name], inputs=[(new[e[0]], e[1]) for e in n.inputs])
            for n in g.nodes
        ],
    )


def test_names_do_not_count():
    assert not difference(graph(), renamed(graph()))


@pytest.mark.parametrize("value", [-1.0, -0.0, math.nan, math.inf, 5.0 + 2**-20])
def test_weights_count_by_their_values(value):
    """16 values: more than a description shows."""
    other = torch.arange(16.0).view(4, 4)
    other[1, 1] = value
    found = difference(graph(), renamed(graph(other)))
    assert not found.counts and any("MatMul(" in line for line in found.lines)
    assert any("#" in line for line in found.lines)
    assert difference(graph(), graph(torch.arange(16).view(4, 4)))  # equal numbers, another type


def test_inputs_count_by_their_place():
    """Two inputs of one type and shape exchanged."""
    a = graph()
    b = graph(x={"attributes": {"index": 1}}, cache={"attributes": {"index": 0}})
    b.nodes[0].type, b.nodes[1].type = "Data", "Data"
    a.nodes[1].type = "Data"
    assert not difference(a, a)
    lines = difference(a, b).lines
    assert any("MatMul(x1=input 0" in t and t[0] == "-" for t in lines)
    assert any("MatMul(x1=input 1" in t and t[0] == "+" for t in lines)


def test_an_input_more_moves_no_other():
    """One line for the input, none for those that stand behind it now."""
    b = graph(x={"attributes": {"index": 1}}, cache={"attributes": {"index": 2}})
    b.nodes.insert(0, node("mask", "Data", shape=(7,), index=0))
    lines = difference(graph(), b).lines
    assert list(lines) == ["+ input 0 of the second Data torch.float32 [7]"]


def test_a_wire_to_an_operator_that_looks_alike():
    """add2 takes mul1's result in place of mul2's: two operators back both look the same."""
    b = graph(add2={"inputs": [("mul1", 0), ("mm", 0)]})
    lines = difference(graph(), b).lines
    assert any(
        t.startswith("~ Add add2: from mul2, in the other graph from mul1") for t in lines
    ), lines


def test_what_is_said_of_results_counts():
    half = [Promise(torch.float16, (2, 2))]
    assert difference(graph(), graph(mul1={"declared": half}))
    assert difference(graph(), graph(mul1={"promises": half}))
    assert difference(graph(), graph(mm={"attributes": {"transpose_x2": 0}}))  # no bool any more
