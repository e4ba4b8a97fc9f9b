"""W8A8 against its definition while a model runs: what goes into a layer is the model's own, what must
come out is computed here, with sums in int64, one float32 product for each scale, and one cast.

tests/int8_definition.py says the same in numpy, without this package.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..count.tape import taped
from ..engine.graph import run_eager
from ..errors import PortError
from ..messages import N_
from ..model.decoder import DeepseekV3
from ..model.experts import Int8Experts
from ..model.linear import Linear
from ..model.mlp import Int8MLP
from .stages import feed

LINEAR, MLP, EXPERTS = N_("attention's matrices"), N_("dense and shared MLPs"), N_("routed experts")


@dataclass(frozen=True)
class Held:
    """One kind of layer: how often one ran, how many numbers came out, and how many of them are not
    the definition's, to the last bit."""

    kind: str
    calls: int
    numbers: int
    others: int


def int8_exact(model: DeepseekV3, ids: Tensor, cached: int = 4) -> list[Held]:
    """Every int8 layer of a W8A8 model in a prompt and `cached` steps of ids [B, S]. PortError where the
    model has none."""
    if model.plan.quant != "w8a8" or model.plan.mlp != "merged" or model.parallel.world_size > 1:
        raise PortError("int8_exact: give a W8A8 model with merged MLPs, on one rank")
    found = {kind: [0, 0, 0] for kind in (LINEAR, MLP, EXPERTS)}

    def held(kind: str, y: Tensor, want: Tensor) -> None:
        y = y.flatten(0, -2)
        off = int((y != want).sum()) if y.dtype == want.dtype else y.numel()
        for k, n in enumerate((1, y.numel(), off)):
            found[kind][k] += n

    with torch.no_grad(), _watched(model, held):
        for call in feed(model, ids, None, cached):
            call()
    return [Held(kind, *row) for kind, row in found.items()]


def replayed_others(model: DeepseekV3, ids: Tensor, cached: int = 4) -> tuple[int, int]:
    """Logits of `cached` steps behind a prompt, of ids [B, S], eager and from a tape: how many numbers,
    and how many of them differ in a bit."""

    def steps() -> Tensor:
        calls = list(feed(model, ids, None, cached))
        return torch.cat([call().clone() for call in calls][1:], 1)

    with torch.no_grad():
        eager = steps()
        taped(model)
        try:
            replayed = steps()
        finally:
            run_eager(model)
    return eager.numel(), int((eager != replayed).sum())


@contextlib.contextmanager
def _watched(model: DeepseekV3, held: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Within it `held` gets what each int8 layer made and what it should have."""

    def linear(at: Linear, args: tuple[Tensor], y: Tensor) -> None:
        held(LINEAR, y, _product(*_token(args[0]), at.codes.t(), at.weight_scale, y.dtype))

    def mlp(at: Int8MLP, args: tuple[Tensor], y: Tensor) -> None:
        first, second = at.merge_up_gate_proj, at.down_proj
        pairs = ((m.codes.t(), m.weight_scale) for m in (first, second))
        held(MLP, y, _mlp(args[0], *pairs))

    def experts(at: Int8Experts) -> Callable[[Tensor, Tensor], Tensor]:
        multiply = type(at).multiply

        def call(rows: Tensor, ends: Tensor) -> Tensor:
            y = multiply(at, rows, ends)
            stacks, start = (at.stack("group_w1_w3"), at.stack("group_w2")), 0
            for e, end in enumerate(ends.tolist()):
                if end > start:
                    pairs = ((codes[e].t(), scale[e]) for codes, scale in stacks)
                    held(EXPERTS, y[start:end], _mlp(rows[start:end], *pairs))
                start = end
            return y

        return call

    with contextlib.ExitStack() as stack:
        for layer in model.model.layers:
            attention: Any = layer.self_attn
            for at in attention.modules():
                if isinstance(at, Linear) and at.weight_scale is not None:
                    stack.enter_context(at.register_forward_hook(linear))
        for module in model.modules():
            if isinstance(module, Int8MLP):
                stack.enter_context(module.register_forward_hook(mlp))
            elif isinstance(module, Int8Experts):
                object.__setattr__(module, "multiply", experts(module))
                stack.callback(vars(module).pop, "multiply")
        yield


def _token(x: Tensor) -> tuple[Tensor, Tensor]:
    """[.., K] -> codes [T, K] int64 and scales [T, 1]; a token of zeros has scale 0."""
    x = x.flatten(0, -2).float()
    scale = x.abs().amax(-1, keepdim=True) / 127
    return torch.where(scale > 0, x / scale, 0).round().long(), scale


def _scaled(codes: Tensor, token: Tensor, weight: Tensor, scale: Any) -> Tensor:
    """codes [T, K] int64 by weight [N, K] int8 -> [T, N] float32; int64 sums on the host, which has them."""
    total = (codes.cpu() @ weight.cpu().long().t()).to(codes.device)
    return total.float() * scale.flatten().float() * token


def _product(codes: Tensor, token: Tensor, weight: Tensor, scale: Any, dtype: Any) -> Tensor:
    return _scaled(codes, token, weight, scale).to(dtype)


def _mlp(x: Tensor, first: tuple[Tensor, Any], second: tuple[Tensor, Any]) -> Tensor:
    """down(silu(gate) * up), what stands between the two products quantised by 127 / max."""
    left, right = _scaled(*_token(x), *first).chunk(2, -1)
    y = F.silu(left) * right
    most = y.abs().amax(-1, keepdim=True)
    factor = torch.full_like(most, 127).div(most)  # one rounding, which 127 / most is not
    codes = torch.where(most > 0, y * factor, 0).round().clamp(-128, 127).long()
    return _product(codes, most / 127, *second, x.dtype)
