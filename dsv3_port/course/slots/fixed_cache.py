"""The slot of 06a_fixed_cache: new rows written in place, at the slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...count.copies import addresses_over, written_bytes
from ...count.syncs import host_syncs
from ...messages import N_
from ...model.decoder import DeepseekV3
from ...plan import PortPlan
from ..toys import Toy
from . import Function, Slot, Wrong, changed

STUB = '''
def write_rows(buffer, new, slot):
    """buffer [B, N, L, W], new [B, N, S, W], slot [B] int64, the same in all rows -> buffer:
    the same tensor, with new at positions slot, slot + 1, … of its L and nothing else touched"""
    ...
'''

AT, INDEX = "torch.arange(new.shape[2], device=slot.device)", "at[:, None, :, None].expand_as(new)"
SOLUTION = STUB.replace(
    "    ...\n",
    f"""\
    at = slot.unsqueeze(1) + {AT}    # [B, S]
    index = {INDEX}                     # [B, N, S, W]
    return buffer.scatter_(2, index, new)
""",
)


def body(text: str) -> str:
    """Another way to write the function."""
    return STUB.replace("    ...\n", text)


def inputs(generator: torch.Generator, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The cache holds rows of before, also behind the slot; there is room behind the new ones."""
    b, n, s, length, width = (sizes[k] for k in ("B", "N", "S", "L", "W"))
    return {
        "buffer": torch.randn(b, n, length, width, generator=generator),
        "new": torch.randn(b, n, s, width, generator=generator),
        "slot": torch.full((b,), int(torch.randint(1, 7, (), generator=generator))),
    }


def attach(twin: DeepseekV3, function: Function) -> None:
    twin.write = function


def writes(twin: DeepseekV3) -> int:
    """Of one step: a layer writes each tensor that its cache keeps."""
    return twin.config.num_hidden_layers * len(twin.model.cache_widths)


def count(twin: DeepseekV3) -> dict[str, int]:
    """Addresses of a layer's cache over three steps; layers whose write asks the host, or copies as
    much as the cache has room for."""
    ids = torch.full((1, 4), 5, device=twin.device)
    cache = twin.new_cache(1, 64)
    twin(ids, cache=cache)
    places = addresses_over(lambda: twin(ids[:, :1].contiguous(), cache=cache), cache, 3)
    asks = copies = 0
    for layer in range(cache.layers):
        new = [torch.zeros_like(t[:, :, :1]) for t in cache.buffers[layer]]
        room = sum(t.nbytes for t in cache.buffers[layer])

        def write(layer: int = layer, new: Any = new) -> None:
            cache.update(layer, *new)

        asks += bool(host_syncs(write))
        copies += sum(written_bytes(write).values()) >= room
    return {
        N_("addresses in three steps"): places,
        N_("layers whose write asks the host"): asks,
        N_("layers whose write copies the whole room"): copies,
    }


SLOTS = (
    Slot(
        id="06a.write_rows",
        notebook="06a_fixed_cache",
        title="Rows written in place",
        minutes=20,
        difficulty=2,
        stub=STUB,
        solution=SOLUTION,
        finished="model.cache:write_at_slot",
        hints=(
            "S new rows need S places, the first of them at the slot. Compute these places as a tensor on "
            "the device, and let one in-place operator put the rows there.",
            "slot is [B]; with arange(S) beside it the places are [B, S]. scatter_ along L wants an index "
            "of new's shape: [B, N, S, W], the same place for every head and every column.",
            "The index is at[:, None, :, None].expand_as(new).",
        ),
        wrong={
            "one late": Wrong(
                changed(SOLUTION, (f"+ {AT}", f"+ {AT} + 1")),
                "What does the query see in its own place? Yours leaves the place at the slot as it was and "
                "writes behind it, where the mask hides the new row.",
            ),
            "all rows at the slot": Wrong(
                changed(SOLUTION, (f"+ {AT}", f"+ 0 * {AT}")),
                "S new rows need S places: yours all land at the slot, and the last one stays.",
            ),
            "index not expanded": Wrong(
                changed(SOLUTION, (INDEX, INDEX.removesuffix(".expand_as(new)"))),
                "You wrote column 0 of each row, of head 0: scatter_ writes as much as the index has "
                "elements, and complains of nothing.",
            ),
            "only the filled part": Wrong(
                changed(SOLUTION, ("index, new)", "index, new)[:, :, : slot[0] + new.shape[2]]")),
                "The mask has the width of the whole room, L: hand back the buffer, not the part that is "
                "filled. Its shape must not change from step to step.",
            ),
            "nothing handed back": Wrong(
                changed(SOLUTION, ("return buffer.scatter_", "buffer.scatter_")),
                "You wrote in place and returned nothing: attention reads what you hand back, the buffer.",
            ),
            "a new tensor": Wrong(
                changed(SOLUTION, ("scatter_(", "scatter(")),
                "Right text, and another address in every step: a captured graph would go on reading the "
                "first one. And the whole room is copied for one row.",
                "count",
            ),
            "read on the host": Wrong(
                body(
                    "    start = int(slot[0])\n"
                    "    buffer[:, :, start : start + new.shape[2]] = new\n"
                    "    return buffer\n"
                ),
                "Right, and one host read in each layer and step: the host waits there until the device has "
                "caught up, and a graph keeps the number that it read.",
                "count",
            ),
            "the whole room rewritten": Wrong(
                body(
                    "    place = torch.arange(buffer.shape[2], device=slot.device) - slot[0]\n"
                    "    row = place.clamp(0, new.shape[2] - 1)\n"
                    "    here = (place == row)[:, None]\n"
                    "    return buffer.copy_(torch.where(here, new[:, :, row], buffer))\n"
                ),
                "Right, and it stays at its address; yet you write all L positions to change S of them, in "
                "every layer and step.",
                "count",
            ),
        },
        accepted={
            "index_copy_": body(
                f"    return buffer.index_copy_(2, slot[0] + {AT}, new)\n",
            ),
            "indexed assignment": body(
                f"    at = slot[0] + {AT}\n    buffer[:, :, at] = new\n    return buffer\n"
            ),
            "a row at a time": body(
                "    for s in range(new.shape[2]):\n"
                "        buffer.index_copy_(2, slot[:1] + s, new[:, :, s : s + 1])\n"
                "    return buffer\n"
            ),
        },
        plan=PortPlan.full(),
        needs={"cache": "fixed"},
        toy=Toy(
            {"B": 2, "N": 3, "S": 5, "L": 17, "W": 7},
            inputs,
            ("B", "N", "L", "W"),
            exact=True,
            writes=("buffer",),
        ),
        attach=attach,
        calls=lambda twin, cached: writes(twin) * (1 + cached),
        count=count,
    ),
)
