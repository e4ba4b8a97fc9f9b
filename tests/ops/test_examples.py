"""The worked examples of the operator contracts, number by number."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsv3_port import ops
from tests.ops.meanings import reference


def close(got: torch.Tensor, wanted: object, atol: float = 1e-6) -> None:
    torch.testing.assert_close(got, torch.as_tensor(wanted, dtype=got.dtype), rtol=0, atol=atol)


def ints(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


# ---- norms, SwiGLU, rope -------------------------------------------------------------------------


def test_rms_norm() -> None:
    y, rstd = ops.npu_rms_norm(torch.tensor([1.0, 2, 2, 4]), torch.tensor([1.0, 1, 2, 0.5]), 0.0)
    close(y, [0.4, 0.8, 1.6, 0.8])
    close(rstd, [0.4])


def test_add_rms_norm() -> None:
    x1, x2, gamma = (
        torch.tensor([1.0, 0, 1, 3]),
        torch.tensor([0.0, 2, 1, 1]),
        torch.tensor([1.0, 1, 2, 0.5]),
    )
    y, rstd, x = ops.npu_add_rms_norm(x1, x2, gamma, 0.0)
    close(y, [0.4, 0.8, 1.6, 0.8])
    close(rstd, [0.4])
    close(x, [1, 2, 2, 4])


def test_swiglu() -> None:
    close(ops.npu_swiglu(torch.tensor([1.0, -1, 2, 3])), [1.4621172, -0.8068243])


def test_rotary_mul_modes() -> None:
    x, cos, sin = torch.tensor([[[1.0, 2, 3, 4]]]), torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    close(ops.npu_rotary_mul(x, cos, sin), [[[-3, -4, 1, 2]]])
    close(ops.npu_rotary_mul(x, cos, sin, "interleave"), [[[-2, 1, -4, 3]]])
    close(ops.npu_rotary_mul(x, cos, sin, rotate=torch.eye(4).flip(0)), [[[4, 3, 2, 1]]])


def test_interleave_rope_toy_size() -> None:
    x = torch.tensor([1.0, 2, 3, 4]).view(1, 1, 1, 4)
    cos, sin = (
        torch.tensor([0.0, 1, 0, 1]).view(1, 1, 1, 4),
        torch.tensor([1.0, 0, 1, 0]).view(1, 1, 1, 4),
    )
    close(reference.npu_interleave_rope(x, cos, sin).flatten(), [-2, 3, 1, 4])


# ---- caches --------------------------------------------------------------------------------------


def test_kv_rmsnorm_rope_cache_paged() -> None:
    kv, gamma = torch.randn(3, 1, 1, 576), torch.rand(512)
    cos, sin = torch.randn(3, 1, 1, 64), torch.randn(3, 1, 1, 64)
    k_cache, ckv_cache = torch.full((2, 4, 1, 64), 7.0), torch.full((2, 4, 1, 512), 7.0)
    k_out, ckv_out, k_embed, y = ops.npu_kv_rmsnorm_rope_cache(
        kv,
        gamma,
        cos,
        sin,
        torch.tensor([5, -1, 0]),
        k_cache,
        ckv_cache,
        epsilon=1e-6,
        cache_mode="PA",
        is_output_kv=True,
    )
    assert k_out is k_cache and ckv_out is ckv_cache
    close(y, reference.npu_rms_norm(kv[..., :512], gamma, 1e-6)[0])
    close(k_embed, reference.npu_interleave_rope(kv[..., 512:], cos, sin))
    for cache, value in ((k_cache, k_embed), (ckv_cache, y)):
        wanted = torch.full_like(cache, 7.0)
        wanted[1, 1, 0], wanted[0, 0, 0] = value[0, 0, 0], value[2, 0, 0]
        close(cache, wanted)


def test_scatter_update() -> None:
    data, updates = torch.zeros(2, 1, 4, 2), torch.arange(1.0, 9).view(2, 1, 2, 2)
    out = ops.scatter_update(data, torch.tensor([1, 2]), updates, -2)
    close(out[0, 0], [[0, 0], [1, 2], [3, 4], [0, 0]])
    close(out[1, 0], [[0, 0], [0, 0], [5, 6], [7, 8]])
    close(data, torch.zeros(2, 1, 4, 2))
    assert ops.scatter_update_(data, torch.tensor([1, 2]), updates, -2) is data
    close(data, out)


def test_scatter_update_2d_indices() -> None:
    data = torch.zeros(2, 1, 4, 2)
    ops.scatter_update_(data, torch.tensor([[1, 0]]), torch.tensor([[[[1.0, 2], [3, 4]]]]), -2)
    close(data[1, 0], [[1, 2], [3, 4], [0, 0], [0, 0]])
    close(data[0], torch.zeros(1, 4, 2))


def test_scatter_nd_update() -> None:
    data, updates = torch.zeros(6, 1, 2), torch.tensor([[[1.0, 2]], [[3, 4]]])
    out = ops.npu_scatter_nd_update(data, torch.tensor([[4], [1]]), updates)
    close(out[:, 0], [[0, 0], [3, 4], [0, 0], [0, 0], [1, 2], [0, 0]])
    close(data, torch.zeros(6, 1, 2))
    assert ops.npu_scatter_nd_update_(data, torch.tensor([[4], [1]]), updates) is data
    close(data, out)


# ---- routing: three tokens, two choices, four experts --------------------------------------------

X = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
CHOSEN = ints([[2, 0], [0, 3], [2, 1]])
ROW_IDX = ints([[0, 3], [1, 4], [2, 5]])
SORTED = [[1, 2], [3, 4], [5, 6], [1, 2], [5, 6], [3, 4]]
V1, V2 = ints([3, 1, 4, 0, 5, 2]), ints([3, 0, 1, 5, 4, 2])
OUT = torch.tensor([[1.0, 2], [3, 4], [10, 12], [3, 6], [15, 18], [12, 16]])
SCALES = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.25, 0.75]])


@pytest.mark.parametrize(("active", "rows"), [(3, 6), (99, 6), (2, 4)])
def test_init_routing(active: int, rows: int) -> None:
    out, back, experts = ops.npu_moe_init_routing(X, ROW_IDX, CHOSEN, active)
    close(out, SORTED[:rows])
    assert back.tolist() == V1.tolist() and back.dtype == torch.int32
    assert experts.tolist() == [0, 0, 1, 2, 2, 3] and experts.dtype == torch.int32


def test_init_routing_with_row_major_index_is_wrong_rows() -> None:
    out, _, _ = reference.npu_moe_init_routing(X, ints([[0, 1], [2, 3], [4, 5]]), CHOSEN, 3)
    close(out, X[[1, 2, 2, 0, 1, 0]])


def test_init_routing_v2() -> None:
    rows, gather, counts, scale = ops.npu_moe_init_routing_v2(
        X, CHOSEN, expert_num=4, expert_tokens_num_type=1, expert_tokens_num_flag=True
    )
    close(rows, SORTED)
    assert gather.tolist() == V2.tolist() and gather.dtype == torch.int32
    assert counts.tolist() == [2, 1, 2, 1] and counts.dtype == torch.int64
    assert scale.shape == (6,) and scale.dtype == torch.float32
    scatter = ops.npu_moe_init_routing_v2(X, CHOSEN, expert_num=4, row_idx_type=1)[1]
    assert scatter.tolist() == [1, 2, 5, 0, 4, 3]
    cumulative = ops.npu_moe_init_routing_v2(X, CHOSEN, expert_num=4, expert_tokens_num_flag=True)[
        2
    ]
    assert cumulative.tolist() == [2, 3, 5, 6]
    pairs = ops.npu_moe_init_routing_v2(
        X, CHOSEN, expert_num=4, expert_tokens_num_flag=True, expert_tokens_num_type=2
    )[2]
    assert pairs.tolist() == [[0, 2], [1, 1], [2, 2], [3, 1]]


def test_identity_of_the_two_index_orders() -> None:
    assert V1.view(2, 3).t().tolist() == V2.view(3, 2).tolist() == [[3, 0], [1, 5], [4, 2]]


def test_init_routing_v2_expert_range() -> None:
    keywords: dict[str, Any] = {
        "expert_num": 4,
        "active_expert_range": [1, 3],
        "expert_tokens_num_flag": True,
    }
    rows, gather, counts, _ = ops.npu_moe_init_routing_v2(
        X, CHOSEN, expert_tokens_num_type=1, **keywords
    )
    assert gather.tolist() == [1, -1, -1, -1, 2, 0]
    assert counts.tolist() == [1, 2]
    close(rows[:3], X[[2, 0, 2]])
    assert rows[3:].isnan().all()  # undefined on the device
    assert ops.npu_moe_init_routing_v2(X, CHOSEN, **keywords)[2].tolist() == [1, 3]
    scatter = ops.npu_moe_init_routing_v2(X, CHOSEN, row_idx_type=1, **keywords)[1]
    assert scatter[:3].tolist() == [5, 0, 4]


def test_init_routing_v2_dynamic_int8() -> None:
    rows, _, _, scale = ops.npu_moe_init_routing_v2(X, CHOSEN, expert_num=4, quant_mode=1)
    token = [0, 1, 2, 0, 2, 1]
    close(scale, torch.tensor([0.0157480, 0.0314961, 0.0472441])[token])
    assert rows.dtype == torch.int8
    assert rows.tolist() == torch.tensor([[64, 127], [95, 127], [106, 127]])[token].tolist()


@pytest.mark.parametrize(
    ("experts", "count", "wanted"),
    [
        ([0, 0, 1, 2, 2, 3], 4, [2, 3, 5, 6]),
        ([0, 0, 0, 1, 1, 2], 3, [3, 5, 6]),
        ([0, 2, 2, 5], 6, [1, 1, 3, 3, 3, 4]),
    ],
)
def test_compute_expert_tokens(experts: list[int], count: int, wanted: list[int]) -> None:
    out = ops.npu_moe_compute_expert_tokens(ints(experts), count)
    assert out.tolist() == wanted and out.dtype == torch.int32


def test_finalize_routing() -> None:
    wanted = [[2.2, 4.4], [7.5, 10.0], [11.25, 13.5]]
    close(ops.npu_moe_finalize_routing(OUT, None, None, None, SCALES, V1, None), wanted)
    close(
        ops.npu_moe_finalize_routing(OUT, None, None, None, SCALES, V2, None, drop_pad_mode=2),
        wanted,
    )
    mistake = ops.npu_moe_finalize_routing(OUT, None, None, None, SCALES, V1, None, drop_pad_mode=2)
    close(mistake, [[3.0, 5.2], [8.0, 10.0], [10.5, 13.0]])


@pytest.mark.parametrize(
    ("kind", "groups"),
    [(0, [2, 3, 5, 6]), (1, [2, 1, 2, 1]), (2, [[0, 2], [1, 1], [2, 2], [3, 1]])],
)
def test_grouped_matmul(kind: int, groups: list) -> None:
    weight = torch.stack(
        [torch.eye(2), 2 * torch.eye(2), 3 * torch.eye(2), torch.tensor([[0.0, 1], [1, 0]])]
    )
    (y,) = ops.npu_grouped_matmul(
        [torch.tensor(SORTED).float()],
        [weight],
        group_list=torch.tensor(groups),
        split_item=3,
        group_type=0,
        group_list_type=kind,
    )
    close(y, [[1, 2], [3, 4], [10, 12], [3, 6], [15, 18], [4, 3]])


# ---- gating --------------------------------------------------------------------------------------

GATE = torch.tensor([[0.0, 1, 2, -1], [1, 1, 0, 0], [-2, 0, 0.5, 3]])
GROUPED = torch.tensor([[2.0, 0, 0, 0, 1, 1, 1, 0], [0.0] * 8, [-1, 3, -3, 0, 2, 2, -5, -5]])


def test_gating_sigmoid() -> None:
    y, experts, out = ops.npu_moe_gating_top_k(
        GATE, 2, norm_type=1, routed_scaling_factor=2.5, out_flag=True
    )
    assert experts.tolist() == [[2, 1], [0, 1], [3, 2]] and experts.dtype == torch.int32
    close(y, [[1.366123, 1.133877], [1.25, 1.25], [1.511990, 0.988010]])
    close(out, GATE.sigmoid())


def test_gating_softmax() -> None:
    y, experts, _ = ops.npu_moe_gating_top_k(GATE, 2)
    assert experts.tolist() == [[2, 1], [0, 1], [3, 2]]
    close(y, [[0.643914, 0.236883], [0.365529, 0.365529], [0.878264, 0.072092]])


def test_gating_groups() -> None:
    keywords: dict[str, Any] = {
        "k_group": 1,
        "group_count": 2,
        "group_select_mode": 1,
        "norm_type": 1,
        "routed_scaling_factor": 2.5,
    }
    y, experts, _ = ops.npu_moe_gating_top_k(GROUPED, 2, bias=torch.zeros(8), **keywords)
    assert experts.tolist() == [[4, 5], [0, 1], [4, 5]]
    close(y, [[1.25, 1.25]] * 3)
    bias = torch.zeros(8)
    bias[7] = 0.5
    y, experts, _ = ops.npu_moe_gating_top_k(GROUPED, 2, bias=bias, **keywords)
    assert experts.tolist() == [[7, 4], [7, 4], [4, 5]]
    close(y, [[1.015386, 1.484614], [1.25, 1.25], [1.25, 1.25]])


def test_gating_masks_with_minus_infinity() -> None:
    x = torch.tensor([[2.0, 0, 0, 0, 1, 1, 1, 0]])
    experts = ops.npu_moe_gating_top_k(
        x,
        2,
        bias=torch.tensor([-2.0] * 4 + [-3.0] * 4),
        k_group=1,
        group_count=2,
        group_select_mode=1,
        norm_type=1,
    )[1]
    assert experts.tolist() == [[0, 1]]  # a mask of 0.0 would choose 4 and 5


# ---- attention -----------------------------------------------------------------------------------


def test_attention_toy_mla() -> None:
    latent = torch.eye(2).view(1, 1, 2, 2)
    out, lse = reference.npu_fused_infer_attention_score(
        torch.tensor([1.0, 2]).view(1, 1, 1, 2),
        latent,
        latent,
        query_rope=torch.tensor([0.5]).view(1, 1, 1, 1),
        key_rope=torch.tensor([1.0, 0]).view(1, 1, 2, 1),
        scale=0.5,
        input_layout="BNSD",
        softmax_lse_flag=True,
    )
    close(out.flatten(), [0.437824, 0.562177])
    close(lse.flatten(), [1.575939])


def test_attention_absorption_identity() -> None:
    latent, w_k, w_v = torch.eye(2), torch.tensor([[1.0, 2], [0, 1]]), torch.tensor([[1.0], [3]])
    q = torch.tensor([[2.0, 1]])
    close(q @ w_k, [[2, 5]])
    naive, _ = reference.npu_fused_infer_attention_score(
        q.view(1, 1, 1, 2),
        (latent @ w_k.t()).view(1, 1, 2, 2),
        (latent @ w_v).view(1, 1, 2, 1),
        input_layout="BNSD",
    )
    absorbed, _ = reference.npu_fused_infer_attention_score(
        (q @ w_k).view(1, 1, 1, 2),
        latent.view(1, 1, 2, 2),
        latent.view(1, 1, 2, 2),
        input_layout="BNSD",
    )
    close(naive.flatten(), [2.905148])
    close(absorbed.flatten() @ w_v, [2.905148])


# ---- hints ---------------------------------------------------------------------------------------


def test_hints_change_nothing() -> None:
    weight = torch.randn(4, 4)
    assert ops.npu_prefetch(weight, None, 64) is None
    assert ops.npu_format_cast(weight, 29) is weight
