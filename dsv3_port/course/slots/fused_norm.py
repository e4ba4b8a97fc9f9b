"""The second slot of 06b_small_operators: addition and norm by one operator with three outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...bench.workload import decode_call
from ...count.operators import count_ops
from ...model.decoder import DeepseekV3
from ...model.norm import FusedNorm
from ...plan import PortPlan
from ..toys import Toy
from . import Function, Slot, Wrong, changed

EPS = 1e-3  # of the toy: not the operator's default, so that forgetting it shows

STUB = '''
def add_norm(residual, delta, weight, eps, npu_add_rms_norm):
    """residual, delta [B, S, H], weight [H]; npu_add_rms_norm(x1, x2, gamma, epsilon=1e-6)
    -> (normalised [B, S, H], new residual stream [B, S, H])"""
    ...
'''

SOLUTION = STUB.replace(
    "    ...\n",
    """\
    normalised, _, stream = npu_add_rms_norm(residual, delta, weight, eps)
    return normalised, stream
""",
)
OUTPUTS, RETURN = "normalised, _, stream", "return normalised, stream"
BY_POSITION = STUB.replace(
    "    ...\n",
    """\
    made = npu_add_rms_norm(delta, residual, weight, epsilon=eps)
    return made[0], made[-1]
""",
)
UNFUSED = STUB.replace(
    "    ...\n",
    """\
    stream = residual + delta
    wide = stream.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(stream.dtype), stream
""",
)


def inputs(generator: torch.Generator, sizes: Mapping[str, int]) -> dict[str, Any]:
    b, s, h = (sizes[k] for k in ("B", "S", "H"))
    residual, delta = torch.randn(2, b, s, h, generator=generator) * 0.1
    weight = torch.rand(h, generator=generator) + 0.5
    given = {"residual": residual, "delta": delta, "weight": weight, "eps": EPS}
    return {**given, "npu_add_rms_norm": ops.npu_add_rms_norm}


class Two(Toy):
    """Two results in one row, the first before the second."""

    def outcome(self, function: Function, seed: int) -> tuple[Any, list[str]]:
        result, touched = super().outcome(function, seed)
        if _two(result):
            return torch.cat([part.flatten() for part in result]), touched
        return result, touched

    def first_place(self, got: tuple[Any, list[str]], want: tuple[Any, list[str]]) -> str:
        shape = [self.sizes[k] for k in ("B", "S", "H")]
        if not got[1] and not isinstance(got[0], Tensor):
            return (
                "add_norm returns two tensors, (normalised, new residual stream), and yours returned "
                f"{'another number of them' if isinstance(got[0], (tuple, list)) else type(got[0]).__name__}"
            )
        if not got[1] and got[0].shape != want[0].shape:
            return f"both results are [B, S, H], {shape} here; yours have other shapes"
        return super().first_place(got, want)


def _two(result: Any) -> bool:
    pair = isinstance(result, (tuple, list)) and len(result) == 2
    return pair and all(isinstance(part, Tensor) for part in result)


def attach(twin: DeepseekV3, function: Function) -> None:
    for at in (m for m in twin.modules() if isinstance(m, FusedNorm)):
        at.add_norm = function


def count(twin: DeepseekV3) -> dict[str, int]:
    return {"operators of a decode step": sum(count_ops(decode_call(twin, 8)).values())}


SLOTS = (
    Slot(
        id="06b.add_norm",
        notebook="06b_small_operators",
        title="Three outputs, which two?",
        minutes=6,
        difficulty=1,
        stub=STUB,
        solution=SOLUTION,
        finished="model.norm:add_norm",
        hints=(
            "The operator adds and normalises. Which of its outputs does the next block read, and which "
            "does the next addition need?",
            "Its outputs are (normalised [B, S, H], rstd [B, S, 1], x1 + x2 [B, S, H]), in this order.",
            "normalised, _, stream = npu_add_rms_norm(residual, delta, weight, eps)",
        ),
        wrong={
            "rstd": Wrong(
                changed(SOLUTION, (OUTPUTS, "normalised, stream, _")),
                "The second output is rstd [B, S, 1], not the residual: the order is (normalised, rstd, new "
                "residual). In a plain addition it would broadcast, and nothing would complain.",
            ),
            "swapped": Wrong(
                changed(SOLUTION, (RETURN, "return stream, normalised")),
                "The two are swapped: the block reads the normalised value, the next addition the stream. "
                "Both are [B, S, H], so that no shape tells them apart.",
            ),
            "old residual": Wrong(
                changed(SOLUTION, (RETURN, "return normalised, residual")),
                "You hand on the residual that came in: what this block added is lost for all later layers. "
                "Which output is the sum?",
            ),
            "added again": Wrong(
                changed(SOLUTION, (RETURN, "return normalised, stream + delta")),
                "The third output already is residual + delta; you added delta twice.",
            ),
            "default epsilon": Wrong(
                changed(SOLUTION, ("weight, eps)", "weight)")),
                "You left epsilon to its default. This model's is the default 1e-6 by chance; the toy's is "
                "not, nor is that of npu_kv_rmsnorm_rope_cache (1e-5). Pass eps.",
                "toy",
            ),
            "unfused": Wrong(
                UNFUSED,
                "The numbers are right, by an addition and six operators of a norm. What the step should "
                "launch is one: call the operator that you are given.",
                "count",
            ),
        },
        accepted={"by position": BY_POSITION},
        plan=PortPlan.full(),
        needs={"norm": "add_rms_norm"},
        toy=Two({"B": 2, "S": 3, "H": 11}, inputs, ("2·B·S·H",)),
        attach=attach,
        calls=lambda twin, cached: 2 * twin.config.num_hidden_layers * (1 + cached),
        count=count,
    ),
)
