"""The production forms of the fused attention: packed sequences, paged caches, int8. The oracle
computes one sequence after another in float64, from the formula alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port import ops
from dsv3_port.ops.numbers import unpack_int4

COMPRESSED = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
BF16, F16 = torch.bfloat16, torch.float16
SCALE = 0.09


def one(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, before: int | None = None
) -> tuple[Tensor, Tensor]:
    """q [S, N, D], k and v [L, KV, D], float64: (out [S, N, Dv], lse [S, N, 1]). causal: aligned at
    the last query and key; before: how many keys behind the diagonal are seen."""
    times = q.shape[1] // k.shape[1]
    k, v = (t.double().repeat_interleave(times, 1) for t in (k, v))
    score = torch.einsum("snd,lnd->nsl", q.double(), k) * SCALE
    corner = torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0]
    distance = torch.arange(k.shape[0]) - corner
    if causal:
        score = score.masked_fill(distance > 0, -torch.inf)
    if before is not None:
        score = score.masked_fill(distance < -before, -torch.inf)
    out = torch.einsum("nsl,lnd->snd", score.softmax(-1), v)
    return out, score.logsumexp(-1).T[..., None]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def v1(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    return ops.npu_fused_infer_attention_score(q, k, v, scale=SCALE, **given)


def v2(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    return ops.npu_fused_infer_attention_score_v2(q, k, v, softmax_scale=SCALE, **given)


def packed_case(sizes: list[tuple[int, int]], n: int, kv: int, d: int, dv: int) -> Any:
    """(q, k, v, ends of queries, ends of keys) in TND."""
    q_ends = torch.tensor([s for s, _ in sizes]).cumsum(0).tolist()
    kv_ends = torch.tensor([size for _, size in sizes]).cumsum(0).tolist()
    q, k = normal(q_ends[-1], n, d), normal(kv_ends[-1], kv, d, seed=1)
    return q, k, normal(kv_ends[-1], kv, dv, seed=2), q_ends, kv_ends


def each(q_ends: list[int], kv_ends: list[int]) -> list[tuple[slice, slice]]:
    rows = [slice(a, b) for a, b in pairwise([0, *q_ends])]
    return list(zip(rows, [slice(a, b) for a, b in pairwise([0, *kv_ends])], strict=True))


@pytest.mark.parametrize("layout", ["TND", "NTD_TND", "NTD"])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences(layout: str, causal: bool) -> None:
    q, k, v, q_ends, kv_ends = packed_case([(3, 3), (1, 5), (4, 9)], 4, 2, 192, 128)
    given: dict[str, Any] = {"atten_mask": COMPRESSED, "sparse_mode": 3} if causal else {}
    into = (lambda t: t.transpose(0, 1).contiguous()) if layout[0] == "N" else (lambda t: t)
    out, lse = v1(
        *(into(t) for t in (q, k, v)),
        num_heads=4,
        num_key_value_heads=2,
        input_layout=layout,
        actual_seq_lengths=q_ends,
        actual_seq_lengths_kv=kv_ends,
        softmax_lse_flag=True,
        **given,
    )
    out = out.transpose(0, 1) if layout == "NTD" else out
    for rows, keys in each(q_ends, kv_ends):
        wanted, wanted_lse = one(q[rows], k[keys], v[keys], causal)
        torch.testing.assert_close(out[rows], wanted.float(), rtol=2e-5, atol=2e-6)
        torch.testing.assert_close(lse[rows], wanted_lse.float(), rtol=2e-5, atol=2e-6)


def test_packed_sequences_do_not_reach_each_other() -> None:
    """A NaN in the third sequence stays there, though the first two are padded to its length."""
    q, k, v, q_ends, kv_ends = packed_case([(3, 3), (1, 2), (4, 9)], 2, 2, 128, 128)
    keys: dict[str, Any] = {"num_heads": 2, "input_layout": "TND"}
    keys |= {"actual_seq_lengths": q_ends, "actual_seq_lengths_kv": kv_ends}
    clean, _ = v1(q, k, v, **keys)
    for x in (k, v):
        x[5:] = torch.nan
    out, _ = v1(q, k, v, **keys)
    assert torch.equal(out[:4], clean[:4]) and bool(out[4:].isnan().all())


def test_a_band_of_packed_sequences_ends_at_their_last_keys() -> None:
    q, k, v, q_ends, kv_ends = packed_case([(2, 6), (3, 8)], 2, 2, 128, 128)
    out, _ = v2(
        *(q, k, v),
        num_query_heads=2,
        input_layout="TND",
        actual_seq_qlen=q_ends,
        actual_seq_kvlen=kv_ends,
        atten_mask=COMPRESSED,
        sparse_mode=4,
        pre_tokens=2,
        next_tokens=0,
    )
    for rows, keys in each(q_ends, kv_ends):
        wanted, _ = one(q[rows], k[keys], v[keys], causal=True, before=2)
        torch.testing.assert_close(out[rows], wanted.float(), rtol=2e-5, atol=2e-6)


def pages(rows: list[Tensor], table: list[list[int]], block: int, form: str) -> Tensor:
    """Rows [L, KV, D] of each sequence into a cache; what no sequence owns is NaN."""
    kv, d = rows[0].shape[1:]
    blocks = 1 + max(max(t) for t in table)
    cache = torch.full((blocks, block, kv, d), torch.nan, dtype=rows[0].dtype)
    for row, own in zip(rows, table, strict=True):
        for p in range(row.shape[0]):
            cache[own[p // block], p % block] = row[p]
    if form == "BnBsH":
        return cache.flatten(2)
    cache = cache.transpose(1, 2).contiguous()
    if form == "BnNBsD":
        return cache
    c = 32 if cache.dtype == torch.int8 else 16
    return cache.unflatten(-1, (-1, c)).permute(0, 1, 3, 2, 4).contiguous()  # NZ


TABLE = [[4, 1, 0], [2, 9, -7], [3, 5, 1]]  # the last entries of rows 1 and 2 are nobody's


@pytest.mark.parametrize("form", ["BnBsH", "BnNBsD", "NZ"])
@pytest.mark.parametrize("layout", ["TND_NTD", "BNSD", "BSND_NBSD", "BSH"])
def test_absorbed_decode_on_a_paged_cache(layout: str, form: str) -> None:
    """Two queries a sequence, as a verification of a drafted token; blocks that nobody owns are NaN."""
    if form == "BnNBsD" and layout.startswith(("BSH", "BSND")):
        with pytest.raises(RuntimeError, match="key is .* it must be"):
            self_attention(layout, form, [40, 17, 5])
        return
    lengths, n = [40, 17, 5], 4
    out, latents, ropes, q, q_rope = self_attention(layout, form, lengths)
    for b, length in enumerate(lengths):
        full = torch.cat((q[b], q_rope[b]), -1)
        keys = torch.cat((latents[b], ropes[b]), -1)
        wanted, _ = one(full, keys, latents[b], causal=True)
        got = {
            "TND_NTD": lambda b=b: out.transpose(0, 1)[2 * b : 2 * b + 2],
            "BNSD": lambda b=b: out[b].transpose(0, 1),
            "BSND_NBSD": lambda b=b: out[:, b].transpose(0, 1),
            "BSH": lambda b=b: out[b].unflatten(-1, (n, -1)),
        }[layout]()
        torch.testing.assert_close(got, wanted.float(), rtol=1e-4, atol=1e-5)
        assert latents[b].shape[0] == length


def self_attention(layout: str, form: str, lengths: list[int], version: Any = v2) -> Any:
    n, s = 4, 2
    latents = [normal(length, 1, 512, seed=b) / 4 for b, length in enumerate(lengths)]
    ropes = [normal(length, 1, 64, seed=9 + b) for b, length in enumerate(lengths)]
    q, q_rope = normal(3, s, n, 512, seed=20), normal(3, s, n, 64, seed=21)
    table = [row[: -(-size // 16)] for row, size in zip(TABLE, lengths, strict=True)]
    cache, rope_cache = pages(latents, table, 16, form), pages(ropes, table, 16, form)

    def into(x: Tensor) -> Tensor:
        if layout.startswith("TND"):
            return x.flatten(0, 1)
        if layout == "BNSD":
            return x.transpose(1, 2).contiguous()
        return x.flatten(2) if layout == "BSH" else x

    given = {"actual_seq_qlen": [2, 4, 6]} if layout.startswith("TND") else {}
    out, _ = version(
        into(q),
        cache,
        cache,
        query_rope=into(q_rope),
        key_rope=rope_cache,
        block_table=torch.tensor(TABLE, dtype=torch.int32),
        block_size=16,
        actual_seq_kvlen=lengths,
        num_query_heads=n,
        num_key_value_heads=1,
        input_layout=layout,
        atten_mask=COMPRESSED,
        sparse_mode=3,
        **given,
    )
    return out, latents, ropes, q, q_rope


def test_one_query_on_a_paged_cache_of_several_heads() -> None:
    lengths = [20, 33]
    k = [normal(size, 2, 32, seed=b) for b, size in enumerate(lengths)]
    v = [normal(size, 2, 32, seed=5 + b) for b, size in enumerate(lengths)]
    table = [[1, 0], [3, 2, 5]]
    q = normal(2, 8, 1, 32, seed=8)
    out, _ = v1(
        *(q, pages(k, table, 16, "BnNBsD"), pages(v, table, 16, "BnNBsD")),
        block_table=torch.tensor([[1, 0, 77], [3, 2, 5]], dtype=torch.int32),
        block_size=16,
        actual_seq_lengths_kv=lengths,
        num_heads=8,
        num_key_value_heads=2,
        input_layout="BNSD",
    )
    for b in range(2):
        wanted, _ = one(q[b].transpose(0, 1), k[b], v[b])
        torch.testing.assert_close(out[b].transpose(0, 1), wanted.float(), rtol=2e-5, atol=2e-6)


def test_a_block_that_the_cache_does_not_have() -> None:
    cache = torch.zeros(2, 2, 16, 32)
    with pytest.raises(RuntimeError, match=r"block_table is \[\[5\]\]; it must be blocks in 0..1"):
        v1(
            *(torch.zeros(1, 2, 1, 32), cache, cache),
            block_table=torch.tensor([[5]], dtype=torch.int32),
            block_size=16,
            actual_seq_lengths_kv=[3],
            num_heads=2,
            input_layout="BNSD",
        )


def scales_of(mode: int, kv: int, d: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(as the operator takes it, as [B, KV, L or 1, D or 1] for the oracle); B = 2."""
    shape = {0: (kv, d), 1: (1, 2, length), 2: (kv,), 3: (2, kv, length)}[mode]
    scale = (normal(*shape, seed=mode).abs() / 50 + 0.01).to(dtype)
    full = {
        0: lambda: scale.reshape(1, kv, 1, d),
        1: lambda: scale.reshape(2, 1, length, 1),
        2: lambda: scale.reshape(1, kv, 1, 1),
        3: lambda: scale[..., None],
    }[mode]()
    return scale, full.double()


def bytes_of(*shape: int, seed: int = 0, limit: int = 128) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit, shape, generator=generator).to(torch.int8)


@pytest.mark.parametrize(("key_mode", "value_mode"), [(0, 0), (1, 1), (2, 2), (3, 3), (0, 1)])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_caches_of_int8_and_int4(key_mode: int, value_mode: int, offset: bool, bits: int) -> None:
    kv, d, length = 2, 64, 10
    k, v = (bytes_of(2, kv, length, d, seed=s, limit=1 << bits - 1) for s in (0, 1))
    q = normal(2, 4, 1, d, dtype=F16)
    given: dict[str, Any] = {}
    real = []
    for name, x, mode in (("key", k, key_mode), ("value", v, value_mode)):
        dtype = torch.float32 if mode in (1, 3) else F16
        scale, full = scales_of(mode, kv, d, length, dtype)
        given |= {f"{name}_antiquant_scale": scale, f"{name}_antiquant_mode": mode}
        add = torch.zeros(())
        if offset:
            given[f"{name}_antiquant_offset"] = (scale * 100).round()
            add = (scale * 100).round().double().reshape(full.shape)
        real.append((x.double() + add) * full)
    if bits == 4:
        k, v = pack_int4(k), pack_int4(v)
    keys = {"num_heads": 4, "num_key_value_heads": kv, "input_layout": "BNSD"}
    out, _ = v1(q, k, v, **keys, **given)
    assert out.dtype == F16
    for b in range(2):
        wanted, _ = one(q[b].transpose(0, 1), *(t[b].transpose(0, 1) for t in real))
        torch.testing.assert_close(out[b].transpose(0, 1), wanted.to(F16), rtol=2e-3, atol=2e-3)


def pack_int4(x: Tensor) -> Tensor:
    """int8 [.., D] -> int32 [.., D/8], the first number in the lowest bits."""
    parts = x.to(torch.int64).unflatten(-1, (-1, 8)) & 15
    word = sum(parts[..., i] << (4 * i) for i in range(8))
    assert isinstance(word, Tensor)
    return torch.where(word >= 1 << 31, word - (1 << 32), word).to(torch.int32)


def test_int4_words() -> None:
    x = bytes_of(3, 16, limit=8)
    assert torch.equal(unpack_int4(pack_int4(x)), x)
    assert unpack_int4(torch.tensor([286331153], dtype=torch.int32)).tolist() == [1] * 8


def test_a_scale_for_both_in_one_tensor() -> None:
    """The older words give what the newer ones give."""
    q, k, v = normal(1, 2, 1, 32, dtype=F16), bytes_of(1, 2, 5, 32), bytes_of(1, 2, 5, 32, seed=1)
    scale = (normal(2, 2, 32).abs() / 50).to(F16)
    both, _ = v1(q, k, v, num_heads=2, input_layout="BNSD", antiquant_scale=scale)
    apart, _ = v2(
        *(q, k, v),
        num_query_heads=2,
        input_layout="BNSD",
        dequant_scale_key=scale[:1],
        dequant_scale_value=scale[1:],
    )
    assert torch.equal(both, apart) and bool(both.any())


@pytest.mark.parametrize("mode", [4, 5])
def test_scales_that_the_block_table_finds(mode: int) -> None:
    kv, d, block, lengths, table = 2, 32, 32, [40, 7], [[2, 0], [1]]
    k, v = ([bytes_of(n, kv, d, seed=s + n) for n in lengths] for s in (0, 50))
    heads = kv if mode == 5 else 1
    parts = [[normal(n, heads, 1, seed=s + n).abs() / 40 for n in lengths] for s in (0, 9)]
    q = normal(2, 4, 1, d, dtype=BF16)
    stored = [pages(s, table, block, "BnBsH") for s in parts]  # [blocks, block, heads]
    scales = [s[..., 0] if mode == 4 else s.transpose(1, 2).contiguous() for s in stored]

    def int8_pages(x: list[Tensor]) -> Tensor:
        return pages([t.float() for t in x], table, block, "BnBsH").nan_to_num(77).to(torch.int8)

    out, _ = v2(
        *(q, int8_pages(k), int8_pages(v)),
        num_query_heads=4,
        num_key_value_heads=kv,
        input_layout="BNSD",
        block_table=torch.tensor([[2, 0], [1, -1]], dtype=torch.int32),
        block_size=block,
        actual_seq_kvlen=lengths,
        dequant_scale_key=scales[0],
        dequant_scale_value=scales[1],
        key_quant_mode=mode,
        value_quant_mode=mode,
    )
    for b in range(2):
        real = [t[b].double() * s[b] for t, s in zip((k, v), parts, strict=True)]
        wanted, _ = one(q[b].transpose(0, 1), *real)
        torch.testing.assert_close(out[b].transpose(0, 1), wanted.to(BF16), rtol=2e-2, atol=2e-2)


def test_int8_products() -> None:
    """Prefill, all int8. The exponentials are rounded before they are divided by their sum: with many
    equal keys the normalised ones would all round to 0."""
    q, k, v = (bytes_of(1, 2, s, 32, seed=s, limit=20) for s in (3, 50, 51))
    v = v[:, :, :50].contiguous()
    one_, times, back = (torch.tensor([x]) for x in (0.002, 127.0, 0.01))
    keys = {"num_heads": 2, "input_layout": "BNSD"}
    scales = {"dequant_scale1": one_, "quant_scale1": times, "dequant_scale2": back}
    out, _ = v1(q, k, v, **keys, **scales)
    score = q.double() @ k.double().mT * 0.002 * SCALE
    weights = (score - score.amax(-1, keepdim=True)).exp()
    wanted = (weights * 127).round() @ v.double() * 0.01 / weights.sum(-1, keepdim=True)
    assert out.dtype == F16
    torch.testing.assert_close(out, wanted.to(F16), rtol=1e-3, atol=1e-3)
    small, _ = v1(q, k, v, **keys, **scales, quant_scale2=torch.tensor([30.0]))
    assert small.dtype == torch.int8
    assert ((small.double() - (wanted * 30).round().clamp(-128, 127)).abs() <= 1).all()
    assert (small.double() == (wanted * 30).round().clamp(-128, 127)).double().mean() > 0.99


def test_int8_absorbed_mla() -> None:
    """The C8 cache: one scale a row and head for the query, one for the cache; the rope part comes
    divided by both."""
    n, length, s = 4, 9, 2
    q8, c8 = bytes_of(2, s, n, 512), bytes_of(2, length, 1, 512, seed=1)
    rope_q, rope_k = normal(2, s, n, 64, dtype=BF16), normal(2, length, 1, 64, dtype=BF16, seed=1)
    of_query = normal(2, s, n, seed=3).abs() / 60 + 0.001
    of_cache = torch.tensor([0.004])
    out, _ = v2(
        *(q8, c8, c8),
        query_rope=rope_q,
        key_rope=rope_k,
        num_query_heads=n,
        num_key_value_heads=1,
        input_layout="BSND",
        dequant_scale_query=of_query,
        dequant_scale_key=of_cache,
        dequant_scale_value=of_cache,
        query_quant_mode=3,
    )
    assert out.dtype == BF16
    for b in range(2):
        full = torch.cat((q8[b].double(), rope_q[b].double()), -1) * of_query[b, ..., None] * 0.004
        keys = torch.cat((c8[b].double(), rope_k[b].double()), -1)
        wanted, _ = one(full, keys, c8[b].double() * 0.004)
        torch.testing.assert_close(out[b], wanted.to(BF16), rtol=2e-2, atol=2e-2)


def test_a_result_of_int8() -> None:
    q, k, v = (normal(2, 3, s, 16, dtype=BF16, seed=s) for s in (2, 6, 6))
    scale, offset = normal(3, 16, seed=7).abs() * 40, normal(3, 16, seed=8).round()
    keys = {"num_heads": 3, "input_layout": "BNSD_BSND"}
    out, _ = v1(q, k, v, **keys, quant_scale2=scale, quant_offset2=offset)
    wanted = torch.stack(
        [one(*(t[b].transpose(0, 1) for t in (q, k, v)))[0] * scale + offset for b in range(2)]
    )
    assert out.dtype == torch.int8 and out.shape == (2, 2, 3, 16)
    assert ((out.double() - wanted.round().clamp(-128, 127)).abs() <= 1).all()
    assert (out.double() == wanted.round().clamp(-128, 127)).double().mean() > 0.97


def test_a_sink_takes_weight_and_gives_no_value() -> None:
    q, k, v, q_ends, kv_ends = packed_case([(2, 3), (1, 4)], 2, 2, 128, 128)
    sink = torch.tensor([0.5, -1.0], dtype=BF16)
    keys: dict[str, Any] = {"num_query_heads": 2, "input_layout": "TND"}
    keys |= {"actual_seq_qlen": q_ends, "actual_seq_kvlen": kv_ends, "return_softmax_lse": True}
    out, lse = v2(q, k, v, learnable_sink=sink, **keys)
    plain, plain_lse = v2(q, k, v, **keys)
    kept = 1 / (1 + (sink.float()[None, :, None] - plain_lse).exp())
    torch.testing.assert_close(out, plain * kept)
    torch.testing.assert_close(lse, plain_lse - kept.log())


def test_a_position_bias_is_added_to_the_scaled_scores() -> None:
    q, k, v = (normal(1, 2, s, 16, seed=s) for s in (3, 5, 6))
    v = v[:, :, :5].contiguous()
    bias = normal(1, 2, 3, 5, seed=9)
    out, _ = v1(q, k, v, num_heads=2, input_layout="BNSD", pse_shift=bias)
    score = q.double() @ k.double().mT * SCALE + bias
    torch.testing.assert_close(out, (score.softmax(-1) @ v.double()).float())


ZERO = torch.zeros(2, 2, 1, 64, dtype=BF16)
STORED = torch.zeros(2, 2, 5, 64, dtype=torch.int8)
TND = {"num_heads": 2, "input_layout": "TND"}
ROWS = torch.zeros(5, 2, 128)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: v1(ROWS, ROWS, ROWS, **TND), "actual_seq_lengths is None"),
        (lambda: v1(ROWS, ROWS, ROWS, **TND, actual_seq_lengths=[3, 2]), "ascending in 0..5"),
        (lambda: v1(ROWS, ROWS, ROWS, **TND, actual_seq_lengths=[6]), "ascending in 0..5"),
        (
            lambda: v1(
                ROWS, ROWS, ROWS, **TND, actual_seq_lengths=[5], actual_seq_lengths_kv=[2, 5]
            ),
            "as many as actual_seq_lengths has, 1",
        ),
        (
            lambda: v1(
                *(ROWS[..., :32] for _ in range(3)),
                **TND,
                actual_seq_lengths=[5],
                actual_seq_lengths_kv=[5],
            ),
            "of head sizes",
        ),
        (
            lambda: v1(
                *(ROWS for _ in range(3)),
                **TND,
                actual_seq_lengths=[5],
                actual_seq_lengths_kv=[5],
                sparse_mode=1,
                atten_mask=torch.zeros(5, 5, dtype=torch.bool),
            ),
            "sparse_mode is 1",
        ),
        (
            lambda: v1(ZERO, STORED, STORED, num_heads=2, input_layout="BNSD"),
            "key_antiquant_scale is None; it must be given with a key of",
        ),
        (
            lambda: v1(
                *(ZERO, STORED, STORED),
                num_heads=2,
                input_layout="BNSD",
                key_antiquant_scale=torch.ones(2, 64),
                value_antiquant_scale=torch.ones(2, 64),
            ),
            "key_antiquant_scale is float32; it must be bfloat16",
        ),
        (
            lambda: v1(
                *(ZERO, STORED, STORED),
                num_heads=2,
                input_layout="BNSD",
                key_antiquant_scale=torch.ones(3, 64, dtype=BF16),
                value_antiquant_scale=torch.ones(2, 64, dtype=BF16),
            ),
            r"key_antiquant_scale is \[3, 64\]",
        ),
        (
            lambda: v1(
                *(ZERO, STORED, STORED),
                num_heads=2,
                input_layout="BNSD",
                key_antiquant_scale=torch.ones(2, 64, dtype=BF16),
                value_antiquant_scale=torch.ones(2, 64, dtype=BF16),
                key_antiquant_mode=2,
            ),
            r"key_antiquant_mode is \(2, 0\)",
        ),
        (
            lambda: v1(*(STORED for _ in range(3)), num_heads=2, input_layout="BNSD"),
            "query is int8",
        ),
        (
            lambda: v1(
                *(STORED for _ in range(3)),
                num_heads=2,
                input_layout="BNSD",
                dequant_scale1=torch.ones(1),
            ),
            "dequant_scale1, quant_scale1, dequant_scale2 is given in part",
        ),
        (
            lambda: v1(
                *(torch.zeros(2, 2, 3, 64) for _ in range(3)),
                num_heads=2,
                input_layout="BNSD",
                quant_scale2=torch.ones(5),
            ),
            "1 or 128",
        ),
        (
            lambda: v2(
                *(torch.zeros(2, 2, 3, 64) for _ in range(3)),
                num_query_heads=2,
                input_layout="BNSD",
                learnable_sink=torch.ones(2, dtype=BF16),
            ),
            "learnable_sink",
        ),
    ],
)
def test_refusals(call: Any, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        call()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"block_size": 8}, "block_size is 8; it must be a multiple of 16"),
        ({"block_size": 32}, "block = 32"),
        ({"block_table": torch.zeros(3, 2, dtype=torch.int32)}, "block_table is"),
        ({"block_table": torch.zeros(2, 2)}, "block_table is float32; it must be int32"),
        ({"actual_seq_lengths_kv": [33, 3]}, "lengths in 0..32"),
        ({"actual_seq_lengths_kv": None}, "actual_seq_lengths_kv is None"),
        ({"num_key_value_heads": 1}, "KV = 1"),
    ],
)
def test_refusals_of_pages(changed: dict[str, Any], words: str) -> None:
    cache = torch.zeros(4, 2, 16, 32)
    given: dict[str, Any] = {
        "block_table": torch.zeros(2, 2, dtype=torch.int32),
        "block_size": 16,
        "actual_seq_lengths_kv": [3, 20],
        "num_heads": 2,
        "input_layout": "BNSD",
    }
    assert v1(torch.zeros(2, 2, 1, 32), cache, cache, **given)[0].shape == (2, 2, 1, 32)
    with pytest.raises(RuntimeError, match=words):
        v1(torch.zeros(2, 2, 1, 32), cache, cache, **(given | changed))
