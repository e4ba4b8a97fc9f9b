"""The slot of 01_shard_weights: one rank's part of a matrix. It runs while weights are loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.loading import load_model, with_plan
from ...messages import tr
from ...model.decoder import DeepseekV3
from ...parallel import TensorParallel
from ...paths import tiny
from ...plan import PortPlan
from ...weights.layout import Piece, Target, targets
from ..over_ranks import WORLD, objection, only_embedded
from ..written import Sent, load_function
from . import Function, Slot, Wrong, changed

STUB = '''
def cut(weight, axis, unit, rank, world):
    """weight [out, in] whole; this is rank 0 to W - 1 of world = W -> its 1/W of axis 0 (outputs)
    or 1 (inputs), in whole units of `unit` rows or columns (a head's); ValueError where units do
    not divide"""
    ...
'''

SOLUTION = STUB.replace(
    "    ...\n",
    """\
    units = weight.shape[axis] // unit
    if units % world:
        raise ValueError(f"{units} units cannot be cut over {world} ranks")
    size = units // world * unit
    return weight.narrow(axis, rank * size, size)
""",
)
CHECK = """\
    if units % world:
        raise ValueError(f"{units} units cannot be cut over {world} ranks")
"""
LAST = "weight.narrow(axis, rank * size, size)"

# (shape, axis, unit, world): units that divide, and units that do not
FITS = (((18, 5), 0, 3, 3), ((8, 10), 1, 1, 2), ((6, 12), 1, 2, 3))
REFUSED = (((20, 2), 0, 5, 5), ((21, 2), 0, 3, 3), ((2, 7), 1, 1, 3))
Parts = list[Tensor | None]  # rank by rank; None: refused


def whole(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(shape[0] * shape[1], dtype=torch.float32).view(shape)


def outcome_of(function: Function) -> tuple[list[Parts], bool]:
    """Every rank's part in every case, and whether a weight was changed. Errors go through where
    units divide."""
    made: list[Parts] = []
    changed_it = False
    for fits, cases in ((True, FITS), (False, REFUSED)):
        for shape, axis, unit, world in cases:
            parts: Parts = []
            for rank in range(world):
                weight, part = whole(shape), None
                with contextlib.nullcontext() if fits else contextlib.suppress(Exception):
                    part = function(weight, axis, unit, rank, world)
                    if not isinstance(part, Tensor):
                        raise TypeError(f"cut returned a {type(part).__name__}, not a tensor")
                changed_it |= not torch.equal(weight, whole(shape))
                parts.append(part)
            made.append(parts)
    return made, changed_it


def same(a: list[Parts], b: list[Parts]) -> bool:
    def equal(x: Tensor | None, y: Tensor | None) -> bool:
        return x is y if x is None or y is None else torch.equal(x, y)

    return all(equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


def toy(function: Function, slot: Slot) -> str | None:
    (got, changed_it), (want, _) = (
        outcome_of(function),
        outcome_of(load_function(slot.solution, slot.name)),
    )
    if changed_it:
        return tr("your function changes its argument {name}; it may read it only").format(
            name="weight"
        )
    if same(got, want):
        return None
    for name, wrong in slot.wrong.items():
        with contextlib.suppress(Exception):  # this answer raises, the one that is judged did not
            if same(got, outcome_of(load_function(wrong.source, slot.name))[0]):
                return name
    return _first_place(got, want)


def _first_place(got: list[Parts], want: list[Parts]) -> str | None:
    for (shape, axis, unit, world), mine, right in zip((*FITS, *REFUSED), got, want, strict=True):
        case = tr("{shape} cut along axis {axis} in units of {unit} over {world} ranks").format(
            shape=[*shape], axis=axis, unit=unit, world=world
        )
        for rank, (x, y) in enumerate(zip(mine, right, strict=True)):
            if y is None and x is not None:
                said = tr("{case}: {n} units do not divide, and rank {rank} got {got}")
                return said.format(case=case, n=shape[axis] // unit, rank=rank, got=[*x.shape])
            if y is not None and x is not None and x.shape != y.shape:
                said = tr("{case}: rank {rank} got {got}, its part is {due}")
                return said.format(case=case, rank=rank, got=[*x.shape], due=[*y.shape])
            if y is not None and x is not None and not torch.equal(x, y):
                said = tr("{case}: rank {rank} got the right shape and other elements")
                return said.format(case=case, rank=rank)
    return None


def ranks_of(plan: PortPlan, function: Function) -> list[DeepseekV3]:
    """The embedded model as each rank loads it with the function; no rank runs."""
    return [
        load_model(tiny(), plan, "cpu", "float32", TensorParallel(rank, WORLD), cut=function)
        for rank in range(WORLD)
    ]


def joined(target: Target, parts: list[tuple[Target, Tensor]]) -> Tensor:
    """One parameter of the whole model from those of the ranks: what all of them compute together."""
    made = torch.empty(target.shape)
    for k, piece in enumerate(target.pieces):
        blocks = [of_rank.pieces[k].block(value) for of_rank, value in parts]
        into, one = piece.block(made), blocks[0]
        axes = [a for a, (x, y) in enumerate(zip(into.shape, one.shape, strict=True)) if x != y]
        into.copy_(torch.cat(blocks, axes[0]) if axes else one)
    return made


def make(base: DeepseekV3, function: Function) -> DeepseekV3:
    """A whole model with the parts that the function cuts, one beside the other. PortError where
    `base` is not the embedded model, whose published weights are cut."""
    only_embedded(base, "01.cut")
    twin = with_plan(base, base.plan.replace(graph="eager", tensor_parallel=True))
    ranks = ranks_of(twin.plan, function)
    lists = [targets(base.config, twin.plan)]
    lists += [targets(base.config, twin.plan, model.parallel) for model in ranks]
    with torch.no_grad():
        for target, *of_ranks in zip(*lists, strict=True):
            parts = [(t, m.get_parameter(t.name)) for t, m in zip(of_ranks, ranks, strict=True)]
            at, _, name = target.name.rpartition(".")
            value = joined(target, [(t, p.detach()) for t, p in parts])
            old = twin.get_parameter(target.name)
            new = nn.Parameter(value.to(old.device, old.dtype), requires_grad=False)
            setattr(twin.get_submodule(at), name, new)
    return twin


def cut_pieces(twin: DeepseekV3) -> Iterator[Piece]:
    for target in targets(twin.config, twin.plan, TensorParallel(0, WORLD)):
        yield from (p for p in target.pieces if p.length != p.source_shape[p.dim])


def attach(twin: DeepseekV3, function: Function) -> None:
    raise AssertionError("a cut is no attribute: `make` loads with it")


def calls(twin: DeepseekV3, cached: int) -> int:
    return WORLD * sum(1 for _ in cut_pieces(twin))


def over_two(finished: DeepseekV3, source: str, file: str) -> str | None:
    return objection("cut", finished, Sent(source, "cut", file))


NOWHERE: dict[str, Any] = {"seen_by": "toy"}
SLOTS = (
    Slot(
        id="01.cut",
        notebook="01_shard_weights",
        title="One rank's part",
        minutes=20,
        difficulty=2,
        stub=STUB,
        solution=SOLUTION,
        finished="weights.layout:_Rules.matrix",
        hints=(
            "Count in units, not in rows: how many units has the axis, does every rank get the same number "
            "of them, and where does this rank's part begin?",
            "weight is [out, in]. Along `axis` there are weight.shape[axis] // unit units; a rank gets "
            "units // world of them, that is units // world * unit rows or columns, from rank times that "
            "many on. The other axis stays whole.",
            "A cut is weight.narrow(axis, start, length); unlike a slice it raises past the end.",
        ),
        wrong={
            "every world-th row": Wrong(
                changed(
                    SOLUTION,
                    (
                        LAST,
                        "weight.index_select(axis, torch.arange(rank, weight.shape[axis], world))",
                    ),
                ),
                "The right count, another rank's rows: a rank holds neighbours, from rank times its size "
                "on, and whole heads.",
            ),
            "rank 0's part everywhere": Wrong(
                changed(SOLUTION, ("rank * size", "0")),
                "All ranks hold the same part, and the sum over ranks counts it W times: where does this "
                "rank's part begin?",
            ),
            "always axis 0": Wrong(
                SOLUTION.replace("shape[axis]", "shape[0]").replace("narrow(axis", "narrow(0"),
                "`down_proj` gave each rank some outputs of a sum over all inputs, and a rank has only its "
                "own inputs. Which axis does `axis` name?",
            ),
            "slice": Wrong(
                changed(
                    SOLUTION,
                    (CHECK, ""),
                    ("size = units // world * unit", "size = -(-units // world) * unit"),
                    (
                        LAST,
                        "weight.transpose(0, axis)[rank * size : (rank + 1) * size].transpose(0, axis)",
                    ),
                ),
                "Of 7 heads rank 2 of 3 got fewer rows and nobody complained: a slice past the end becomes "
                "shorter, or empty. Refuse what does not divide.",
                **NOWHERE,
            ),
            "not checked": Wrong(
                changed(SOLUTION, (CHECK, "")),
                "Of 7 heads each of 3 ranks got two, and the seventh is in no rank: // rounds down, and "
                "narrow raises past the end only. Who checks that units divide?",
                **NOWHERE,
            ),
            "remainder to the last rank": Wrong(
                changed(
                    SOLUTION,
                    (CHECK, ""),
                    (
                        f"    return {LAST}",
                        "    rest = weight.shape[axis] - rank * size\n"
                        "    return weight.narrow(axis, rank * size, rest if rank == world - 1 else size)",
                    ),
                ),
                "All ranks compute the same shapes at the same time: one that holds more makes the others "
                "wait, and no parameter has its shape. Refuse instead.",
                **NOWHERE,
            ),
            "through a head": Wrong(
                SOLUTION.replace("weight.shape[axis] // unit", "weight.shape[axis]").replace(
                    "units // world * unit", "units // world"
                ),
                "Of 4 heads over 5 ranks rank 0 got four of a head's five rows: rows divide, heads do not. "
                "Count in units.",
                **NOWHERE,
            ),
        },
        accepted={
            "chunk of units": changed(
                SOLUTION,
                (
                    f"    size = units // world * unit\n    return {LAST}",
                    "    return weight.chunk(world, axis)[rank]",
                ),
            ),
            "one view": STUB.replace(
                "    ...\n",
                """\
    assert weight.shape[axis] % (unit * world) == 0, "units do not divide"
    return weight.unflatten(axis, (world, -1)).select(axis, rank)
""",
            ),
        },
        plan=PortPlan.full(),
        needs={"tensor_parallel": True},
        toy=toy,
        attach=attach,
        calls=calls,
        moment=f"for {WORLD} ranks while weights were loaded",
        make=make,
        extra=over_two,
        looked=f"; {WORLD} real processes with it load each element once and compute the same",
    ),
)
