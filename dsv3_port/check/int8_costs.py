"""Where W8A8's rounding hurts: each matrix on its own, weights and inputs apart; and models that are the
same in float and not in int8."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.loading import with_plan
from ..errors import PortError
from ..messages import N_
from ..model.decoder import DeepseekV3, build
from ..model.experts import GroupedExperts
from ..model.int8 import quantised
from ..model.linear import Linear
from ..weights.int8 import SCALE, dequantize_rows, quantize_rows

FED_BY_THE_NORM = (
    "q_a_proj",
    "q_proj",
    "kv_a_proj_with_mqa",
)  # all that read what input_layernorm gives
MATRICES = {  # module -> its name on the picture, in the order of the step
    "q_a_proj": "q_a",
    "kv_a_proj_with_mqa": "kv_a",
    "q_b_proj": "q_b",
    "o_proj": "o",
    "merge_up_gate_proj": N_("gate and up"),
    "down_proj": "down",
}
ROUTED = (N_("gate and up, experts"), N_("down, experts"))


@dataclass(frozen=True)
class MatrixError:
    """Root mean square of a product's error over that of the product, on the inputs of the float model:
    with int8 weights, with int8 inputs, with both."""

    layer: int
    name: str
    weights: float
    inputs: float
    both: float


def _require_float(model: DeepseekV3) -> None:
    if model.plan.quant != "none" or model.plan.mlp != "merged" or model.plan.experts != "grouped":
        raise PortError("give a float model with merged MLPs and grouped experts: PortPlan.full()")


def int8_twin(model: DeepseekV3) -> DeepseekV3:
    """W8A8 of a float model's weights. Of a float32 model they are those that the loader makes of the
    same checkpoint."""
    _require_float(model)
    plan = model.plan.replace(quant="w8a8")
    twin = build(model.config, plan, model.parallel, model.device, model.dtype, model.gmm)
    have, made = model.state_dict(), dict[str, Tensor]()
    for name, place in twin.state_dict().items():
        if name in have and place.dtype == torch.int8:
            rows = have[name].float().cpu()
            codes, scale = quantize_rows(rows.flatten(0, -2))
            like = twin.get_parameter(name + SCALE)
            made[name] = codes.view(rows.shape).to(place.device)
            made[name + SCALE] = scale.view(like.shape).to(like.device, like.dtype)
        elif name in have:
            made[name] = have[name]
    twin.load_state_dict(made, assign=True)
    return twin


def rounded_weights(model: DeepseekV3) -> DeepseekV3:
    """A float model of the numbers that the int8 codes stand for: W8A8's weights, its inputs as they are."""
    small, twin = int8_twin(model).state_dict(), with_plan(model, model.plan)
    made = {
        name: dequantize_rows(value, small[name + SCALE]).to(model.dtype)
        if value.dtype == torch.int8
        else value
        for name, value in small.items()
        if name in twin.state_dict()
    }
    twin.load_state_dict(made, assign=True)
    return twin


def with_outlier(model: DeepseekV3, factor: float, channel: int | None = None) -> DeepseekV3:
    """A float model with one channel `factor` times larger between each layer's first norm and the matrices
    that read it, whose column is smaller by as much. A power of two changes no bit of what comes
    out. channel: by default the one whose norm weight is largest."""
    _require_float(model)
    twin = with_plan(model, model.plan)
    for layer in twin.model.layers:
        parts: Any = layer
        norm, attention = parts.input_layernorm, parts.self_attn
        at = int(norm.weight.abs().argmax()) if channel is None else channel
        norm.weight = _times(norm.weight, at, factor)
        for name in FED_BY_THE_NORM:
            if (matrix := getattr(attention, name, None)) is not None:
                matrix.weight = _times(matrix.weight, at, 1 / factor)
    return twin


def zero_codes(model: DeepseekV3, batches: Iterable[Tensor]) -> float:
    """Share of the inputs of all attentions, over texts [B, S], that get code 0."""
    _require_float(model)
    zeros, numbers = [], []

    def look(module: nn.Module, args: tuple[Tensor]) -> None:
        codes = quantised(args[0])[0]
        zeros.append(int((codes == 0).sum()))
        numbers.append(codes.numel())

    with contextlib.ExitStack() as stack, torch.no_grad():
        for layer in model.model.layers:
            parts: Any = layer
            reader = parts.self_attn.kv_a_proj_with_mqa
            stack.enter_context(reader.register_forward_pre_hook(look))
        for ids in batches:
            model(ids.to(model.device))
    return sum(zeros) / sum(numbers)


def _times(weight: Tensor, column: int, factor: float) -> nn.Parameter:
    made = weight.detach().clone()
    made[..., column] *= factor
    return nn.Parameter(made, requires_grad=False)


def matrix_errors(model: DeepseekV3, batches: Iterable[Tensor]) -> list[MatrixError]:
    """What int8 costs each product of a float model over texts [B, S], one matrix at a time: nothing
    adds up over layers here."""
    _require_float(model)
    sums: dict[tuple[int, str], list[float]] = {}

    def add(layer: int, name: str, x: Tensor, weight: Tensor) -> None:
        held = sums.setdefault((layer, name), [0.0] * 4)
        for k, square in enumerate(_squares(x, weight)):
            held[k] += square

    with torch.no_grad(), _watched(model, add):
        for ids in batches:
            model(ids.to(model.device))
    order = [*MATRICES.values(), *ROUTED]
    return [
        MatrixError(layer, name, *(math.sqrt(off / max(of, 1e-300)) for off in offs))
        for (layer, name), (*offs, of) in sorted(
            sums.items(), key=lambda item: (order.index(item[0][1]), item[0][0])
        )
    ]


def _squares(x: Tensor, weight: Tensor) -> tuple[float, ...]:
    """x [T, K], weight [N, K]: squares of the three errors, and of the product itself, in float64."""
    x, weight = x.float().cpu(), weight.float().cpu()
    rows = dequantize_rows(*quantize_rows(weight)).double()
    codes, scales = quantised(x)
    near = codes.double() * scales.double().unsqueeze(-1)
    whole = x.double() @ weight.double().t()
    found = (x.double() @ rows.t(), near @ weight.double().t(), near @ rows.t())
    return (*(float((y - whole).square().sum()) for y in found), float(whole.square().sum()))


@contextlib.contextmanager
def _watched(model: DeepseekV3, add: Any) -> Iterator[None]:
    """Within it `add` gets layer, name, input [T, K] and weight [N, K] of each product."""

    def linear(layer: int, name: str) -> Any:
        def hook(module: Linear, args: tuple[Tensor]) -> None:
            add(layer, name, args[0].flatten(0, -2), module.weight)

        return hook

    def experts(layer: int, at: GroupedExperts) -> Any:
        multiply = type(at).multiply

        def call(rows: Tensor, ends: Tensor) -> Tensor:
            start = 0
            for e, end in enumerate(ends.tolist()):
                if end > start:
                    mine = rows[start:end]
                    gate, up = F.linear(mine, at.group_w1_w3[e]).chunk(2, -1)
                    add(layer, ROUTED[0], mine, at.group_w1_w3[e])
                    add(layer, ROUTED[1], F.silu(gate) * up, at.group_w2[e])
                start = end
            return multiply(at, rows, ends)

        return call

    with contextlib.ExitStack() as stack:
        for k, layer in enumerate(model.model.layers):
            for path, module in layer.named_modules():
                name = MATRICES.get(path.rpartition(".")[2])
                if name and isinstance(module, Linear):
                    stack.enter_context(module.register_forward_pre_hook(linear(k, name)))
                elif isinstance(module, GroupedExperts):
                    object.__setattr__(module, "multiply", experts(k, module))
                    stack.callback(vars(module).pop, "multiply")
        yield
