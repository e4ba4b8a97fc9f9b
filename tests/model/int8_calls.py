"""Every int8 computation of a model while it runs, held against the definition (int8_definition.py),
bit for bit: what goes into a layer is the model's own, what must come out is the definition's."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dsv3_port.model import int8
from dsv3_port.model.experts import Int8Experts
from dsv3_port.model.linear import Linear, RowParallelLinear
from dsv3_port.model.mlp import Int8MLP
from tests import int8_definition as definition


def _flat(x: Tensor) -> Tensor:
    return x.detach().cpu().flatten(0, -2)


def _pair(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return weight.detach().cpu(), scale.detach().cpu()


@contextlib.contextmanager
def held_to_the_definition() -> Iterator[Counter[str]]:
    """Within it every int8 layer that computes is checked on the spot, before ranks add up; counts them
    by class."""
    seen: Counter[str] = Counter()

    def same(kind: str, found: Tensor, want: Tensor) -> None:
        seen[kind] += 1
        found = _flat(found)
        assert found.dtype == want.dtype and found.shape == want.shape
        off = (found.double() - want.double()).abs().max()
        assert torch.equal(found, want), f"{kind}: off by {float(off):.2e}"

    def product(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(self: Linear, x: Tensor) -> Tensor:
            y = real(self, x)
            if self.weight_scale is not None:
                want = definition.linear(_flat(x), *_pair(self.codes.mT, self.weight_scale))
                same("Linear", y, want)
            return y

        return call

    def mlp(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(self: Int8MLP, x: Tensor) -> Tensor:
            parts: list[Tensor] = []
            reduced = RowParallelLinear.reduced

            def before(layer: RowParallelLinear, y: Tensor) -> Tensor:
                parts.append(y.clone())  # ranks add up in place
                return reduced(layer, y)

            with mock.patch.object(RowParallelLinear, "reduced", before):
                y = real(self, x)
            first, second = self.merge_up_gate_proj, self.down_proj
            pairs = [_pair(m.codes.mT, m.weight_scale) for m in (first, second)]
            same("MLP", parts[-1], definition.merged_mlp(_flat(x), *pairs))
            return y

        return call

    def experts(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(self: Int8Experts, rows: Tensor, ends: Tensor) -> Tensor:
            y = real(self, rows, ends)
            if self.merged:
                stacks = [self.stack(n) for n in ("group_w1_w3", "group_w2")]
                pairs = [_pair(codes.mT, scale) for codes, scale in stacks]
                same("experts", y, definition.experts(_flat(rows), ends.cpu(), *pairs))
            return y

        return call

    with contextlib.ExitStack() as stack:
        patches: tuple[tuple[Any, str, Any], ...] = (
            (Linear, "product", product),
            (Int8MLP, "forward", mlp),
            (Int8Experts, "multiply", experts),
        )
        for owner, name, wrap in patches:
            stack.enter_context(mock.patch.object(owner, name, wrap(getattr(owner, name))))
        yield seen


def wrong_forms() -> dict[str, Callable[[], Any]]:
    """Name -> a patch of model/int8.py that computes something else: the traps of the documents."""
    right = {n: getattr(int8, n) for n in ("quantised", "swiglu", "product", "sums")}
    from dsv3_port import ops

    def reciprocal(x: Tensor) -> tuple[Tensor, Tensor]:
        codes, scale = right["quantised"](x)
        return codes, 1 / scale

    def default_half(*args: Any) -> Any:
        real = ops.npu_dequant_swiglu_quant
        with mock.patch.object(
            ops, "npu_dequant_swiglu_quant", lambda x, **k: real(x, **k | {"activate_left": False})
        ):
            return right["swiglu"](*args)

    def static_mode(*args: Any) -> Any:
        real = ops.npu_dequant_swiglu_quant
        with mock.patch.object(
            ops, "npu_dequant_swiglu_quant", lambda x, **k: real(x, **k | {"quant_mode": 0})
        ):
            return right["swiglu"](*args)

    def cumulative(total: Tensor, s: Tensor, scale: Tensor, counts: Tensor | None = None) -> Any:
        if counts is not None:
            counts = counts.cumsum(0)
        return right["swiglu"](total, s, scale, counts)

    def one_scale(codes: Tensor, s: Tensor, weight: Tensor, scale: Tensor, dtype: Any) -> Tensor:
        y: Tensor = right["product"](codes, s, weight, scale.amax().expand_as(scale), dtype)
        return y

    def in_float32(codes: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        total = codes.bfloat16() @ weight.bfloat16()
        return total.to(torch.int32)

    def one_of_all_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
        codes, scale = ops.npu_dynamic_quant(x.flatten(0, -2), quant_mode="pertensor")
        return codes, scale.expand(len(codes)).contiguous()

    def patched(name: str, by: Any) -> Callable[[], Any]:
        return lambda: mock.patch.object(int8, name, by)

    return {
        "scales as reciprocals": patched("quantised", reciprocal),
        "silu of the right half, the default": patched("swiglu", default_half),
        "static mode, the default": patched("swiglu", static_mode),
        "cumulative groups where counts are wanted": patched("swiglu", cumulative),
        "one scale for all outputs": patched("product", one_scale),
        "sums of 16-bit products": patched("sums", in_float32),
        "one scale for all tokens": patched("quantised", one_of_all_tokens),
    }
