"""The slot of 15_int8: a product of int8 codes, with one scale for each token and one for each output."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...count.syncs import host_syncs
from ...messages import N_
from ...model import int8
from ...model.decoder import DeepseekV3
from ...model.linear import Linear
from ...plan import PortPlan
from ..toys import Toy
from . import Function, Slot, Wrong, changed

STUB = '''
def int8_linear(x, weight, scale, multiply):
    """x [T, K] of the model's dtype; weight [N, K] int8, scale [N] float32 of its rows -> [T, N] in
    x's dtype; multiply(codes [T, K] int8, weight) -> [T, N] int32, exact. In float32 and in this
    order: sums, times scale, times the token's scale, max |x| / 127; then one cast"""
    ...
'''

MOST = "numbers.abs().amax(-1, keepdim=True) / 127"
CODES = "(numbers / token).round().to(torch.int8)"
SUMS = "multiply(codes, weight).float()"
SCALED = f"{SUMS} * scale * token"
SOLUTION = STUB.replace(
    "    ...\n",
    f"""\
    numbers = x.float()
    token = {MOST}   # [T, 1]
    codes = {CODES}
    y = {SCALED}
    return y.to(x.dtype)
""",
)


def sums(codes: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """codes [T, K], weight [N, K] -> int32 [T, N]."""
    return int8.sums(codes, weight.t(), scale)


def inputs(
    dtype: torch.dtype, generator: torch.Generator, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Tokens of very different size. Two are positive, as five rows of the weight are: their sums are
    beyond what float32 holds. One has halves for codes, and its largest number is negative."""
    tokens, width, outputs = (sizes[k] for k in ("T", "K", "N"))
    x = torch.randn(tokens, width, generator=generator)
    x[:2] = 0.6 + 0.4 * torch.rand(2, width, generator=generator)
    x *= 10 ** torch.linspace(-2, 2, tokens).unsqueeze(1)
    x[-1] = (torch.arange(width) % 9 - 4) / 2
    x[-1, 0] = -127.0
    weight = torch.randint(-127, 128, (outputs, width), generator=generator)
    weight[:5] = torch.randint(64, 128, (5, width), generator=generator)
    scale = torch.rand(outputs, generator=generator) / 100 + 1e-3
    return {
        "x": x.to(dtype),
        "weight": weight.to(torch.int8),
        "scale": scale,
        "multiply": partial(sums, scale=scale),
    }


SIZES = {"T": 7, "K": 20011, "N": 11}  # K: as many products of one sign as float32 cannot add up
TOYS = [
    Toy(SIZES, partial(inputs, dtype), ("T", "N"), exact=True)
    for dtype in (torch.float32, torch.bfloat16)
]


def toy(function: Function, slot: Slot) -> str | None:
    """In float32, where every product's rounding shows; in bfloat16, where a second cast does."""
    return next((said for one in TOYS if (said := one(function, slot))), None)


def matrices(twin: DeepseekV3) -> list[Linear]:
    """The int8 matrices of attention. An MLP's stay int8 between two of them, in other operators."""
    layers: Any = twin.model.layers
    found = [m for layer in layers for m in layer.self_attn.modules()]
    return [m for m in found if isinstance(m, Linear) and m.weight_scale is not None]


def attach(twin: DeepseekV3, function: Function) -> None:
    def linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        multiply = partial(sums, scale=scale)
        y: Tensor = function(x.flatten(0, -2), weight.t(), scale.flatten(), multiply)
        return y.unflatten(0, x.shape[:-1])

    for at in matrices(twin):
        at.int8_linear = linear


def count(twin: DeepseekV3) -> dict[str, int]:
    """Host reads of a cached step."""
    ids = torch.full((1, 4), 5, device=twin.device)
    cache = twin.new_cache(1, 8)
    twin(ids, cache=cache)
    waits = host_syncs(lambda: twin(ids[:, :1].contiguous(), cache=cache))
    return {N_("host reads in a cached step"): sum(waits.values())}


SLOTS = (
    Slot(
        id="15.int8_linear",
        notebook="15_int8",
        title="A product of codes, two scales behind it",
        minutes=15,
        difficulty=2,
        stub=STUB,
        solution=SOLUTION,
        finished="model.int8:linear",
        hints=(
            "Each token gets a scale of its own, so that its largest number becomes 127 or -127, and codes by "
            "it. What does not depend on k stands before the sum over k as well as behind it.",
            "x is [T, K], the tokens' scales [T, 1], codes [T, K] int8. multiply gives [T, N] int32. scale is "
            "[N]: it fits the last dimension; [T, 1] fits the first. The result is [T, N].",
            "With numbers = x.float() the tokens' scales are numbers.abs().amax(-1, keepdim=True) / 127.",
        ),
        wrong={
            "one scale for all tokens": Wrong(
                changed(SOLUTION, (MOST, "numbers.abs().amax() / 127")),
                "The largest token sets the scale of all of them: of a small one only a few codes are left. "
                "Over which dimension is the largest number looked for?",
            ),
            "a scale for each input": Wrong(
                changed(SOLUTION, (MOST, "numbers.abs().amax(0) / 127")),
                "A scale for each k belongs inside the sum over k, and behind the sum there is no k any more. "
                "Which two indices are left?",
            ),
            "the largest, not of magnitude": Wrong(
                changed(SOLUTION, (".abs()", "")),
                "A token's largest number may be negative: yours then gets a code below -127, which int8 does "
                "not hold.",
            ),
            "truncated": Wrong(
                changed(SOLUTION, (".round()", "")),
                "A cast to int8 cuts off what stands behind the point: 31.75 becomes 31, and every code moves "
                "towards zero. The nearest whole number is meant.",
            ),
            "halves upwards": Wrong(
                changed(SOLUTION, (CODES, "(numbers / token + 0.5).floor().to(torch.int8)")),
                "A half goes to the even neighbour: 2.5 to 2, 3.5 to 4. Always upwards would move every sum a "
                "little to one side.",
                "toy",
            ),
            "128 steps": Wrong(
                changed(SOLUTION, (MOST, MOST.replace("127", "128"))),
                "The largest number would get the code 128, and int8 ends at 127: it comes out as -128. Which "
                "range is symmetric?",
            ),
            "a zero point": Wrong(
                changed(
                    SOLUTION,
                    (
                        MOST,
                        "(numbers.amax(-1, keepdim=True) - numbers.amin(-1, keepdim=True)) / 255",
                    ),
                    (
                        CODES,
                        "((numbers - numbers.amin(-1, keepdim=True)) / token - 128).round().to(torch.int8)",
                    ),
                ),
                "That is asymmetric: 0 gets a code that is not 0, and the sum over k then owes the zero point "
                "times the sum of each row. W8A8 has none: the codes are symmetric around 0.",
            ),
            "times the reciprocal": Wrong(
                changed(SOLUTION, (CODES, "(numbers * (1 / token)).round().to(torch.int8)")),
                "Nearly right: the reciprocal is rounded once more, and where a number lies near a half its "
                "code becomes the neighbour. npu_dynamic_quant divides by the scale.",
                "toy",
            ),
            "the token's scale left out": Wrong(
                changed(SOLUTION, (SCALED, f"{SUMS} * scale")),
                "Each row of the result is too large or too small by a factor of its own. What did you divide "
                "its token by?",
            ),
            "the scale upside down": Wrong(
                changed(SOLUTION, (SCALED, f"{SUMS} * scale / token")),
                "You divided x by the scale to get its codes. What undoes that? (npu_swiglu_quant hands out "
                "127 / max: there it is the other way round.)",
            ),
            "scales before the sum": Wrong(
                changed(SOLUTION, (SCALED, "(codes * token) @ (weight * scale.unsqueeze(-1)).t()")),
                "That adds up float32 numbers, each rounded, in an order that the library chooses: nearly the "
                "same, and no int8 product is left. Take the scales out of the sum.",
                "toy",
            ),
            "sums in bfloat16": Wrong(
                changed(SOLUTION, (SUMS, "(codes.bfloat16() @ weight.bfloat16().t()).float()")),
                "bfloat16 holds every code and hardly any sum: 8 bits of it are left. multiply adds up in int32, "
                "without rounding.",
            ),
            "sums in float32": Wrong(
                changed(SOLUTION, (SUMS, "codes.float() @ weight.float().t()")),
                "Exact up to 2^24, which 1041 products of 127 by 127 exceed; a row of DeepSeek-V3 has 7168 and "
                "more. multiply adds up in int32, without rounding.",
                "toy",
            ),
            "scales multiplied first": Wrong(
                changed(SOLUTION, (SCALED, f"{SUMS} * (scale * token)")),
                "In exact numbers it is the same. float32 rounds after each product: the operator multiplies the "
                "sum by the output's scale first, then by the token's, and the same bits need the same order.",
                "toy",
            ),
            "rounded twice": Wrong(
                changed(SOLUTION, (SCALED, f"({SUMS} * scale).to(x.dtype) * token")),
                "Between the two scales you round to the model's dtype, and then once more. One cast, at the "
                "end.",
                "toy",
            ),
            "read on the host": Wrong(
                changed(
                    SOLUTION,
                    (
                        MOST,
                        "torch.tensor([[max(map(abs, row))] for row in numbers.tolist()], device=x.device) / 127",
                    ),
                ),
                "Right, and the host waits for the device at every matrix to look for the largest number. The "
                "device can look for it itself.",
                "count",
            ),
        },
        accepted={
            "from both ends": changed(
                SOLUTION,
                (
                    f"    token = {MOST}   # [T, 1]\n",
                    "    low, high = numbers.aminmax(dim=-1, keepdim=True)\n"
                    "    token = torch.maximum(high, -low) / 127\n",
                ),
            ),
            "sums in float64": changed(
                SOLUTION, (SUMS, "(codes.double() @ weight.double().t()).float()")
            ),
            "clamped": changed(SOLUTION, (".round()", ".round().clamp(-127, 127)")),
        },
        plan=PortPlan.full().replace(quant="w8a8"),
        needs={"quant": "w8a8"},
        toy=toy,
        attach=attach,
        calls=lambda twin, cached: len(matrices(twin)) * (1 + cached),
        count=count,
    ),
)
