"""The slot of 05_merged_mlp: a rank's merged rows, cut first. It runs while weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.loading import load_model, with_plan
from ...errors import PortError
from ...messages import tr
from ...model.decoder import DeepseekV3
from ...parallel import TensorParallel
from ...paths import tiny
from ...plan import PortPlan
from ...weights.load import MERGED
from ..toys import Toy
from ..written import load_function
from . import Function, Slot, Wrong, changed

WORLD = 2  # ranks that the judge packs for: with one, merging first would be as right

STUB = '''
def pack(gate, up, rank, world):
    """gate [I, H], up [I, H] whole; this is rank 0 to W - 1 of world = W, which divides I
    -> [2I/W, H] for npu_swiglu: SiLU of the first half times the second half"""
    ...
'''

SOLUTION = STUB.replace(
    "    ...\n",
    """\
    rows = gate.shape[0] // world
    gate = gate.narrow(0, rank * rows, rows)        # cut: this rank's rows of each
    up = up.narrow(0, rank * rows, rows)
    return torch.cat((gate, up))                    # then merge
""",
)
LAST = "torch.cat((gate, up))                    # then merge"
CUT = """\
    rows = gate.shape[0] // world
    gate = gate.narrow(0, rank * rows, rows)        # cut: this rank's rows of each
    up = up.narrow(0, rank * rows, rows)
"""


def inputs(generator: torch.Generator, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The second of three ranks."""
    width, hidden, world = (sizes[k] for k in ("I", "H", "W"))

    def weight() -> Tensor:
        return torch.randn(width, hidden, generator=generator)

    return {"gate": weight(), "up": weight(), "rank": 1, "world": world}


def merged(model: DeepseekV3) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every parameter that holds gate and up in one: (its module, its name there, itself)."""
    for path, parameter in list(model.named_parameters()):
        if path.endswith(MERGED):
            at, _, name = path.rpartition(".")
            yield model.get_submodule(at), name, parameter


def ranks_in_one(rows: Tensor, function: Function) -> Tensor:
    """[2I, H] of one MLP -> [2I, H] of a whole MLP that computes what WORLD ranks with the function's
    rows add up to: rank by rank the first halves, then the second ones."""
    gate, up = (part.clone() for part in rows.chunk(2))
    want = rows.shape[0] // WORLD
    parts = []
    for rank in range(WORLD):
        part = function(gate, up, rank, WORLD)
        if not isinstance(part, Tensor) or part.shape != (want, rows.shape[1]):
            got = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise PortError(
                f"pack gave {got}, rank {rank} of {WORLD} holds {[want, rows.shape[1]]}"
            )
        parts.append(part.chunk(2))
    return torch.cat([p[0] for p in parts] + [p[1] for p in parts])


def make(base: DeepseekV3, function: Function) -> DeepseekV3:
    """A whole model with the merged weights of the function's ranks; all other weights are shared."""
    twin = with_plan(base, base.plan.replace(graph="eager"))
    with torch.no_grad():
        for module, name, parameter in merged(twin):
            flat = parameter.detach().view(-1, *parameter.shape[-2:])
            rows = torch.stack([ranks_in_one(one, function) for one in flat])
            setattr(module, name, nn.Parameter(rows.view_as(parameter), requires_grad=False))
    return twin


def attach(twin: DeepseekV3, function: Function) -> None:
    raise AssertionError("a pack is no attribute: `make` loads with it")


def calls(twin: DeepseekV3, cached: int) -> int:
    return WORLD * sum(p.shape[:-2].numel() for _, _, p in merged(twin))


def loaded(finished: DeepseekV3, source: str, file: str) -> str | None:
    """The embedded model loaded by each rank with pack=: bit for bit the loader's own."""
    function = load_function(source, "pack", file)
    function = getattr(getattr(function, "written", None), "function", function)
    try:
        where = tiny()
    except PortError:
        return None
    for rank in range(WORLD):
        at = TensorParallel(rank, WORLD)
        right, mine = (
            load_model(where, finished.plan, "cpu", "float32", at, pack=pack)
            for pack in (None, function)
        )
        for (path, a), (_, b) in zip(
            right.named_parameters(), mine.named_parameters(), strict=True
        ):
            if not torch.equal(a, b):
                said = tr("rank {rank} of {world} loads another {what} with your function")
                return said.format(rank=rank, world=WORLD, what=path)
    return None


SLOTS = (
    Slot(
        id="05.pack",
        notebook="05_merged_mlp",
        title="Cut, then merge",
        minutes=18,
        difficulty=2,
        stub=STUB,
        solution=SOLUTION,
        finished="weights.layout:_Rules.mlp",
        hints=(
            "Each rank computes its own I/W outputs of gate and the same I/W outputs of up. Take both, "
            "then put one on top of the other, in the order that npu_swiglu splits them.",
            "gate and up are [I, H], outputs first. A rank's rows of each are [I/W, H], from rank·I/W "
            "on; one on top of the other they are [2I/W, H].",
            "A cut is gate.narrow(0, rank * rows, rows) with rows = gate.shape[0] // world.",
        ),
        wrong={
            "merged, then cut": Wrong(
                changed(
                    SOLUTION,
                    (CUT, "    both = torch.cat((gate, up))\n"),
                    (LAST, "both.chunk(world)[rank]"),
                ),
                "Right for one rank; with two, rank 0 holds only gate and rank 1 only up. Cut both, then "
                "merge.",
            ),
            "up first": Wrong(
                changed(SOLUTION, (LAST, "torch.cat((up, gate))")),
                "Which half does SiLU get? npu_swiglu takes the first for it, so gate stands on top.",
            ),
            "rows interleaved": Wrong(
                changed(SOLUTION, (LAST, "torch.stack((gate, up), 1).flatten(0, 1)")),
                "npu_swiglu splits in the middle; your rows alternate gate, up, gate, up.",
            ),
            "every world-th row": Wrong(
                changed(SOLUTION, (CUT, "    gate, up = gate[rank::world], up[rank::world]\n")),
                "The right count, another rank's rows: down_proj of this rank expects the outputs from "
                "rank·I/W on, without gaps.",
            ),
            "rank 0's rows everywhere": Wrong(
                changed(SOLUTION, (CUT, CUT.replace("rank * rows", "0"))),
                "All ranks hold the same rows: where does this rank's part begin?",
            ),
            "cut along the inputs": Wrong(
                changed(
                    SOLUTION,
                    (CUT, CUT.replace("shape[0]", "shape[1]").replace("narrow(0", "narrow(1")),
                ),
                "[2I/W, H]: which axis is H? Gate and up are cut by outputs; every rank reads all inputs.",
                "toy",
            ),
            "whole on every rank": Wrong(
                changed(SOLUTION, (CUT, "")),
                "Nothing was cut: every rank would hold all 2I rows, and the sum over ranks count each "
                "product W times.",
                "toy",
            ),
        },
        accepted={
            "chunk": changed(
                SOLUTION,
                (CUT, "    gate, up = gate.chunk(world)[rank], up.chunk(world)[rank]\n"),
            ),
            "one view": STUB.replace(
                "    ...\n",
                """\
    both = torch.stack((gate, up)).unflatten(1, (world, -1))    # [2, W, I/W, H]
    return both[:, rank].flatten(0, 1)
""",
            ),
        },
        plan=PortPlan.full(),
        needs={"mlp": "merged"},
        toy=Toy({"I": 21, "H": 5, "W": 3}, inputs, ("2I/W", "H"), exact=True),
        attach=attach,
        calls=calls,
        moment=f"for {WORLD} ranks while weights were loaded",
        make=make,
        extra=loaded,
    ),
)
