"""The slot of 04_one_hot_gating: the mask of the kept groups, by comparing instead of writing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ...messages import N_
from ...model.decoder import DeepseekV3
from ...model.gate import Gate
from ...plan import PortPlan
from ..toys import Toy
from . import Function, Slot, Wrong, changed

STUB = '''
def group_mask(group_scores, group_idx):
    """group_scores [T, G], group_idx [T, K] the K kept groups of each token, 0 to G - 1
    -> [T, G] in the dtype of group_scores: 1 where a group was kept, else 0"""
    ...
'''

SOLUTION = STUB.replace(
    "    ...\n",
    """\
    groups = torch.arange(group_scores.shape[1], device=group_idx.device)
    pages = group_idx.unsqueeze(-1) == groups               # [T, K, G], a page for each choice
    return pages.to(group_scores.dtype).sum(1)              # [T, G]
""",
)

LAST = "pages.to(group_scores.dtype).sum(1) "
TORCHS_OWN = STUB.replace(
    "    ...\n",
    """\
    pages = torch.nn.functional.one_hot(group_idx, group_scores.shape[1])   # [T, K, G], int64
    return pages.sum(1).to(group_scores.dtype)
""",
)
WRITTEN = STUB.replace(
    "    ...\n", "    return torch.zeros_like(group_scores).scatter_(1, group_idx, 1.0)\n"
)
BY_SCORE = STUB.replace(
    "    ...\n",
    """\
    lowest = group_scores.gather(1, group_idx).amin(1, keepdim=True)
    return (group_scores >= lowest).to(group_scores.dtype)
""",
)


def inputs(generator: torch.Generator, sizes: Mapping[str, int]) -> dict[str, Any]:
    """In two tokens the best group that is not kept has the score of the worst that is."""
    tokens, kept, groups = (sizes[k] for k in ("T", "K", "G"))
    scores = torch.randn(tokens, groups, generator=generator)
    order = scores.argsort(1, descending=True)
    for t in (1, 4):
        scores[t, order[t, kept]] = scores[t, order[t, kept - 1]]
    return {"group_scores": scores, "group_idx": order[:, :kept].contiguous()}


def gates(twin: DeepseekV3) -> list[Gate]:
    return [m for m in twin.modules() if isinstance(m, Gate) and m.config.n_group > 1]


def attach(twin: DeepseekV3, function: Function) -> None:
    for gate in gates(twin):
        gate.group_mask = function


class _Writes(TorchFunctionMode):
    """Counts calls that write to places which a tensor names."""

    NAMES = ("scatter", "index_put", "index_fill", "index_add", "index_copy", "put_", "__setitem__")

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += getattr(func, "__name__", "").startswith(self.NAMES)
        return func(*args, **(kwargs or {}))


def count(twin: DeepseekV3) -> dict[str, int]:
    """Indexed writes of a cached step."""
    ids = torch.full((1, 4), 5, device=twin.device)
    cache = twin.new_cache(1, 8)
    twin(ids, cache=cache)
    with _Writes() as writes:
        twin(ids[:, :1].contiguous(), cache=cache)
    return {N_("indexed writes in a cached step"): writes.seen}


SLOTS = (
    Slot(
        id="04.group_mask",
        notebook="04_one_hot_gating",
        title="A mask by comparing",
        minutes=12,
        difficulty=1,
        stub=STUB,
        solution=SOLUTION,
        finished="model.gate:one_hot_group_mask",
        hints=(
            "Compare every choice with all group numbers at once: each choice becomes a page of the "
            "board with one 1. Then merge the pages of a token.",
            "group_idx is [T, K], the numbers 0 to G - 1 are [G]. With one axis more, [T, K, 1] == [G] "
            "is [T, K, G]; the sum over the K pages is [T, G].",
            "The pages are group_idx.unsqueeze(-1) == torch.arange(group_scores.shape[1]).",
        ),
        wrong={
            "pages not merged": Wrong(
                changed(SOLUTION, (LAST, "pages.to(group_scores.dtype) ")),
                "One page per choice, [T, K, G]: merge the pages of a token.",
                "toy",
            ),
            "product of the pages": Wrong(
                changed(SOLUTION, (".sum(1)", ".prod(1)")),
                "Nothing is kept: in a product a group would have to be every choice at once.",
            ),
            "numbered from 1": Wrong(
                changed(
                    SOLUTION,
                    ("arange(group_scores.shape[1],", "arange(1, group_scores.shape[1] + 1,"),
                ),
                "The first group is 0: topk counts from there, your numbers start at 1.",
            ),
            "first choice only": Wrong(
                changed(SOLUTION, (LAST, "pages[:, 0].to(group_scores.dtype) ")),
                "Each token keeps one group, its best: where are the pages of the other choices?",
            ),
            "inverted": Wrong(
                changed(SOLUTION, (LAST, "1 - " + LAST)),
                "1 means kept: your mask lights what was rejected.",
            ),
            "by score": Wrong(
                BY_SCORE,
                "Two equal scores, and you keep a group too many: who was chosen stands in group_idx, not "
                "in the scores.",
                "toy",
            ),
            "written": Wrong(
                WRITTEN,
                "Right, and it is the form you were to replace: it writes to places that are known at run "
                "time only. Which comparison gives the same board?",
                "count",
            ),
        },
        accepted={
            "torch's own one_hot": TORCHS_OWN,
            "any": changed(SOLUTION, (LAST, "pages.any(1).to(group_scores.dtype) ")),
        },
        plan=PortPlan.full(),
        needs={"group_mask": "one_hot"},
        toy=Toy({"T": 7, "K": 3, "G": 11}, inputs, ("T", "G"), exact=True),
        attach=attach,
        calls=lambda twin, cached: len(gates(twin)) * (1 + cached),
        count=count,
    ),
)
