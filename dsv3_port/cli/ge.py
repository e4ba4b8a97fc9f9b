"""`dsv3-port ge`: list, count, draw, run and compare converted GE graphs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..errors import PortError

_SHOWN = 40  # lines of a difference


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("graph", help=".air of torchair's dynamo_export, or a graph as text (.pbtxt)")
    does = p.add_mutually_exclusive_group()
    does.add_argument("--count", action="store_true", help="operators by type")
    does.add_argument("--inputs", action="store_true", help="the inputs that --run asks for")
    does.add_argument(
        "--draw", metavar="FILE", help="a picture of one decoder layer (.svg or .png)"
    )
    does.add_argument(
        "--run",
        metavar="FILE",
        dest="inputs_file",
        help="execute it with the inputs in this "
        "safetensors file, named by the inputs' names or indices",
    )
    does.add_argument("--diff", metavar="GRAPH", help="what is different in this other graph")
    p.add_argument(
        "--layer", type=int, default=1, help="the layer to draw, from 0 (default: %(default)s)"
    )
    p.add_argument(
        "--out",
        metavar="FILE",
        help="with --run: write outputs and changed inputs there (safetensors)",
    )
    p.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from ..hostnpu.ge import read_file

    graph = read_file(args.graph)
    if args.out and not args.inputs_file:
        raise PortError("--out says where --run writes its results: give --run FILE too")
    if args.draw:
        from ..plots.ge_layer import layer_picture
        from ..plots.style import save

        print(save(layer_picture(graph, args.layer), args.draw))
    elif args.inputs_file:
        return _run(graph, args)
    elif args.diff:
        return _diff(graph, read_file(args.diff), args.json)
    elif args.count:
        counts = graph.count()
        _table(
            [(kind, str(n)) for kind, n in counts.items()] + [("all", str(sum(counts.values())))],
            ("operator", "count"),
            counts if args.json else None,
        )
    elif args.inputs:
        from ..ge.tables import input_rows

        header, rows = ("index", "name", "type and shape"), input_rows(graph)
        _table(
            rows,
            header,
            [dict(zip(header, row, strict=True)) for row in rows] if args.json else None,
        )
    else:
        from ..ge.tables import node_lines

        print(
            json.dumps(node_lines(graph), indent=1) if args.json else "\n".join(node_lines(graph))
        )
    return 0


def _table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...], as_json: Any = None) -> None:
    print(
        tabulate(rows, header, disable_numparse=True)
        if as_json is None
        else json.dumps(as_json, indent=1)
    )


def _run(graph: Any, args: argparse.Namespace) -> int:
    """Exit code 1 where a result is not what the graph says of it."""
    from safetensors.torch import save_file

    from ..ge.tables import read_inputs, result_tensors
    from ..hostnpu import ge_run

    inputs = read_inputs(graph, args.inputs_file)
    before = [t.clone() for t in inputs]
    done = ge_run.run(graph, inputs, records=True)
    tensors = result_tensors(graph, before, inputs, done.outputs)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, args.out)
    told = {
        "operators": len(done.records),
        "bytes": sum(r.nbytes for r in done.records),
        "flops": sum(r.flops for r in done.records),
        "peak_bytes": done.peak,
        "cpu_seconds": done.seconds,
        "surprises": done.surprises,
    }
    if args.json:
        records = [asdict(r) | {"dtypes": [str(d) for d in r.dtypes]} for r in done.records]
        print(json.dumps(told | {"records": records}, indent=1))
        return int(bool(done.surprises))
    _table(
        [
            (
                name,
                str(t.dtype)[6:],
                str(list(t.shape)),
                f"{t.double().min():.6g}",
                f"{t.double().max():.6g}",
            )
            for name, t in tensors.items()
            if t.numel()
        ],
        ("result", "dtype", "shape", "least", "greatest"),
    )
    print(
        f"{told['operators']} operators, {told['flops']} FLOPs in products, {told['bytes']} bytes moved, at most "
        f"{done.peak} bytes held at once; {done.seconds:.2f} s on this CPU (no time of an NPU)"
    )
    for line in done.surprises:
        print(line)
    return int(bool(done.surprises))


def _diff(a: Any, b: Any, as_json: bool) -> int:
    """Exit code 1 where the graphs differ, as diff has it."""
    from ..ge.tables import difference

    found = difference(a, b)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return int(bool(found))
    if not found:
        print("the graphs are equal, but for names")
        return 0
    _table(
        [(k, str(x), str(y), f"{y - x:+d}") for k, x, y in found.counts],
        ("operator", "first", "second", "change"),
    )
    for line, count in list(found.lines.items())[:_SHOWN]:
        print(f"{line[:1]} {count} × {line[2:]}")
    if len(found.lines) > _SHOWN:
        print(f"… {len(found.lines) - _SHOWN} more; --json has all")
    return 1
