"""Every form of a product that a CPU may choose means the same product; counting sees the plain
one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3_port.count.operators import count_ops
from dsv3_port.ops import cpu

SMALL, LARGE = (64, 96), (512, 256)  # below and at the size that oneDNN takes
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
needs_onednn = pytest.mark.skipif(not cpu._onednn, reason="this torch has no oneDNN")


def operators(x: Tensor, weight: Tensor) -> set[str]:
    return set(count_ops(lambda: cpu.linear(x, weight), as_npu=False))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8, 9, 40])
def test_linear_is_the_product_whatever_form_it_takes(
    rows: int, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(rows)
    weight, x = (
        (torch.randn(shape) / shape[1] ** 0.5).to(dtype),
        torch.randn(rows, 2 * shape[1]).to(dtype),
    )
    for given in (x[:, : shape[1]].contiguous(), x[:, : shape[1]], x[:, ::2]):
        got = cpu.linear(given, weight)
        assert got.is_contiguous() and got.dtype == dtype
        torch.testing.assert_close(
            got.double(),
            given.double() @ weight.double().t(),
            rtol=TOLERANCE[dtype],
            atol=TOLERANCE[dtype],
        )


def test_linear_takes_no_rows_and_any_number_of_leading_dimensions() -> None:
    weight = torch.randn(LARGE)
    assert cpu.linear(torch.empty(0, LARGE[1]), weight).shape == (0, LARGE[0])
    x = torch.randn(2, 3, 4, LARGE[1])
    torch.testing.assert_close(cpu.linear(x, weight), F.linear(x, weight), rtol=1e-4, atol=1e-4)


@needs_onednn
def test_large_float32_weights_go_to_onednn_and_counts_do_not_see_it() -> None:
    x = torch.randn(5, LARGE[1])
    large, small = torch.randn(LARGE), torch.randn(64, LARGE[1])
    assert "mkldnn._linear_pointwise" in operators(
        x, large
    ) and "mkldnn._linear_pointwise" not in operators(x, small)
    assert not any("mkldnn" in name for name in operators(x.bfloat16(), large.bfloat16()))
    with cpu.plain_products():
        assert operators(x, large) == {"aten.mm"}
        assert torch.equal(cpu.linear(x, large), F.linear(x, large))
    assert "mkldnn._linear_pointwise" in operators(x, large)


@needs_onednn
def test_a_compiled_prefill_keeps_onednn_as_an_operator_of_its_own() -> None:
    torch._dynamo.reset()
    x, weight = torch.randn(20, LARGE[1]), torch.randn(LARGE) / 16

    def block(x: Tensor) -> Tensor:
        return cpu.linear(F.silu(x), weight) * 2

    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(block, fullgraph=True)(x), block(x), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("experts", "rows", "inner", "outer"),
    [
        (6, 3, 32, 16),
        (6, 40, 32, 16),
        (6, 400, 32, 16),  # few, some and many rows an expert
        (6, 41, 30, 18),  # sizes that F.grouped_mm refuses
        (3, 64, 512, 512),  # weights that oneDNN takes
        (64, 8, 32, 16),  # most experts without a row
    ],
)
def test_grouped_matmul_is_a_product_for_each_expert(
    experts: int, rows: int, inner: int, outer: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(rows)
    weight = (
        (torch.randn(experts, outer, inner) / inner**0.5).to(dtype).transpose(1, 2)
    )  # as experts are stored
    x = torch.randn(rows, inner).to(dtype)
    chosen = torch.randint(experts, (rows,)).sort().values
    chosen[chosen == 1] = 0  # one expert has none
    ends = torch.bincount(chosen, minlength=experts).cumsum(0)
    wanted = torch.stack(
        [row.double() @ weight[e].double() for row, e in zip(x, chosen.tolist(), strict=True)]
    )
    for stacked in (weight, list(weight)):
        got = cpu.grouped_matmul(x, stacked, ends)
        torch.testing.assert_close(
            got.double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )
    with cpu.plain_products():
        torch.testing.assert_close(
            got,
            cpu.grouped_matmul(x, weight, ends),
            rtol=TOLERANCE[dtype],
            atol=TOLERANCE[dtype],
        )
    short = cpu.grouped_matmul(x, weight, (ends - 1).clamp(min=0))
    assert short[-1].isnan().all() and not short[: int(ends[-1]) - 1].isnan().any()
    with pytest.raises(ValueError, match="group_list ends at row"):
        cpu.grouped_matmul(x, weight, ends + 1)


@pytest.mark.parametrize("longest", [6, 40])  # of a mean of 5 rows
def test_small_bfloat16_experts_are_one_product_and_long_groups_their_own(longest: int) -> None:
    torch.manual_seed(longest)
    counts = torch.tensor([longest, 0, 3, 8, 1, 6, 0, 4] * 2)
    counts[-1] += 64 + 16 - int(counts.sum()) % 16
    weight = torch.randn(16, 32, 64).bfloat16().transpose(1, 2)
    ends = counts.cumsum(0)
    x = torch.randn(int(ends[-1]), 64).bfloat16()
    wanted = torch.cat(
        [
            rows.double() @ w.double()
            for rows, w in zip(x.split(counts.tolist()), weight, strict=True)
        ]
    )
    got = cpu.grouped_matmul(x, weight, ends)
    torch.testing.assert_close(
        got.double(), wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max())
    )
    kinds = count_ops(lambda: cpu.grouped_matmul(x, weight, ends), as_npu=False)
    rows = cpu.PADDED_MEANS * -(-len(x) // 16)
    assert kinds["aten.bmm"] == 1
    assert kinds.get("aten.mm", 0) == int((counts > rows).sum()) >= 1
