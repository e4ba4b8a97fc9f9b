"""The slot of 07_torchair_graph: which keys a query sees, without a question to the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...count.captured import first_layers
from ...count.compiled import step_graphs
from ...engine.loading import with_plan
from ...messages import N_
from ...model.decoder import DeepseekV3
from ...plan import PortPlan
from ..toys import Toy
from . import Function, Slot, Wrong, changed

STUB = '''
def visible(slot, new, keys, pad):
    """slot [B] int64, the same in all rows: place of the first of `new` (S) queries; `keys` (L),
    a number as `new` is; pad [B] int64: padding left of each row -> bool [B, S, L]: which keys
    each query sees, those up to its own place but no padding"""
    ...
'''

SOLUTION = STUB.replace(
    "    ...\n",
    """\
    query = slot.unsqueeze(1) + torch.arange(new, device=slot.device)    # [B, S]
    key = torch.arange(keys, device=slot.device)                         # [L]
    seen = key <= query.unsqueeze(-1)                                    # [B, S, L]
    return seen & (key >= pad.view(-1, 1, 1))
""",
)
RETURN = "return seen & (key >= pad.view(-1, 1, 1))"
OTHERS = STUB.replace(
    "    ...\n",
    """\
    key = torch.arange(keys, device=pad.device).expand(len(pad), new, keys)
    last = (slot[:, None] + torch.arange(new, device=pad.device))[:, :, None]
    return ~((key > last) | (key < pad[:, None, None]))
""",
)
DIFFERENCES = STUB.replace(
    "    ...\n",
    """\
    key = torch.arange(keys, device=slot.device)
    behind = slot[0] + torch.arange(new, device=slot.device)[:, None] - key        # [S, L]
    return torch.logical_and(behind >= 0, pad[:, None, None] <= key)
""",
)
# what a learner who was told to ask nothing may do: count in Python
OWN_COUNT = (
    changed(
        SOLUTION,
        (
            "    query = slot.unsqueeze(1) + torch",
            "    start = 0 if new == keys else held[0]        # a prompt begins anew\n"
            "    held[0] = start + new\n"
            "    query = start + torch",
        ),
    )
    + "\nheld = [0]\n"
)


def inputs(generator: torch.Generator, sizes: Mapping[str, int]) -> dict[str, Any]:
    """A step of S queries in a cache with spare room; every row has other padding."""
    b, s, length = (sizes[k] for k in ("B", "S", "L"))
    start = int(torch.randint(4, length - s, (), generator=generator))
    return {
        "slot": torch.full((b,), start),
        "new": s,
        "keys": length,
        "pad": torch.randperm(4, generator=generator)[:b],
    }


class Anywhere(Toy):
    """Called as a model calls it, a prompt first; and it works where the device is not the host: on
    device meta, which mixes with no other."""

    def outcome(self, function: Function, seed: int) -> tuple[Any, list[str]]:
        step = self.inputs(torch.Generator().manual_seed(seed), self.sizes)
        held = int(step["slot"][0])
        with torch.no_grad():
            function(torch.zeros_like(step["slot"]), held, held, step["pad"].clone())
        return super().outcome(function, seed)

    def __call__(self, function: Function, slot: Slot) -> str | None:
        said = super().__call__(function, slot)
        return "made on the host" if said is None and mixes_devices(function) else said


def mixes_devices(function: Function) -> bool:
    slot, pad = (torch.zeros(2, dtype=torch.int64, device="meta") for _ in range(2))
    try:
        return bool(function(slot, 3, 11, pad).device.type != "meta")
    except Exception as error:  # a question to the host fails there too: the counts judge it
        return "device" in str(error)


def attach(twin: DeepseekV3, function: Function) -> None:
    twin.visible = function


def count(twin: DeepseekV3) -> dict[str, int]:
    """By Dynamo, of the model's first layer: graphs of a prompt and three steps, pieces of a step."""
    small = first_layers(with_plan(twin, twin.plan), 1)
    small.visible = twin.visible
    found = step_graphs(small)
    return {
        N_("graphs for a prompt and three steps"): found.after[-1],
        N_("pieces that a step runs in"): found.pieces,
    }


SLOTS = (
    Slot(
        id="07.visible",
        notebook="07_torchair_graph",
        title="What a query sees, unasked",
        minutes=20,
        difficulty=2,
        stub=STUB,
        solution=SOLUTION,
        finished="model.visible:visible_keys",
        hints=(
            "Number the queries and the keys by their places, both as tensors on the device of slot, and "
            "compare. Nothing needs to be known on the host but the two sizes that you are given.",
            "slot [B] with arange(S) beside it gives the queries' places, [B, S]; keys are arange(L), [L]. "
            "A comparison of [B, S, 1] with [L] is [B, S, L]; pad as [B, 1, 1] compares in the same way.",
            "The first half is torch.arange(keys, device=slot.device) <= query.unsqueeze(-1).",
        ),
        wrong={
            "no padding": Wrong(
                changed(SOLUTION, (RETURN, "return seen.expand(len(pad), new, keys)")),
                "One prompt of the three is longer than the others: what stands left of the short ones? "
                "Your queries see it.",
            ),
            "itself hidden": Wrong(
                changed(SOLUTION, ("key <= query", "key < query")),
                "Does a token see itself? Its row has been written at its place when attention looks.",
            ),
            "inverted": Wrong(
                changed(SOLUTION, (RETURN, f"return ~({RETURN.removeprefix('return ')})")),
                "True means seen; yours is True where a key must be hidden.",
            ),
            "slot left out": Wrong(
                changed(SOLUTION, ("slot.unsqueeze(1) +", "0 * slot.unsqueeze(1) +")),
                "Right for a prompt. In a cached step the query does not stand at place 0: where does it?",
            ),
            "only what is filled": Wrong(
                changed(
                    SOLUTION,
                    ("torch.arange(keys, device", "torch.arange(int(slot[0]) + new, device"),
                ),
                "The mask is as wide as the keys, L, in every step. Yours is as wide as what is filled: "
                "another shape in each step, and another graph.",
            ),
            "made on the host": Wrong(
                SOLUTION.replace(", device=slot.device", ""),
                "Right on a CPU only: torch.arange without a device lies on the host, slot and pad on the "
                "NPU, which refuses to mix them.",
                seen_by="toy",
            ),
            "asked for the slot": Wrong(
                changed(SOLUTION, ("slot.unsqueeze(1) +", "int(slot[0]) +")),
                "Right text, and the graph is broken: who asked for a number? At int(slot[0]) the host must "
                "wait, Python goes on with the number, and the step falls into pieces.",
                seen_by="count",
            ),
            "counted in Python": Wrong(
                OWN_COUNT,
                "Right text and no break, but a graph for every step: a Python number is a constant of the "
                "graph, and yours is another one each time.",
                seen_by="count",
            ),
        },
        accepted={"the other way round": OTHERS, "by difference": DIFFERENCES},
        plan=PortPlan.full(),
        needs={"cache": "fixed"},
        toy=Anywhere({"B": 3, "S": 2, "L": 11}, inputs, ("B", "S", "L"), exact=True),
        attach=attach,
        calls=lambda twin, cached: 1 + cached,
        count=count,
    ),
)
