"""Routing, gating and the grouped matmul on random sizes, against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsv3_port import ops
from tests.ops.meanings import reference

quick = settings(max_examples=60, deadline=None)


@st.composite
def choices(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """x [n, H], distinct experts of each token [n, k] int32, E."""
    n, experts = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    k = draw(st.integers(1, min(4, experts)))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    chosen = torch.stack([torch.randperm(experts)[:k] for _ in range(n)]).int()
    return torch.randn(n, 6), chosen, experts


def row_index(n: int, k: int) -> Tensor:
    return torch.arange(n * k, dtype=torch.int32).view(k, n).t().contiguous()


@quick
@given(choices())
def test_round_trip_is_the_weighted_sum_of_the_experts(case: tuple[Tensor, Tensor, int]) -> None:
    """Tokens to experts and back, by both generations of operators, and what a plain loop gives."""
    x, chosen, experts = case
    (n, h), k = x.shape, chosen.shape[1]
    weight, scales = torch.randn(experts, h, h), torch.rand(n, k)
    shared = torch.randn(n, h)
    wanted = shared.clone()
    for t in range(n):
        for j in range(k):
            wanted[t] += scales[t, j] * (x[t] @ weight[chosen[t, j]])

    rows, back, order = ops.npu_moe_init_routing(x, row_index(n, k), chosen, n)
    ends = ops.npu_moe_compute_expert_tokens(order, experts).long()
    (out,) = ops.npu_grouped_matmul([rows], [weight], group_list=ends, split_item=3, group_type=0)
    got = ops.npu_moe_finalize_routing(out, shared, None, None, scales, back, chosen)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)

    for kind in (0, 1, 2):
        rows, back2, groups, _ = ops.npu_moe_init_routing_v2(
            x, chosen, expert_num=experts, expert_tokens_num_flag=True, expert_tokens_num_type=kind
        )
        (out,) = ops.npu_grouped_matmul(
            [rows], [weight], group_list=groups, split_item=3, group_type=0, group_list_type=kind
        )
        got = ops.npu_moe_finalize_routing(
            out, shared, None, None, scales, back2, chosen, drop_pad_mode=2
        )
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        assert torch.equal(back.view(k, n).t(), back2.view(n, k))  # one index, two orders


@quick
@given(choices(), st.data())
def test_v2_expert_range(case: tuple[Tensor, Tensor, int], data: st.DataObject) -> None:
    x, chosen, experts = case
    low = data.draw(st.integers(0, experts - 1))
    high = data.draw(st.integers(low + 1, experts))
    k = chosen.shape[1]
    rows, index, counts, _ = ops.npu_moe_init_routing_v2(
        x,
        chosen,
        expert_num=experts,
        active_expert_range=[low, high],
        expert_tokens_num_flag=True,
        expert_tokens_num_type=1,
    )
    flat = chosen.flatten().tolist()
    kept = sorted((p for p, e in enumerate(flat) if low <= e < high), key=lambda p: flat[p])
    assert counts.tolist() == [flat.count(e) for e in range(low, high)]
    assert torch.equal(rows[: len(kept)], x[[p // k for p in kept]])
    assert index.tolist() == [kept.index(p) if p in kept else -1 for p in range(len(flat))]


@quick
@given(choices(), st.integers(1, 4))
def test_v2_drop_and_pad_then_finalize(case: tuple[Tensor, Tensor, int], capacity: int) -> None:
    """Every expert keeps its first `capacity` pairs; finalize mode 3 adds the others as nothing."""
    x, chosen, experts = case
    n, k = chosen.shape
    capacity = min(capacity, n)
    rows, index, counts, _ = ops.npu_moe_init_routing_v2(
        x,
        chosen,
        expert_num=experts,
        expert_capacity=capacity,
        drop_pad_mode=1,
        expert_tokens_num_flag=True,
        expert_tokens_num_type=1,
    )
    scales, seen = torch.rand(n, k), [0] * experts
    wanted, padded = torch.zeros(n, x.shape[1]), torch.zeros(experts, capacity, x.shape[1])
    for t in range(n):
        for j in range(k):
            e = int(chosen[t, j])
            if seen[e] < capacity:
                wanted[t] += scales[t, j] * x[t]
                padded[e, seen[e]] = x[t]
                assert index[t * k + j] == e * capacity + seen[e]
            else:
                assert index[t * k + j] == -1
            seen[e] += 1
    assert counts.tolist() == seen  # before dropping
    assert torch.equal(rows, padded)
    got = ops.npu_moe_finalize_routing(rows, None, None, None, scales, index, None, drop_pad_mode=3)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_v2_carries_scales_smooths_int8_and_counts_rows() -> None:
    x, chosen = torch.randn(4, 8), torch.tensor([[1, 0], [2, 1], [0, 2], [1, 2]], dtype=torch.int32)
    source = chosen.flatten().argsort(stable=True) // 2
    scale = torch.rand(4)
    carried = ops.npu_moe_init_routing_v2(x, chosen, expert_num=3, scale=scale, active_num=5)
    assert torch.equal(carried[3], scale[source][:5]) and carried[0].shape == (5, 8)
    smooth = torch.rand(3, 8) + 0.5
    rows, _, _, steps = ops.npu_moe_init_routing_v2(
        x, chosen, expert_num=3, scale=smooth, quant_mode=1
    )
    value = x[source] * smooth[chosen.flatten().sort().values.long()]
    torch.testing.assert_close(steps, value.abs().amax(-1) / 127)
    torch.testing.assert_close(
        rows.float() * steps[:, None], value, rtol=0, atol=float(steps.max()) / 2 + 1e-6
    )


@quick
@given(st.lists(st.integers(0, 20), max_size=40), st.integers(1, 25))
def test_compute_expert_tokens_counts_exactly(experts: list[int], count: int) -> None:
    experts.sort()
    out = ops.npu_moe_compute_expert_tokens(torch.tensor(experts, dtype=torch.int32), count)
    assert out.tolist() == [sum(e <= i for e in experts) for i in range(count)]


def gate_by_hand(value: list[float], k: int, groups: int, k_group: int, mode: int) -> list[int]:
    """The definition with Python's stable sort (ties go to the lower index); group sums in float32."""
    width = len(value) // groups
    if groups > 1:
        parts = [sorted(value[g * width : (g + 1) * width], reverse=True) for g in range(groups)]
        merit = [
            np.float32(p[0]) if mode == 0 else np.float32(p[0]) + np.float32(p[1]) for p in parts
        ]
        best = sorted(range(groups), key=lambda g: -merit[g])[:k_group]
        value = [v if i // width in best else -np.inf for i, v in enumerate(value)]
    return sorted(range(len(value)), key=lambda i: -value[i])[:k]


@quick
@given(st.data())
def test_gating_against_brute_force(data: st.DataObject) -> None:
    """Values from a coarse grid, so that scores, biased scores and groups tie often; biases below
    zero included."""
    groups, width = data.draw(st.sampled_from([(1, 8), (2, 4), (4, 3), (4, 8), (8, 4)]))
    k_group = data.draw(st.integers(1, groups))
    k = data.draw(st.integers(1, width * k_group))
    mode, norm = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))
    experts, grid = groups * width, st.integers(-3, 3).map(lambda v: v / 2)
    x = torch.tensor(
        [data.draw(st.lists(grid, min_size=experts, max_size=experts)) for _ in range(3)]
    )
    bias = torch.tensor(
        data.draw(st.lists(grid.map(lambda v: 4 * v), min_size=experts, max_size=experts))
    )
    y, chosen, _ = ops.npu_moe_gating_top_k(
        x,
        k,
        bias=bias,
        k_group=k_group,
        group_count=groups,
        group_select_mode=mode,
        norm_type=norm,
        routed_scaling_factor=2.5,
    )
    scores = x.sigmoid() if norm else x.softmax(-1)
    for row in range(3):
        value = (scores[row] + bias).tolist()
        assert chosen[row].tolist() == gate_by_hand(value, k, groups, k_group, mode)
        weight = scores[row, chosen[row].long()]
        weight = weight / weight.sum() if norm else weight
        torch.testing.assert_close(y[row], weight * 2.5)


def test_gating_renormalises_softmax_on_demand() -> None:
    x = torch.randn(5, 8)
    y, chosen, _ = ops.npu_moe_gating_top_k(x, 3, renorm=1)
    weight = x.softmax(-1).gather(-1, chosen.long())
    torch.testing.assert_close(y, weight / weight.sum(-1, keepdim=True))


# ---- grouped matmul ------------------------------------------------------------------------------


@quick
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=8),
    st.sampled_from(["float32", "bfloat16", "float64"]),
)
def test_grouped_matmul_against_a_loop(counts: list[int], name: str) -> None:
    """Empty groups, groups of one row, and more rows than the small-group form takes; three kinds
    of lists."""
    dtype, experts, rows = getattr(torch, name), len(counts), sum(counts)
    if rows == 0:
        counts[0] = rows = 1
    torch.manual_seed(rows)
    x, weight = (
        torch.randn(rows, 5, dtype=dtype),
        torch.randn(experts, 7, 5, dtype=dtype),
    )  # stored [E, N, K]
    wanted = torch.cat(
        [part.double() @ w.double().t() for part, w in zip(x.split(counts), weight, strict=True)]
    )
    sizes = torch.tensor(counts)
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2, "float64": 1e-12}[name]
    for kind, groups in ((0, sizes.cumsum(0)), (1, sizes)):
        for w in ([weight.transpose(1, 2)], [one.t() for one in weight]):
            (y,) = ops.npu_grouped_matmul(
                [x], w, group_list=groups, split_item=2, group_type=0, group_list_type=kind
            )
            assert y.dtype == dtype
            torch.testing.assert_close(y.double(), wanted, rtol=tolerance, atol=tolerance)
    got = ops.npu_gmm(x, weight.transpose(1, 2), group_list=sizes.cumsum(0))
    assert torch.equal(got, ops.npu_gmm_v2(x, weight.transpose(1, 2), group_list=sizes))
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


def test_grouped_matmul_bias_is_added_before_the_cast() -> None:
    x, weight, bias = (
        torch.randn(5, 4).bfloat16(),
        torch.randn(2, 4, 3).bfloat16(),
        torch.randn(2, 3),
    )
    (y,) = ops.npu_grouped_matmul(
        [x], [weight], bias=[bias], group_list=torch.tensor([2, 5]), split_item=3, group_type=0
    )
    wanted = torch.cat(
        [x[:2].float() @ weight[0].float() + bias[0], x[2:].float() @ weight[1].float() + bias[1]]
    )
    torch.testing.assert_close(y, wanted.bfloat16(), rtol=2**-8, atol=1e-6)
    gmm = ops.npu_gmm(x, weight, bias=bias, group_list=[2, 5])
    assert torch.equal(gmm, y)


def test_grouped_matmul_rows_past_the_last_group() -> None:
    """The device leaves them unwritten; a larger sum is refused."""
    x, weight = torch.randn(5, 4), torch.randn(2, 4, 3)
    keywords: dict[str, Any] = {"split_item": 3, "group_type": 0}
    (y,) = reference.npu_grouped_matmul([x], [weight], group_list=torch.tensor([1, 3]), **keywords)
    torch.testing.assert_close(y[:3], torch.cat([x[:1] @ weight[0], x[1:3] @ weight[1]]))
    assert y[3:].isnan().all()
    with pytest.raises(ValueError, match="ends at row 6, but x has 5 rows"):
        reference.npu_grouped_matmul([x], [weight], group_list=torch.tensor([1, 6]), **keywords)
