"""The slot of 12_paged_cache: from block table and positions to the slots of new rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...count.syncs import host_syncs
from ...model.decoder import DeepseekV3
from ...model.paged_cache import Paging
from ...plan import PortPlan
from ..toys import Toy
from . import Function, Slot, Wrong, changed

STUB = '''
def slots(table, positions, block_size):
    """table [B, M] int32, the blocks of each sequence in order; positions [B, S] int64 of its new
    rows, negative for padding -> [B * S] int64: each row's place among the rows of all blocks,
    block_size of them in a block; -1 for padding"""
    ...
'''

BLOCK, OFFSET = "positions.clamp(min=0) // block_size", "positions % block_size"
FIRST = "table.gather(1, block) * block_size"
RETURN = "torch.where(positions < 0, -1, slot).flatten()"
SOLUTION = STUB.replace(
    "    ...\n",
    f"""\
    block = {BLOCK}    # [B, S]: which of the sequence's blocks
    slot = {FIRST} + {OFFSET}
    return {RETURN}
""",
)


def body(text: str) -> str:
    """Another way to write the function."""
    return STUB.replace("    ...\n", text)


def inputs(generator: torch.Generator, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Blocks in any order, none twice; one sequence begins with padding, all cross boundaries."""
    b, s, m, k = (sizes[name] for name in ("B", "S", "M", "K"))
    blocks = torch.randperm(b * m, generator=generator) + 1
    first = torch.tensor([-4, k - 1, 3 * k - 2][:b]).unsqueeze(1)
    return {
        "table": blocks.view(b, m).to(torch.int32),
        "positions": first + torch.arange(s),
        "block_size": k,
    }


def attach(twin: DeepseekV3, function: Function) -> None:
    """In small blocks, which the gate's prompts cross; without poison, so that a wrong function has a
    text to look at."""
    twin.slots = function
    twin.paging = Paging(16)


def count(twin: DeepseekV3) -> dict[str, int]:
    table = torch.tensor([[2, 1], [4, 3]], dtype=torch.int32, device=twin.device)
    positions = torch.arange(13, 18, device=twin.device).expand(2, -1).clone()
    asked = host_syncs(lambda: twin.slots(table, positions, 16))
    return {"reads on the host in a step": sum(asked.values())}


SLOTS = (
    Slot(
        id="12.slots",
        notebook="12_paged_cache",
        title="From block table to slots",
        minutes=15,
        difficulty=2,
        stub=STUB,
        solution=SOLUTION,
        finished="model.paged_cache:slot_mapping",
        hints=(
            "A position is two numbers: which of its sequence's blocks, counted from 0, and which row of "
            "that block. The table turns the first into a block of the whole cache.",
            "Both numbers are [B, S]. table is [B, M], and row b's blocks stand in table[b]: gather along M "
            "takes an index [B, S] and gives block ids [B, S]. Where a position is negative, clamp it "
            "before you index, and put -1 there at the end; then [B * S].",
            "With block = positions.clamp(min=0) // block_size the row's block begins at slot "
            "table.gather(1, block) * block_size.",
        ),
        wrong={
            "position as slot": Wrong(
                body("    return torch.where(positions < 0, -1, positions).flatten()\n"),
                "Two sequences have a row at position 0: yours both go to slot 0. Who says which blocks a "
                "sequence holds?",
                "model",
            ),
            "the first row's table": Wrong(
                changed(SOLUTION, (FIRST, "table[0][block] * block_size")),
                "Every sequence writes into the blocks of the first one. Each row of positions belongs to "
                "its own row of the table.",
                "model",
            ),
            "offset left out": Wrong(
                changed(SOLUTION, (f" + {OFFSET}", "")),
                "All rows of a block land on its first one. Where in the block does a position stand?",
                "model",
            ),
            "block id not scaled": Wrong(
                changed(SOLUTION, (FIRST, "table.gather(1, block)")),
                "A block id counts blocks, a slot counts rows. How many rows stand before block 3?",
                "model",
            ),
            "blocks counted, not numbered": Wrong(
                changed(
                    SOLUTION,
                    (
                        BLOCK,
                        "(positions.clamp(min=0) + block_size - 1) // block_size",
                    ),
                ),
                "That is how many blocks the positions before this one fill, rounded up. Position 1 is "
                "still in block 0 of its sequence: round down.",
                "model",
            ),
            "block and offset exchanged": Wrong(
                changed(
                    SOLUTION,
                    (BLOCK, "positions.clamp(min=0) % block_size"),
                    (f"+ {OFFSET}", "+ positions // block_size"),
                ),
                "Neighbours should share a block; yours go to another block at every step. Which of "
                "quotient and remainder changes at every position?",
                "model",
            ),
            "padding written": Wrong(
                changed(SOLUTION, (RETURN, "slot.flatten()")),
                "Padding has no position, and yours has a slot all the same, in the block of the first "
                "real rows. The writing operators skip a negative slot only.",
                "toy",
            ),
            "padding at slot 0": Wrong(
                changed(SOLUTION, ("positions < 0, -1, slot", "positions < 0, 0, slot")),
                "Slot 0 is a place like any other, the first row of block 0, which must stay zero. Which "
                "number is no place?",
                "toy",
            ),
            "not in one row": Wrong(
                changed(SOLUTION, (RETURN, RETURN.removesuffix(".flatten()"))),
                "The numbers are right; the operators take them as one list, [B * S], a slot for each new "
                "row.",
                "toy",
            ),
            "read on the host": Wrong(
                body(
                    "    found = []\n"
                    "    for row, blocks in zip(positions.tolist(), table.tolist()):\n"
                    "        for p in row:\n"
                    "            there = blocks[max(p, 0) // block_size]\n"
                    "            found.append(there * block_size + p % block_size if p >= 0 else -1)\n"
                    "    return torch.tensor(found, device=table.device)\n"
                ),
                "Right, and the host waits for the device in every step to read the positions; a graph "
                "keeps the numbers that it read.",
                "count",
            ),
        },
        accepted={
            "the position moved by its block": body(
                "    block = positions.clamp(min=0) // block_size\n"
                "    slot = positions + (table.gather(1, block) - block) * block_size\n"
                "    return torch.where(positions < 0, -1, slot).flatten()\n"
            ),
            "indexed": body(
                "    p = positions.clamp(min=0)\n"
                "    row = torch.arange(len(table), device=table.device).unsqueeze(1)\n"
                "    slot = table[row, p // block_size].long() * block_size + p % block_size\n"
                "    return slot.masked_fill(positions < 0, -1).reshape(-1)\n"
            ),
            "a sequence at a time": body(
                "    found = []\n"
                "    for blocks, p in zip(table, positions):\n"
                "        there = blocks[p.clamp(min=0) // block_size] * block_size + p % block_size\n"
                "        found.append(torch.where(p < 0, -1, there))\n"
                "    return torch.cat(found)\n"
            ),
        },
        plan=PortPlan.upto("paged_cache"),
        needs={"cache": "paged"},
        toy=Toy({"B": 3, "S": 13, "M": 11, "K": 5}, inputs, ("B * S",), exact=True),
        attach=attach,
        calls=lambda twin, cached: 1 + cached,
        count=count,
    ),
)
