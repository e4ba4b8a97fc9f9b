"""Fused attention against a dense float64 definition, layouts, masks and lengths; the permuting
batched matmul."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port import ops
from tests.ops.meanings import reference

B, N, S, L, D = 2, 4, 3, 7, 8


def dense(
    q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """BNSD, equal heads, float64."""
    score = q.double() @ k.double().transpose(-1, -2) * scale
    if hidden is not None:
        score = score.masked_fill(hidden, -torch.inf)
    return score.softmax(-1) @ v.double(), score.logsumexp(-1, keepdim=True)


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(B, N, S, D), torch.randn(B, N, L, D), torch.randn(B, N, L, 5)


def fused(
    q: Tensor, k: Tensor, v: Tensor, layout: str = "BNSD", **keywords: Any
) -> tuple[Tensor, Tensor]:
    return ops.npu_fused_infer_attention_score(
        q, k, v, num_heads=N, scale=0.3, input_layout=layout, **keywords
    )


def into(x: Tensor, layout: str) -> Tensor:
    if layout == "BNSD":
        return x
    x = x.transpose(1, 2).contiguous()
    return x.flatten(2) if layout == "BSH" else x


@pytest.mark.parametrize(
    "layout",
    [
        "BNSD",
        "BSND",
        "BSH",
        "BNSD_NBSD",
        "BSND_NBSD",
        "BSH_NBSD",
        "BNSD_BSND",
        "BSND_BNSD",
        "BSH_BNSD",
    ],
)
def test_layouts(qkv: tuple[Tensor, Tensor, Tensor], layout: str) -> None:
    source, _, target = layout.partition("_")
    q, k, v = (into(t, source) for t in qkv)
    out, lse = fused(q, k, v, layout, softmax_lse_flag=True)
    wanted, wanted_lse = dense(*qkv, 0.3)
    wanted = wanted.transpose(0, 1) if target == "NBSD" else into(wanted, target or source)
    torch.testing.assert_close(out, wanted.float())
    torch.testing.assert_close(lse, wanted_lse.float())


def test_defaults_that_bite(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    """Scale 1.0, one head, BSH; no lse unless asked for."""
    q, k, v = (into(t, "BSH") for t in qkv)
    out, lse = ops.npu_fused_infer_attention_score(q, k, v)
    torch.testing.assert_close(
        out[:, None], dense(q[:, None], k[:, None], v[:, None], 1.0)[0].float()
    )
    assert lse.numel() == 0 and lse.dtype == torch.float32


def test_causal_modes(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    compressed = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
    row, column = torch.arange(S)[:, None], torch.arange(L)
    for mode, hidden in ((2, column > row), (3, column > row + L - S)):
        out, _ = fused(*qkv, atten_mask=compressed, sparse_mode=mode)
        torch.testing.assert_close(out, dense(*qkv, 0.3, hidden)[0].float())
    one = (qkv[0][:, :, :1], *qkv[1:])
    out, _ = fused(*one, atten_mask=compressed, sparse_mode=2)  # one query: the mode is ignored
    torch.testing.assert_close(out, dense(*one, 0.3)[0].float())


def test_causal_mode_counts_valid_positions(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    compressed = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
    out, _ = fused(
        *qkv,
        atten_mask=compressed,
        sparse_mode=3,
        actual_seq_lengths=[3, 2],
        actual_seq_lengths_kv=[7, 4],
    )
    for b, (queries, keys) in enumerate([(3, 7), (2, 4)]):
        hidden = torch.arange(keys) > torch.arange(queries)[:, None] + keys - queries
        wanted, _ = dense(
            qkv[0][b, :, :queries], qkv[1][b, :, :keys], qkv[2][b, :, :keys], 0.3, hidden
        )
        torch.testing.assert_close(out[b, :, :queries], wanted.float())
        assert not out[b, :, queries:].any()


@pytest.mark.parametrize("shape", [(S, L), (B, S, L), (B, 1, S, L)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8])
def test_mask_as_given(
    qkv: tuple[Tensor, Tensor, Tensor], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    hidden = torch.rand(shape) < 0.4
    hidden[..., 0] = False
    out, _ = fused(*qkv, atten_mask=hidden.to(dtype))
    full = hidden[:, None] if hidden.dim() == 3 else hidden
    torch.testing.assert_close(out, dense(*qkv, 0.3, full)[0].float())


def test_hidden_rows_and_empty_caches(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    mask = torch.zeros(S, L, dtype=torch.bool)
    mask[1] = True
    out, _ = fused(*qkv, atten_mask=mask)
    assert (
        out[:, :, 1].isnan().all() and not out[:, :, [0, 2]].isnan().any()
    )  # undefined on the device
    out, _ = fused(*qkv, atten_mask=mask, inner_precise=2)
    assert not out[:, :, 1].any()
    out, _ = fused(*qkv, actual_seq_lengths_kv=[0, 3])
    assert not out[0].any()
    torch.testing.assert_close(
        out[1], dense(qkv[0][1], qkv[1][1, :, :3], qkv[2][1, :, :3], 0.3)[0].float()
    )


def test_absorbed_mla_equals_expanded() -> None:
    """Decode on the latent cache with rope inputs, bfloat16 bound; the scale stays that of 192
    channels."""
    torch.manual_seed(1)
    w_k, w_v = torch.randn(4, 128, 512) / 12, torch.randn(4, 512, 128) / 23
    q_nope, q_rope = torch.randn(2, 4, 1, 128), torch.randn(2, 4, 1, 64)
    latent, k_rope = torch.randn(2, 1, 9, 512) / 4, torch.randn(2, 1, 9, 64)
    keys, scale = latent @ w_k.transpose(-1, -2), 192**-0.5
    wanted, _ = ops.npu_fused_infer_attention_score(
        q_nope,
        keys,
        latent @ w_v,
        query_rope=q_rope,
        key_rope=k_rope.expand(2, 4, 9, 64),
        num_heads=4,
        scale=scale,
        input_layout="BNSD",
    )
    absorbed, _ = ops.npu_fused_infer_attention_score(
        q_nope @ w_k,
        latent,
        latent,
        query_rope=q_rope,
        key_rope=k_rope,
        num_heads=4,
        num_key_value_heads=1,
        scale=scale,
        input_layout="BNSD",
        actual_seq_lengths_kv=[9],
    )
    torch.testing.assert_close(absorbed @ w_v, wanted, rtol=1e-4, atol=1e-5)


def test_a_layout_of_no_document_has_no_reference(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(NotImplementedError, match="NSD"):
        reference.npu_fused_infer_attention_score(*qkv, input_layout="NSD")
    with pytest.raises(NotImplementedError, match="kv_padding_size"):
        reference.npu_fused_infer_attention_score(*qkv, kv_padding_size=torch.zeros(1))


def test_transpose_batchmatmul() -> None:
    x, weight = torch.randn(5, 4, 6), torch.randn(4, 6, 8)  # [M, B, K], [B, K, N]
    wanted = torch.einsum("mbk,bkn->mbn", x, weight)
    got = ops.npu_transpose_batchmatmul(x, weight, perm_x1=(1, 0, 2), perm_y=(1, 0, 2))
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(ops.npu_transpose_batchmatmul(x.transpose(0, 1), weight), wanted)
    split = ops.npu_transpose_batchmatmul(x, weight, perm_x1=(1, 0, 2), batch_split_factor=2)
    torch.testing.assert_close(split, wanted.reshape(5, 2, 16).transpose(0, 1))


@pytest.mark.parametrize("batch", [1, 3])
def test_head_matmul_and_attention(batch: int) -> None:
    x, weight = torch.randn(batch, N, S, D), torch.randn(N, D, 5)
    torch.testing.assert_close(ops.head_matmul(x, weight), x @ weight)
    rows = torch.randn(batch, L, D)
    torch.testing.assert_close(ops.shared_scores(x.flatten(1, 2), rows), x.flatten(1, 2) @ rows.mT)
    q, k, v = torch.randn(batch, N, S, D), torch.randn(batch, N, L, D), torch.randn(batch, N, L, 5)
    hidden = torch.arange(L) > torch.arange(S)[:, None] + 2
    mask = torch.zeros(S, L).masked_fill(hidden, torch.finfo(torch.float32).min)
    torch.testing.assert_close(
        ops.attention(q, k, v, mask, 0.3), dense(q, k, v, 0.3, hidden)[0].float()
    )
    torch.testing.assert_close(ops.attention(q, k, v, None, 0.3), dense(q, k, v, 0.3)[0].float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_of_a_padding_query_is_finite(dtype: torch.dtype) -> None:
    """All keys hidden by float32's lowest number, in every dtype: left padding must not turn into
    NaN."""
    q, k, v = (torch.randn(1, 2, S, D).to(dtype) for _ in range(3))
    mask = torch.full((1, 1, S, S), torch.finfo(torch.float32).min)
    assert ops.attention(q, k, v, mask, 0.3).isfinite().all()
