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
        title_zh="由 block table 计算 slot",
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
        hints_zh=(
            "一个位置由两个数组成：它在序列的第几个块（从 0 数起），以及在该块的第几行。"
            "block table 把前者换成整个 cache 的块号。",
            "两个数都是 [B, S]。table 为 [B, M]，第 b 行的块在 table[b]：沿 M 轴 gather，索引 [B, S]，得到块号 [B, S]。"
            "负位置先 clamp 再索引，最后置为 -1，再展平为 [B * S]。",
            "令 block = positions.clamp(min=0) // block_size，则该块从 slot table.gather(1, block) * block_size 开始。",
        ),
        wrong={
            "position as slot": Wrong(
                body("    return torch.where(positions < 0, -1, positions).flatten()\n"),
                "Two sequences have a row at position 0: yours both go to slot 0. Who says which blocks a "
                "sequence holds?",
                "两个序列都有位置 0：你把它们都写到 slot 0。哪个张量说明序列持有哪些块？",
                "model",
            ),
            "the first row's table": Wrong(
                changed(SOLUTION, (FIRST, "table[0][block] * block_size")),
                "Every sequence writes into the blocks of the first one. Each row of positions belongs to "
                "its own row of the table.",
                "所有序列都写进了第一个序列的块。每一行 positions 对应 table 中自己的那一行。",
                "model",
            ),
            "offset left out": Wrong(
                changed(SOLUTION, (f" + {OFFSET}", "")),
                "All rows of a block land on its first one. Where in the block does a position stand?",
                "同一块的各行都落在块的第一行。位置在块内是第几行？",
                "model",
            ),
            "block id not scaled": Wrong(
                changed(SOLUTION, (FIRST, "table.gather(1, block)")),
                "A block id counts blocks, a slot counts rows. How many rows stand before block 3?",
                "块号以块计数，slot 以行计数。第 3 块之前有多少行？",
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
                "这是向上取整得到的块数。位置 1 仍在序列的第 0 块：应向下取整。",
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
                "相邻位置应在同一块；你的却每个位置换一块。商与余数，哪一个每个位置都变？",
                "model",
            ),
            "padding written": Wrong(
                changed(SOLUTION, (RETURN, "slot.flatten()")),
                "Padding has no position, and yours has a slot all the same, in the block of the first "
                "real rows. The writing operators skip a negative slot only.",
                "填充没有位置，你却给了它一个 slot，就在真实数据所在的块里。写入算子只跳过负的 slot。",
                "toy",
            ),
            "padding at slot 0": Wrong(
                changed(SOLUTION, ("positions < 0, -1, slot", "positions < 0, 0, slot")),
                "Slot 0 is a place like any other, the first row of block 0, which must stay zero. Which "
                "number is no place?",
                "slot 0 也是一个位置：块 0 的第一行，它必须保持为零。哪个数不是位置？",
                "toy",
            ),
            "not in one row": Wrong(
                changed(SOLUTION, (RETURN, RETURN.removesuffix(".flatten()"))),
                "The numbers are right; the operators take them as one list, [B * S], a slot for each new "
                "row.",
                "数值正确；算子需要一维 [B * S]，每个新行一个 slot。",
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
                "结果正确，但每一步 host 都要等设备读出位置；图会把读到的数固定下来。",
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
