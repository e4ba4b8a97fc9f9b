"""The decode-step operators in one graph (fullgraph), compiled by inductor, against eager; and
calls into a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port import ops
from dsv3_port.ops import table

H, HEADS, EXPERTS, WIDTH, K = 64, 2, 8, 16, 2


def decode_step(
    x: Tensor,
    residual: Tensor,
    weights: dict[str, Tensor],
    cos: Tensor,
    sin: Tensor,
    cache: Tensor,
    slot: Tensor,
) -> tuple[Tensor, ...]:
    """Norm, projection, rope, cache, gate, routing, grouped matmul: everything a layer calls. x [T,
    H]."""
    n = x.shape[0]
    y, _, residual = ops.npu_add_rms_norm(residual, x, weights["norm"], 1e-6)
    q = ops.linear(y, weights["q"]).view(n, HEADS, 1, 64)
    turned = ops.npu_interleave_rope(q, cos, sin)
    halves = ops.npu_rotary_mul(q, cos, sin)
    ops.scatter_update_(cache, slot, turned[:, :1], -2)
    latent = ops.head_matmul(turned, weights["head"])  # [T, N, 1, 8]
    scores = ops.shared_scores(
        turned.flatten(1, 2), cache[:, 0]
    )  # [T, N, 6], one key row for all heads
    logits = ops.linear(y, weights["gate"])
    scales, chosen, _ = ops.npu_moe_gating_top_k(
        logits,
        K,
        bias=weights["bias"],
        k_group=1,
        group_count=2,
        group_select_mode=1,
        norm_type=1,
        routed_scaling_factor=2.5,
    )
    row_idx = torch.arange(n * K, dtype=torch.int32).view(K, n).t().contiguous()
    rows, back, order = ops.npu_moe_init_routing(y, row_idx, chosen, n)
    ends = ops.npu_moe_compute_expert_tokens(order, EXPERTS).long()
    keywords: dict[str, Any] = {"group_list": ends, "split_item": 3, "group_type": 0}
    inner = ops.npu_swiglu(
        ops.npu_grouped_matmul([rows], [weights["up"].transpose(1, 2)], **keywords)[0]
    )
    (out,) = ops.npu_grouped_matmul([inner], [weights["down"].transpose(1, 2)], **keywords)
    total = ops.npu_moe_finalize_routing(out, residual, None, None, scales, back, chosen)
    return (
        ops.npu_rms_norm(total, weights["norm"])[0],
        halves,
        latent,
        scores,
        ops.linear(total[-1:], weights["q"]),
    )


def case(n: int, dtype: torch.dtype) -> tuple[Any, ...]:
    torch.manual_seed(n)
    shapes = {
        "norm": (H,),
        "q": (HEADS * 64, H),
        "gate": (EXPERTS, H),
        "bias": (EXPERTS,),
        "head": (HEADS, 64, 8),
        "up": (EXPERTS, 2 * WIDTH, H),
        "down": (EXPERTS, H, WIDTH),
    }
    weights = {name: torch.randn(shape, dtype=dtype) / 8 for name, shape in shapes.items()}
    angle = torch.randn(n, 1, 1, 64)
    x, residual = torch.randn(2, n, H, dtype=dtype)
    return x, residual, weights, angle.cos().to(dtype), angle.sin().to(dtype), torch.arange(n) % 5


@pytest.mark.parametrize(
    ("n", "dtype", "tolerance"),
    [
        (3, torch.float32, 1e-5),  # few rows: products and sums, gathered experts
        (
            1,
            torch.bfloat16,
            3e-2,
        ),  # one row; inductor keeps float32 between fused operators, so it rounds less often
        (
            200,
            torch.float32,
            1e-5,
        ),  # 400 routed rows: F.linear, and the grouped matmul as an operator of its own
    ],
)
def test_decode_step_is_one_graph_and_equal_to_eager(
    n: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch._dynamo.reset()
    x, residual, weights, cos, sin, slot = case(n, dtype)
    caches = [torch.zeros(n, 1, 6, 64, dtype=dtype) for _ in range(2)]
    with torch.no_grad():
        wanted = decode_step(x, residual, weights, cos, sin, caches[0], slot)
        got = torch.compile(decode_step, fullgraph=True, dynamic=False)(
            x, residual, weights, cos, sin, caches[1], slot
        )
    for a, b in zip((*got, caches[1]), (*wanted, caches[0]), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@torch.library.custom_op("dsv3_test::npu_rms_norm", mutates_args=())
def device_rms_norm(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    return x * gamma + epsilon, x.clone()


@device_rms_norm.register_fake
def _(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def test_calls_into_the_device_library_trace_without_a_break(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with torch_npu: a module attribute that is an operator with a fake implementation."""
    from types import SimpleNamespace

    monkeypatch.setattr(
        table, "_torch_npu", SimpleNamespace(npu_rms_norm=torch.ops.dsv3_test.npu_rms_norm)
    )
    monkeypatch.setattr(table, "on_npu", lambda tensor: True)
    torch._dynamo.reset()
    x, gamma = torch.randn(2, 8), torch.randn(8)
    traced = torch.compile(
        lambda x: ops.npu_rms_norm(x, gamma, 0.5)[0], backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(traced(x), x * gamma + 0.5)
    with pytest.raises(Exception, match="gamma is"):  # contracts hold while tracing
        torch.compile(
            lambda x: ops.npu_rms_norm(x, gamma[:4], 0.5)[0], backend="aot_eager", fullgraph=True
        )(x)
