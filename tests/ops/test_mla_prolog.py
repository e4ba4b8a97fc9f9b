"""npu_mla_prolog_v3 against its formula: in float64 from the definition, in bfloat16 with every rounding
where CANN's kernel has it, in int8 by integers. The vendor's own test of it is skipped, allows an int8
query to be off by 1, and has none of bfloat16."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dsv3_port import ops
from dsv3_port.ops.checks import CardLimit, ContractError, device_rules
from tests.ops.meanings import reference

F64, F32, BF16, I8 = torch.float64, torch.float32, torch.bfloat16, torch.int8
# tokens, hidden, rank of queries, heads, nope, latent, rotary
SMALL, V3 = (5, 12, 10, 4, 6, 32, 16), (3, 40, 24, 2, 128, 512, 64)
SLOTS = [21, -1, 0, 33, 7]
NAMES = (
    "token_x weight_dq weight_uq_qr weight_uk weight_dkv_kr rmsnorm_gamma_cq rmsnorm_gamma_ckv rope_sin "
    "rope_cos kv_cache kr_cache"
).split()


def given(
    sizes: tuple[int, ...] = SMALL, dtype: torch.dtype = F64, seed: int = 0
) -> dict[str, Any]:
    """A right call: [T, He], caches of three blocks of 16 full of numbers."""
    tokens, hidden, rank_q, heads, nope, rank, rotary = sizes
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (tokens, hidden),
        (hidden, rank_q),
        (rank_q, heads * (nope + rotary)),
        (heads, nope, rank),
        (hidden, rank + rotary),
        (rank_q,),
        (rank,),
        (tokens, rotary),
        (tokens, rotary),
        (3, 16, 1, rank),
        (3, 16, 1, rotary),
    )
    found: dict[str, Any] = {
        name: torch.randn(shape, generator=generator, dtype=F64).to(dtype)
        for name, shape in zip(NAMES, shapes, strict=True)
    }
    return found | {"cache_index": torch.tensor(SLOTS[:tokens])}


def call(values: dict[str, Any], **changed: Any) -> tuple[Tensor, ...]:
    both = values | changed
    first = [both.pop(name) for name in NAMES]
    result: tuple[Tensor, ...] = ops.npu_mla_prolog_v3(*first, **both)
    return result


# ---- the definition ------------------------------------------------------------------------------


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of the last dimension, each a complex number times cos + i sin of its place in the first
    half; all real parts, then all imaginary ones."""
    half = x.shape[-1] // 2
    pairs = torch.view_as_complex(x.unflatten(-1, (half, 2)).contiguous())
    out = torch.view_as_real(pairs * torch.complex(cos[..., :half], sin[..., :half]))
    return torch.cat((out[..., 0], out[..., 1]), -1)


def normed(x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * gamma


def same_angles(values: dict[str, Any]) -> dict[str, Any]:
    """cos and sin of one angle for both members of a pair, as every model has them."""
    for name in ("rope_sin", "rope_cos"):
        x = values[name]
        values[name] = torch.cat((x[..., : x.shape[-1] // 2],) * 2, -1)
    return values


def definition(
    v: dict[str, Any],
    eps: tuple[float, float] = (1e-5, 1e-5),
    between: Callable[..., Any] = lambda x: x,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(query, query_rope, latent, k_rope) of [T, He] in float64; `between` rounds what the kernel
    rounds."""
    x, sin, cos = (v[n].double() for n in ("token_x", "rope_sin", "rope_cos"))
    heads, nope, rank = v["weight_uk"].shape
    c = between(x @ v["weight_dq"].double())
    c = between(normed(c, v["rmsnorm_gamma_cq"].double(), eps[0]))
    q = between(c @ v["weight_uq_qr"].double()).unflatten(-1, (heads, -1))
    query = between(torch.einsum("tnd,ndr->tnr", q[..., :nope], v["weight_uk"].double()))
    query_rope = between(turned(q[..., nope:], cos[:, None], sin[:, None]))
    row = between(x @ v["weight_dkv_kr"].double())
    latent = between(normed(row[:, :rank], v["rmsnorm_gamma_ckv"].double(), eps[1]))
    return query, query_rope, latent, between(turned(row[:, rank:], cos, sin))


def at_slot(cache: Tensor, slot: int, mode: str) -> Tensor:
    """A row of [blocks, 16, 1, width], which PA_NZ fills as [blocks, width / 16, 16, 16]."""
    if mode == "PA_BSND":
        return cache.flatten(0, 2)[slot]
    return cache.view(3, -1, 16, 16)[slot // 16, :, slot % 16].flatten()


@pytest.mark.parametrize("mode", ["PA_BSND", "PA_NZ"])
@pytest.mark.parametrize("lead", [(5,), (5, 1), (1, 5)])
@pytest.mark.parametrize("sizes", [SMALL, V3])
def test_it_is_its_definition_in_float64(
    sizes: tuple[int, ...], lead: tuple[int, ...], mode: str
) -> None:
    """Both epsilons, both ranks of token_x, both layouts of the caches, rows that are not written."""
    values = same_angles(given((5, *sizes[1:])))
    held = {n: values[n].clone() for n in ("kv_cache", "kr_cache")}
    shaped = {n: values[n].view(*lead, -1) for n in ("token_x", "rope_sin", "rope_cos")}
    shaped["cache_index"] = values["cache_index"].view(lead)
    epsilons = {"rmsnorm_epsilon_cq": 1e-2, "rmsnorm_epsilon_ckv": 3e-2}
    got = call(values, **shaped, **held, **epsilons, cache_mode=mode)
    query, query_rope, latent, k_rope = definition(values, (1e-2, 3e-2))
    close = {"rtol": 1e-12, "atol": 1e-12}
    heads = query.shape[1]
    torch.testing.assert_close(got[0], query.view(*lead, heads, -1), **close)
    torch.testing.assert_close(got[1], query_rope.view(*lead, heads, -1), **close)
    for name, new in (("kv_cache", latent), ("kr_cache", k_rope)):
        for row, slot in enumerate(SLOTS):
            if slot >= 0:
                torch.testing.assert_close(at_slot(held[name], slot, mode), new[row], **close)
        for slot in set(range(48)) - set(SLOTS):
            assert torch.equal(at_slot(held[name], slot, mode), at_slot(values[name], slot, mode))


def steps_apart(a: Tensor, b: Tensor) -> Tensor:
    """By how many bfloat16 steps two bfloat16 tensors differ."""

    def place(x: Tensor) -> Tensor:
        bits = x.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (place(a) - place(b)).abs()


def test_each_rounding_is_where_the_kernel_has_it() -> None:
    """A sum in float32 rounds the other way once in a while; a rounding that is left out, all the
    time."""
    values = same_angles(given((4, 64, 48, 4, 32, 128, 32), BF16))
    values["token_x"] = values["token_x"] * 3
    got = call(values)
    index = values["cache_index"]
    rows = [values[n].flatten(0, 2)[index.clamp(min=0)] for n in ("kv_cache", "kr_cache")]
    seen = index >= 0
    found = (got[0], got[1], rows[0][seen], rows[1][seen])

    def differing(between: Callable[..., Any]) -> list[float]:
        want = definition(values, between=between)
        pairs = zip(found, (*want[:2], want[2][seen], want[3][seen]), strict=True)
        return [float((steps_apart(a, b.bfloat16()) > 0).double().mean()) for a, b in pairs]

    right, wrong = differing(lambda x: x.bfloat16().double()), differing(lambda x: x)
    assert max(right[0:2]) < 0.03 and max(right[2:]) < 0.01, right
    assert min(wrong) > 0.1, wrong


# ---- int8 ----------------------------------------------------------------------------------------


def codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row: int8 and float32 scale, by numpy."""
    y = x.float().numpy()
    scale = np.abs(y).max(-1, keepdims=True) / np.float32(127)
    return torch.from_numpy(np.rint(y / scale).astype(np.int8)), torch.from_numpy(scale)


def int8_call(weights: int, cache: int = 0, dtype: torch.dtype = BF16) -> dict[str, Any]:
    """Matrices of int8 with a scale for each output; the tokens too with weights 2, the latent cache
    with cache 1."""
    values = same_angles(given((5, 64, 48, 4, 32, 128, 32), F32))
    quantised = {"weight_uq_qr": "dequant_scale_w_uq_qr"}
    if weights == 2:
        quantised |= {"weight_dq": "dequant_scale_w_dq", "weight_dkv_kr": "dequant_scale_w_dkv_kr"}
        values["token_x"], values["dequant_scale_x"] = codes(values["token_x"])
    for name, scale in quantised.items():
        by_output, factor = codes(values[name].t())
        values[name], values[scale] = by_output.t().contiguous(), factor.t().contiguous()
    values["smooth_scales_cq"] = torch.linspace(0.5, 1.5, 48)[None]
    if cache:
        values["kv_cache"] = torch.zeros_like(values["kv_cache"], dtype=I8)
        values["quant_scale_ckv"] = torch.tensor([8.0])
    for name in (*NAMES,):
        if values[name].dtype == F32:
            values[name] = values[name].to(dtype)
    modes = {"weight_quant_mode": weights, "kv_cache_quant_mode": cache, "query_quant_mode": cache}
    return values | modes


def golden(v: dict[str, Any]) -> tuple[Tensor, ...]:
    """The vendor's steps, sums as integers: (query, query_rope, its scale, latent, k_rope, codes of c,
    their scale), the first two rounded to bfloat16."""

    def product(x: Tensor, weight: str, of_x: Tensor | None, of_weight: str) -> Tensor:
        if x.dtype != I8:
            return (x.double() @ v[weight].double()).bfloat16().float()
        total = x.long() @ v[weight].long()
        assert of_x is not None
        return total.float() * of_x * v[of_weight]

    def norm(x: Tensor, gamma: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * v[gamma].float()

    def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    heads, nope, rank = v["weight_uk"].shape
    sin, cos, x = v["rope_sin"].float(), v["rope_cos"].float(), v["token_x"]
    of_x = v.get("dequant_scale_x")
    c = norm(product(x, "weight_dq", of_x, "dequant_scale_w_dq"), "rmsnorm_gamma_cq")
    c, of_c = codes(c * v["smooth_scales_cq"])
    q = product(c, "weight_uq_qr", of_c, "dequant_scale_w_uq_qr").unflatten(-1, (heads, -1))
    up = torch.einsum(
        "tnd,ndr->tnr", q[..., :nope].bfloat16().double(), v["weight_uk"].double()
    ).bfloat16()
    query_rope = rope(q[..., nope:], cos[:, None], sin[:, None]).bfloat16()
    row = product(x, "weight_dkv_kr", of_x, "dequant_scale_w_dkv_kr")
    latent, k_rope = norm(row[:, :rank], "rmsnorm_gamma_ckv"), rope(row[:, rank:], cos, sin)
    if "quant_scale_ckv" not in v:
        return up, query_rope, torch.zeros(1), latent.bfloat16(), k_rope.bfloat16(), c, of_c
    latent = (latent * v["quant_scale_ckv"]).round().clamp(-128, 127).to(I8)
    up, of_query = codes(up)
    query_rope = (query_rope.float() * v["quant_scale_ckv"] / of_query).bfloat16()
    return up, query_rope, of_query, latent, k_rope.bfloat16(), c, of_c


@pytest.mark.parametrize("modes", [(1, 0), (2, 0), (2, 1)])
def test_int8_is_the_vendors_golden(modes: tuple[int, int]) -> None:
    values = int8_call(*modes)
    want = golden(values)
    query, query_rope, of_query, c, of_c = call(values, query_norm_flag=True)
    near = {torch.int8: 1, torch.bfloat16: 2}  # float32 in another order: a tie falls the other way
    written = [values[n].flatten(0, 2)[SLOTS][[0, 2, 3, 4]] for n in ("kv_cache", "kr_cache")]
    kept = [x[[0, 2, 3, 4]] for x in want[3:5]]
    for a, b in zip((query, query_rope, c, *written), (*want[:2], want[5], *kept), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        off = (a.int() - b.int()).abs() if a.dtype == I8 else steps_apart(a, b)
        assert int(off.max()) <= near[a.dtype] and float((off > 0).double().mean()) < 0.02
    torch.testing.assert_close(of_query, want[2], rtol=1e-2, atol=0)
    torch.testing.assert_close(of_c, want[6], rtol=1e-6, atol=0)


def test_scores_of_an_int8_query_need_its_rope_as_it_comes() -> None:
    """(q8 c8 + q_rope' k_rope) s_q / quant_scale_ckv is the score: with query_rope taken as if it were
    not scaled, it is off by a factor in every score, and nothing says so."""
    values = int8_call(2, 1)
    query, query_rope, of_query, *_ = call(values)
    plain = golden({n: x for n, x in values.items() if n != "quant_scale_ckv"})
    back = of_query / values["quant_scale_ckv"]
    rope = query_rope.float() * back
    assert float((rope - plain[1].float()).abs().max() / plain[1].float().abs().max()) < 0.02
    assert float((query_rope.float() - plain[1].float()).abs().max()) > 1
    latent = golden(values)[3].float() / values["quant_scale_ckv"]
    scores = torch.einsum("tnr,sr->tns", query.float() * of_query, latent)
    exact = torch.einsum("tnr,sr->tns", plain[0].float(), plain[3].float())
    assert float((scores - exact).abs().max() / exact.abs().max()) < 0.1


# ---- its results and its other form --------------------------------------------------------------


def test_the_third_result_is_no_cache() -> None:
    """npu_mla_prolog_v2 has kv_cache there and kr_cache behind it: who takes them so has one number."""
    values = given()
    results = call(values)
    assert len(results) == 5 and [x.shape for x in results[2:]] == [(1,)] * 3
    assert results[2].dtype == F32 and all(not x.any() for x in results[2:])
    blocks = [results[n].view(1, -1, 1) for n in (2, 3)]
    query, query_rope = (x[:, None] for x in call(given(V3))[:2])
    with pytest.raises(ContractError):
        table, lengths = torch.zeros(3, 1, dtype=torch.int32), [1, 1, 1]
        ops.paged_attention(query, query_rope, *blocks, table, lengths, None, 1.0)


def test_query_norm_is_the_normalised_latent_of_the_queries() -> None:
    values = given()
    values |= {n: values[n][:, None] for n in ("token_x", "rope_sin", "rope_cos", "cache_index")}
    normalised = call(values, query_norm_flag=True)[3]
    want = normed(values["token_x"] @ values["weight_dq"], values["rmsnorm_gamma_cq"], 1e-5)
    torch.testing.assert_close(normalised, want, rtol=1e-12, atol=1e-12)


def test_both_scales_of_correction() -> None:
    values, other = same_angles(given()), same_angles(given())
    want, got = call(values), call(other, qc_qr_scale=3.0, kc_scale=5.0)
    for a, b in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(a, 3 * b)
    torch.testing.assert_close(other["kv_cache"][0, 0], 5 * values["kv_cache"][0, 0])
    assert torch.equal(other["kr_cache"], values["kr_cache"])


def test_the_functional_form_writes_copies() -> None:
    values, kept = given(), given()
    first = [kept[name] for name in NAMES]
    results = ops.npu_mla_prolog_v3_functional(*first, cache_index=kept["cache_index"])
    want = call(values)
    for a, b in zip(results, (*want, values["kv_cache"], values["kr_cache"]), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(kept[n], given()[n]) for n in ("kv_cache", "kr_cache"))


@pytest.mark.parametrize("slots", [SLOTS, [-1] * 5, [-1, 3, 2, 9, 8]])
def test_traced_it_is_the_same_and_has_one_shape(slots: list[int]) -> None:
    """fullgraph: a mask as index would be refused; catches padding that overwrites slot 0."""
    index = torch.tensor(slots)
    eager, traced = (given() | {"cache_index": index} for _ in range(2))
    names = [*NAMES, "cache_index"]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        *first, last = tensors
        result: tuple[Tensor, ...] = reference.npu_mla_prolog_v3(*first, cache_index=last)
        return result

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    for a, b in zip(
        run(*(eager[n] for n in names)), compiled(*(traced[n] for n in names)), strict=True
    ):
        torch.testing.assert_close(a, b)
    for name in ("kv_cache", "kr_cache"):
        torch.testing.assert_close(eager[name], traced[name])


# ---- refusals ------------------------------------------------------------------------------------


def i64(*values: int) -> Tensor:
    return torch.tensor(values)


def zeros(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"query_quant_mode": 1}, r"query_quant_mode is \(0, 0, 1\)"),
    ({"cache_mode": "PA"}, "cache_mode is 'PA'"),
    ({"weight_uk": zeros(4, 6, 32, dtype=torch.int32)}, "weight_uk is int32"),
    ({"rope_cos": zeros(5, 16, dtype=BF16)}, "rope_cos is bfloat16; it must be float32"),
    ({"weight_dq": zeros(10, 12).t()}, "weight_dq is a view with strides"),
    ({"token_x": zeros(12)}, r"token_x is \[12\]"),
    ({"weight_uk": zeros(4, 32)}, r"weight_uk is \[4, 32\]"),
    ({"weight_dq": zeros(13, 10)}, r"weight_dq is \[13, 10\]; it must be \[12, Hcq\]"),
    ({"weight_uq_qr": zeros(10, 87)}, r"weight_uq_qr is \[10, 87\]; it must be \[10, 88\]"),
    ({"kv_cache": zeros(3, 16, 1, 16)}, r"kv_cache is \[3, 16, 1, 16\]"),
    ({"kr_cache": zeros(16, 1, 16)}, r"kr_cache is \[16, 1, 16\]"),
    ({"cache_index": None}, "cache_index is None"),
    ({"cache_index": torch.zeros(5, dtype=torch.int32)}, "cache_index is int32"),
    ({"cache_index": i64(1, 2)}, r"cache_index is \[2\]"),
    ({"cache_index": i64(1, 2, 48, 3, 4)}, r"in 0\.\.47"),
]
WRONG_INT8: list[tuple[dict[str, Any], str]] = [
    ({"dequant_scale_x": None}, "dequant_scale_x is None; it must be given"),
    ({"dequant_scale_w_dq": zeros(1, 48, dtype=BF16)}, "dequant_scale_w_dq is bfloat16"),
    ({"dequant_scale_w_uq_qr": zeros(256)}, r"dequant_scale_w_uq_qr is \[256\]"),
]


@pytest.mark.parametrize("row", WRONG, ids=lambda row: row[1])
def test_one_wrong_argument(row: tuple[dict[str, Any], str]) -> None:
    with pytest.raises(ContractError, match=f"^npu_mla_prolog_v3: .*{row[1]}"):
        call(given(dtype=F32), **row[0])


@pytest.mark.parametrize("row", WRONG_INT8, ids=lambda row: row[1])
def test_one_wrong_scale(row: tuple[dict[str, Any], str]) -> None:
    with pytest.raises(ContractError, match=f"^npu_mla_prolog_v3: .*{row[1]}"):
        call(int8_call(2), **row[0])


@pytest.mark.parametrize("device", [True, False])
def test_a_card_has_bfloat16_only(device: bool) -> None:
    with device_rules() if device else nullcontext():
        if device:
            with pytest.raises(ContractError, match="weight_uk is float16; it must be bfloat16"):
                call(given(dtype=torch.float16))
        else:
            call(given(dtype=torch.float16))


# what a card refuses: what it is, and what it must be
SIZES = [
    ("token_x is 12 wide", "8192"),
    ("weight_dq is of 10 columns", "1536"),
    ("weight_uk is of 3 heads", "a power of two up to 128"),
    ("weight_uk is of 6 channels a head", "192"),
    ("weight_uk is for a latent of 32", "512"),
    ("rope_cos is 16 wide", "64"),
    ("kv_cache is in blocks of 8", "16..1024"),
]


@pytest.mark.parametrize("row", SIZES, ids=lambda row: row[0])
def test_sizes_that_a_card_refuses_are_warned_of(row: tuple[str, str]) -> None:
    """On a device only; and computed there."""
    values = given((5, 12, 10, 3, 6, 32, 16), BF16)
    values |= {n: values[n].view(6, 8, 1, -1) for n in ("kv_cache", "kr_cache")}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call(values)
        assert not told
        with device_rules():
            assert call(values)[0].isfinite().all()
    messages = [str(w.message) for w in told if w.category is CardLimit]
    assert len(messages) == len(SIZES)
    assert any(f"npu_mla_prolog_v3: {row[0]}" in m and row[1] in m for m in messages), messages


def test_the_published_sizes_are_no_warning() -> None:
    values = given((1, 7168, 1536, 1, 128, 512, 64), BF16)
    with warnings.catch_warnings(), device_rules():
        warnings.simplefilter("error")
        call(values)


@pytest.mark.parametrize(
    "changed",
    [
        {"cache_mode": "PA_BLK_NZ"},
        {"ckvkr_repo_mode": 1},
        {"k_nope_clip_alpha": zeros(1)},
        {"token_x_dtype": 1},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_forms_without_a_meaning_are_named(changed: dict[str, Any]) -> None:
    with pytest.raises(NotImplementedError, match=f"{next(iter(changed))} has no reference"):
        call(given(), **changed)
