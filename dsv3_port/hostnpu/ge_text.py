"""The text form in which torchair dumps GE graphs (graph_dump type pbtxt, dynamo.pbtxt of
dynamo_export).

It is laid out as a TensorFlow graph, for viewers: node { name, op, input ("^" before a control
edge), attr }. Each attr's `s` holds a message of torchair's own as text; keys "[i]NAME" and
"[o]NAME" are descriptions of inputs and outputs. Nothing is lost in it, constants included.
"""

from __future__ import annotations

import ast
from typing import Any

from .ge_table import GraphError


def is_dump(text: str) -> bool:
    return text.lstrip().startswith("node {")


def parse(text: str, forms: Any) -> Any:
    """A GraphDef from a dump. forms: torchair's protobuf module. GraphError names the line that
    cannot be read."""
    from google.protobuf import text_format

    graph, op, key = forms.GraphDef(name="graph"), None, ""
    for number, line in enumerate(text.split("\n"), 1):
        word, _, rest = line.strip().partition(" ")
        try:
            if word == "node":
                op = graph.op.add()
            elif word in ("name:", "op:", "input:", "key:", "s:"):
                value = ast.literal_eval("b" + rest).decode()
                if word == "key:":
                    key = value
                else:
                    _put(op, word, value, key, text_format.Parse)
            elif word not in ("attr", "value", "}", ""):
                raise ValueError(f"{word!r} is not known here")
        except (ValueError, SyntaxError, AttributeError, text_format.ParseError) as error:
            raise GraphError(f"line {number} of the dump cannot be read: {error}") from error
    return graph


def _put(op: Any, word: str, value: str, key: str, parse_text: Any) -> None:
    if word == "name:":
        op.name = value
    elif word == "op:":
        op.type = value
    elif word == "input:":
        op.input.append(f"{value[1:]}:-1" if value.startswith("^") else value)
    else:
        parse_text(
            value,
            op.input_desc.add()
            if key.startswith("[i]")
            else op.output_desc.add()
            if key.startswith("[o]")
            else op.attr[key],
        )
