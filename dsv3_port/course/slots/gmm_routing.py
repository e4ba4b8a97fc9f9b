"""The slot of 03_gmm_routing: sort once, multiply in blocks, put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...count.syncs import host_syncs
from ...messages import N_
from ...model.decoder import DeepseekV3
from ...model.experts import GroupedExperts
from ...plan import PortPlan
from ..toys import Toy
from . import Function, Slot, Wrong, changed

STUB = '''
def moe_infer_normal(x, chosen, weights, shared, experts, multiply):
    """x [T, H], chosen [T, K] expert numbers, weights [T, K], shared [T, H] or None -> [T, H]
    multiply(rows [T*K, H] sorted by expert, ends [E] int64) -> [T*K, H], each by its expert"""
    ...
'''

SOLUTION = STUB.replace(
    "    ...\n",
    """\
    tokens, top = chosen.shape
    expert, order = chosen.flatten().sort()            # choice p = t*K + k belongs to token p // K
    numbers = torch.arange(experts, device=x.device)
    ends = (expert <= numbers.unsqueeze(-1)).sum(-1)   # rows up to and with each expert
    out = multiply(x[order // top], ends)
    back = order.argsort()                             # where choice p went
    y = (out[back].view(tokens, top, -1) * weights.unsqueeze(-1)).sum(1).to(x.dtype)
    return y if shared is None else y + shared
""",
)

COUNTED = changed(
    SOLUTION,
    (
        "    numbers = torch.arange(experts, device=x.device)\n",
        "    counts = torch.zeros(experts, dtype=torch.int64, device=x.device)\n",
    ),
    (
        "    ends = (expert <= numbers.unsqueeze(-1)).sum(-1)   # rows up to and with each expert\n",
        "    ends = counts.scatter_add_(0, expert, torch.ones_like(expert)).cumsum(0)\n",
    ),
)
PUT = changed(
    SOLUTION,
    ("    back = order.argsort()                             # where choice p went\n", ""),
    (
        "    y = (out[back].view",
        "    out = torch.empty_like(out).index_copy(0, order, out)\n    y = (out.view",
    ),
)


def inputs(generator: torch.Generator, sizes: Mapping[str, int]) -> dict[str, Any]:
    """One expert gets no row, and every token has different ones."""
    tokens, top, experts, width = (sizes[k] for k in ("T", "K", "E", "H"))
    score = torch.rand(tokens, experts, generator=generator)
    score[:, 2] = -1.0
    weight = torch.randn(experts, width, width, generator=generator)

    def multiply(rows: Tensor, ends: Tensor) -> Tensor:
        return ops.npu_grouped_matmul(
            [rows], [weight], group_list=ends, group_type=0, split_item=3, group_list_type=0
        )[0]

    return {
        "x": torch.randn(tokens, width, generator=generator),
        "chosen": score.topk(top, -1)[1],
        "weights": torch.rand(tokens, top, generator=generator),
        "shared": torch.randn(tokens, width, generator=generator),
        "experts": experts,
        "multiply": multiply,
    }


def attach(twin: DeepseekV3, function: Function) -> None:
    for at in (m for m in twin.modules() if isinstance(m, GroupedExperts)):

        def route(x: Tensor, idx: Tensor, weight: Tensor, shared: Any, at: Any = at) -> Any:
            return function(x, idx, weight, shared, at.experts, at.multiply)

        object.__setattr__(at, "route", route)


def moe_layers(twin: DeepseekV3) -> int:
    return sum(isinstance(m, GroupedExperts) for m in twin.modules())


def count(twin: DeepseekV3) -> dict[str, int]:
    """Host reads of a cached step."""
    ids = torch.full((1, 4), 5, device=twin.device)
    cache = twin.new_cache(1, 8)
    twin(ids, cache=cache)
    waits = host_syncs(lambda: twin(ids[:, :1].contiguous(), cache=cache))
    return {N_("host reads in a cached step"): sum(waits.values())}


ENDS = "(expert <= numbers.unsqueeze(-1)).sum(-1)   #"
SLOTS = (
    Slot(
        id="03.moe_infer_normal",
        notebook="03_gmm_routing",
        title="Experts by sorting",
        minutes=25,
        difficulty=2,
        stub=STUB,
        solution=SOLUTION,
        finished="model.experts:GroupedExperts.moe_infer_normal",
        hints=(
            "Sort the T·K choices by expert and copy each token into that order; multiply says the "
            "rest, if it knows where each expert's rows end. Then bring every row back to its choice.",
            "chosen.flatten() is [T*K], and choice p = t*K + k. sort gives the expert of each sorted "
            "row and `order`, both [T*K]. ends is [E]. The product is [T*K, H] in sorted order; back in "
            "order of choices it is [T, K, H]; weighed and summed over K, [T, H].",
            "Where a choice went is the inverse of the order: back = order.argsort().",
        ),
        wrong={
            "counts for row ends": Wrong(
                changed(SOLUTION, (ENDS, "(expert == numbers.unsqueeze(-1)).sum(-1)   #")),
                "The last entry must be T·K: ends are inclusive, the row after each expert's last. "
                "Yours counts each expert's rows.",
                "toy",
            ),
            "starts for row ends": Wrong(
                changed(SOLUTION, (ENDS, "(expert < numbers.unsqueeze(-1)).sum(-1)   #")),
                "The last entry must be T·K: ends, inclusive. Yours says where each expert's rows begin.",
                "toy",
            ),
            "numbered by columns": Wrong(
                changed(SOLUTION, ("x[order // top]", "x[order % tokens]")),
                "Choices are numbered t·K + k: which division gives t?",
            ),
            "order used to go back": Wrong(
                changed(SOLUTION, ("out[back]", "out[order]")),
                "`order` says who comes next; you need where each one went, its inverse.",
            ),
            "not brought back": Wrong(
                changed(SOLUTION, ("out[back]", "out")),
                "Row i of your result belongs to which token? After the product rows stand by expert.",
            ),
            "viewed as [K, T]": Wrong(
                changed(
                    SOLUTION,
                    (".view(tokens, top, -1)", ".view(top, tokens, -1).transpose(0, 1)"),
                ),
                "Brought back, the rows stand token after token, K rows each: [T, K, H], not [K, T, H].",
            ),
            "weights left out": Wrong(
                changed(SOLUTION, (" * weights.unsqueeze(-1)", "")),
                "Which of the formula's terms is missing? Each expert's result is weighed before the sum.",
            ),
            "shared expert left out": Wrong(
                changed(SOLUTION, ("y if shared is None else y + shared", "y")),
                "Which of the formula's terms is missing? It adds what every token gets, whatever was "
                "chosen.",
            ),
            "read on the host": Wrong(
                changed(
                    SOLUTION,
                    (
                        "    numbers = torch.arange(experts, device=x.device)\n",
                        "    counts = expert.tolist()\n",
                    ),
                    (
                        "    ends = (expert <= numbers.unsqueeze(-1)).sum(-1)   # rows up to and with"
                        " each expert\n",
                        "    ends = torch.tensor([counts.count(e) for e in range(experts)]).cumsum(0)"
                        ".to(x.device)\n",
                    ),
                ),
                "Right, and the host stops once in each MoE layer: it reads numbers that the device "
                "could have compared itself.",
                "count",
            ),
        },
        accepted={"counts summed up": COUNTED, "put instead of fetched": PUT},
        plan=PortPlan.full(),
        needs={"experts": "grouped", "npu_routing_kernel": False},
        toy=Toy(
            {"T": 7, "K": 3, "E": 5, "H": 11},
            inputs,
            ("T", "H"),
        ),
        attach=attach,
        calls=lambda twin, cached: moe_layers(twin) * (1 + cached),
        count=count,
    ),
)
