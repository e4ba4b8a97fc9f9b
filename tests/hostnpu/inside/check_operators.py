"""npu:: operators through the real torch_npu: values are the reference's, shapes and dtypes are the
real meta functions', wrong arguments are refused on this device too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch_npu
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from dsv3_port import ops
from dsv3_port.errors import PortError
from dsv3_port.hostnpu import kernels
from tests.ops import test_contracts as contracts_on_cpu
from tests.ops.meanings import reference

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def f(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def i32(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def call(name: str, *args: Any, **kwargs: Any) -> Call:
    return name, args, kwargs


def bytes_of(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=generator).to(torch.int8)


CHOSEN = i32([[2, 0], [0, 3], [2, 1]])
ROW_IDX = i32([[0, 3], [1, 4], [2, 5]])
BACK = i32([3, 1, 4, 0, 5, 2])
SPLIT = {"split_item": 3, "group_type": 0}
CASES: dict[str, Callable[[torch.dtype], Call]] = {
    "rms_norm": lambda t: call("npu_rms_norm", f(2, 3, 8, dtype=t), f(8, dtype=t), 1e-6),
    "add_rms_norm": lambda t: call(
        "npu_add_rms_norm", f(3, 8, dtype=t), f(3, 8, seed=1, dtype=t), f(8, dtype=t)
    ),
    "add_rms_norm_cast": lambda t: call(
        "npu_add_rms_norm_cast", f(3, 8, dtype=t), f(3, 8, seed=1, dtype=t), f(8, dtype=t)
    ),
    "swiglu": lambda t: call("npu_swiglu", f(2, 3, 8, dtype=t)),
    "rotary_mul": lambda t: call(
        "npu_rotary_mul",
        f(2, 3, 4, 8, dtype=t),
        f(2, 1, 4, 8, dtype=t),
        f(2, 1, 4, 8, seed=1, dtype=t),
    ),
    "interleave_rope": lambda t: call(
        "npu_interleave_rope",
        f(2, 3, 4, 64, dtype=t),
        f(2, 1, 4, 64, dtype=t),
        f(2, 1, 4, 64, seed=1, dtype=t),
    ),
    "kv_rmsnorm_rope_cache": lambda t: call(
        "npu_kv_rmsnorm_rope_cache",
        f(2, 1, 1, 576, dtype=t),
        f(512, dtype=t),
        f(2, 1, 1, 64, dtype=t),
        f(2, 1, 1, 64, seed=1, dtype=t),
        torch.tensor([[3], [0]]),
        torch.zeros(2, 1, 4, 64, dtype=t),
        torch.zeros(2, 1, 4, 512, dtype=t),
        epsilon=1e-6,
    ),
    "scatter_update": lambda t: call(
        "scatter_update",
        f(2, 1, 5, 3, dtype=t),
        torch.tensor([1, 4]),
        f(2, 1, 1, 3, seed=1, dtype=t),
        -2,
    ),
    "scatter_update_": lambda t: call(
        "scatter_update_",
        f(2, 1, 5, 3, dtype=t),
        torch.tensor([1, 3]),
        f(2, 1, 2, 3, seed=1, dtype=t),
        -2,
    ),
    "scatter_nd_update": lambda t: call(
        "npu_scatter_nd_update",
        f(4, 3, dtype=t),
        torch.tensor([[2], [0]]),
        f(2, 3, seed=1, dtype=t),
    ),
    "scatter_nd_update_": lambda t: call(
        "npu_scatter_nd_update_",
        f(4, 3, dtype=t),
        torch.tensor([[2], [0]]),
        f(2, 3, seed=1, dtype=t),
    ),
    "gating": lambda t: call(
        "npu_moe_gating_top_k",
        f(5, 16, dtype=t),
        4,
        bias=f(16, seed=1, dtype=t),
        k_group=2,
        group_count=4,
        group_select_mode=1,
        norm_type=1,
        routed_scaling_factor=2.5,
        out_flag=True,
    ),
    "gating without scores": lambda t: call(
        "npu_moe_gating_top_k", f(5, 16, dtype=t), 4, norm_type=1
    ),
    "init_routing": lambda t: call("npu_moe_init_routing", f(3, 4, dtype=t), ROW_IDX, CHOSEN, 3),
    "init_routing cut": lambda t: call(
        "npu_moe_init_routing", f(3, 4, dtype=t), ROW_IDX, CHOSEN, 2
    ),
    "init_routing_v2": lambda t: call(
        "npu_moe_init_routing_v2",
        f(3, 4, dtype=t),
        CHOSEN,
        active_num=6,
        expert_num=4,
        expert_tokens_num_type=1,
        expert_tokens_num_flag=True,
        active_expert_range=[0, 4],
        row_idx_type=0,
    ),
    "compute_expert_tokens": lambda t: call(
        "npu_moe_compute_expert_tokens", i32([0, 0, 1, 3, 3, 3]), 5
    ),
    "finalize_routing": lambda t: call(
        "npu_moe_finalize_routing",
        f(6, 4, dtype=t),
        f(3, 4, dtype=t),
        None,
        None,
        f(3, 2, dtype=t),
        BACK,
        None,
    ),
    "finalize_routing with bias": lambda t: call(
        "npu_moe_finalize_routing",
        f(6, 4, dtype=t),
        f(3, 4, dtype=t),
        f(3, 4, seed=2, dtype=t),
        f(4, 4, dtype=t),
        f(3, 2, dtype=t),
        BACK,
        CHOSEN,
    ),
    "grouped_matmul": lambda t: call(
        "npu_grouped_matmul",
        [f(6, 4, dtype=t)],
        [f(3, 4, 5, dtype=t)],
        group_list=torch.tensor([2, 2, 6]),
        **SPLIT,
    ),
    "grouped_matmul counts": lambda t: call(
        "npu_grouped_matmul",
        [f(6, 4, dtype=t)],
        [f(3, 5, 4, dtype=t).mT],
        group_list=torch.tensor([2, 0, 4]),
        group_list_type=1,
        **SPLIT,
    ),
    "attention BNSD": lambda t: call(
        "npu_fused_infer_attention_score",
        f(2, 4, 1, 16, dtype=t),
        f(2, 2, 6, 16, dtype=t),
        f(2, 2, 6, 16, seed=1, dtype=t),
        num_heads=4,
        num_key_value_heads=2,
        scale=0.25,
        input_layout="BNSD",
        actual_seq_lengths_kv=[3, 6],
    ),
    "attention BSH": lambda t: call(
        "npu_fused_infer_attention_score",
        f(2, 3, 32, dtype=t),
        f(2, 5, 32, dtype=t),
        f(2, 5, 32, seed=1, dtype=t),
        num_heads=4,
        scale=0.3,
        input_layout="BSH",
        atten_mask=f(2, 1, 3, 5) > 0.5,
    ),
    "attention MLA": lambda t: call(
        "npu_fused_infer_attention_score",
        f(2, 4, 1, 512, dtype=t),
        f(2, 1, 6, 512, dtype=t),
        f(2, 1, 6, 512, dtype=t),
        num_heads=4,
        num_key_value_heads=1,
        scale=0.1,
        input_layout="BNSD",
        query_rope=f(2, 4, 1, 64, dtype=t),
        key_rope=f(2, 1, 6, 64, dtype=t),
        actual_seq_lengths_kv=[2, 5],
    ),
    "attention BSND": lambda t: call(
        "npu_fused_infer_attention_score",
        f(2, 3, 4, 16, dtype=t),
        f(2, 5, 4, 16, dtype=t),
        f(2, 5, 4, 16, seed=1, dtype=t),
        num_heads=4,
        scale=0.2,
        input_layout="BSND",
    ),
    "attention NBSD": lambda t: call(
        "npu_fused_infer_attention_score",
        f(2, 4, 3, 16, dtype=t),
        f(2, 4, 5, 16, dtype=t),
        f(2, 4, 5, 16, seed=1, dtype=t),
        num_heads=4,
        scale=0.2,
        input_layout="BNSD_NBSD",
    ),
    "attention TND, paged": lambda t: call(
        "npu_fused_infer_attention_score_v2",
        f(5, 4, 512, dtype=t),
        f(6, 16, 512, seed=1, dtype=t),
        f(6, 16, 512, seed=1, dtype=t),
        query_rope=f(5, 4, 64, dtype=t),
        key_rope=f(6, 16, 64, seed=2, dtype=t),
        num_query_heads=4,
        num_key_value_heads=1,
        softmax_scale=0.1,
        input_layout="TND_NTD",
        actual_seq_qlen=[2, 3, 5],
        actual_seq_kvlen=[20, 3, 31],
        block_table=torch.tensor([[5, 0], [1, 99], [3, 2]], dtype=torch.int32),
        block_size=16,
        atten_mask=torch.ones(2048, 2048, dtype=torch.bool).triu(1),
        sparse_mode=3,
        return_softmax_lse=True,
    ),
    "attention int8 cache": lambda t: call(
        "npu_fused_infer_attention_score_v2",
        f(2, 4, 1, 64, dtype=t),
        (f(2, 2, 6, 64) * 40).to(torch.int8),
        (f(2, 2, 6, 64, seed=1) * 40).to(torch.int8),
        num_query_heads=4,
        num_key_value_heads=2,
        softmax_scale=0.1,
        input_layout="BNSD",
        dequant_scale_key=f(2, 64, seed=2, dtype=t),
        dequant_scale_value=f(2, 64, seed=3, dtype=t),
    ),
    "attention lse": lambda t: call(
        "npu_fused_infer_attention_score",
        f(2, 4, 3, 16, dtype=t),
        f(2, 4, 5, 16, dtype=t),
        f(2, 4, 5, 16, seed=1, dtype=t),
        num_heads=4,
        scale=0.2,
        input_layout="BNSD",
        softmax_lse_flag=True,
    ),
    "dynamic_quant": lambda t: call("npu_dynamic_quant", f(3, 16, dtype=t)),
    "dynamic_quant int4": lambda t: call("npu_dynamic_quant", f(3, 16, dtype=t), dst_type=16),
    "quantize": lambda t: call(
        "npu_quantize", f(3, 16, dtype=t), torch.full((16,), 0.1), i32([1] * 16), 13, 1
    ),
    "trans_quant_param": lambda t: call("npu_trans_quant_param", f(16)),
    "quant_matmul": lambda t: call(
        "npu_quant_matmul",
        bytes_of(3, 16),
        bytes_of(8, 16, seed=1).t(),
        f(8),
        pertoken_scale=f(3),
        output_dtype=15,
    ),
    "quant_matmul int8": lambda t: call(
        "npu_quant_matmul", bytes_of(3, 16), bytes_of(16, 8, seed=1), f(8)
    ),
    "dequant_swiglu_quant": lambda t: call(
        "npu_dequant_swiglu_quant",
        bytes_of(5, 128).int(),
        weight_scale=f(2, 128).abs(),
        activation_scale=f(5, 1).abs(),
        group_index=torch.tensor([3, 2]),
        activate_left=True,
        quant_mode=1,
    ),
    "add_rms_norm_dynamic_quant": lambda t: call(
        "npu_add_rms_norm_dynamic_quant",
        *(f(3, 16, seed=n, dtype=t) for n in (0, 1)),
        f(16, dtype=t),
        smooth_scale1=f(16, seed=2, dtype=t),
        smooth_scale2=f(16, seed=3, dtype=t),
        output_mask=[True, True],
    ),
    "apply_rotary_pos_emb": lambda t: call(
        "npu_apply_rotary_pos_emb",
        *(f(5, n, 64, dtype=t) for n in (4, 2, 1, 1)),
        "TND",
    ),
    "scatter_pa_kv_cache_functional": lambda t: call(
        "npu_scatter_pa_kv_cache_functional",
        *(f(2, 2, 16, dtype=t), f(2, 2, 16, seed=1, dtype=t)),
        *(f(3, 2, 4, 16, dtype=t), f(3, 2, 4, 16, seed=1, dtype=t)),
        i32([5, -1]),
    ),
    "moe_gating_top_k_softmax": lambda t: call(
        "npu_moe_gating_top_k_softmax", f(4, 6, dtype=t), torch.arange(4) == 2, 2
    ),
    "moe_token_permute": lambda t: call("npu_moe_token_permute", f(3, 8, dtype=t), CHOSEN),
    "moe_token_unpermute": lambda t: call(
        "npu_moe_token_unpermute", f(6, 8, dtype=t), BACK, f(3, 2, dtype=t)
    ),
    "silu": lambda t: call("npu_silu", f(3, 8, dtype=t)),
    "transpose_batchmatmul": lambda t: call(
        "npu_transpose_batchmatmul", f(3, 4, 8, dtype=t), f(4, 8, 16, dtype=t), perm_x1=[1, 0, 2]
    ),
}
SIXTEEN_BITS = {  # the device takes these only
    *("interleave_rope", "kv_rmsnorm_rope_cache", "dynamic_quant", "dynamic_quant int4"),
    "add_rms_norm_dynamic_quant",
}


def moved(tree: Any, device: str) -> Any:
    return tree_map_only(
        Tensor, lambda t: t.to(device) if t.is_contiguous() else t.mT.to(device).mT, tree
    )


def tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_value_and_shape(name: str, dtype: torch.dtype) -> None:
    operator, args, kwargs = CASES[name](dtype)
    if dtype == F32 and name in SIXTEEN_BITS:
        pytest.skip("16-bit types only")
    npu_args, npu_kwargs = moved((args, kwargs), "npu")
    shapes = getattr(torch_npu, operator)(
        *moved(args, "meta"), **moved(kwargs, "meta")
    )  # before an in-place change
    before = kernels.calls["kernel"]
    got = getattr(torch_npu, operator)(*npu_args, **npu_kwargs)
    assert kernels.calls["kernel"] > before
    wanted = getattr(reference, operator)(*args, **kwargs)
    assert len(tensors(got)) == len(tensors(wanted)) == len(tensors(shapes)) > 0
    for a, b, c in zip(tensors(got), tensors(wanted), tensors(shapes), strict=True):
        assert (
            a.device.type == "npu"
            and a.shape == b.shape == c.shape
            and a.dtype == b.dtype == c.dtype
        )
        assert torch.equal(a.cpu().nan_to_num(7.0), b.nan_to_num(7.0))
    for a, b in zip(
        tensors(npu_args), tensors(args), strict=True
    ):  # caches written, inputs left alone
        assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize("name", CASES)
def test_dispatch_gives_the_same(name: str) -> None:
    operator, args, kwargs = CASES[name](BF16)
    npu_args, npu_kwargs = moved((args, kwargs), "npu")
    got, wanted = (
        getattr(ops, operator)(*npu_args, **npu_kwargs),
        getattr(ops, operator)(*args, **kwargs),
    )
    for a, b in zip(tensors(got), tensors(wanted), strict=True):
        assert torch.equal(a.cpu().nan_to_num(7.0), b.nan_to_num(7.0))


def test_device_rules_hold_on_the_stand_in() -> None:
    """The same call passes off the device, where tests measure with float64."""
    x = torch.ones(2, 8, dtype=torch.float64)
    assert reference.npu_rms_norm(x, x[0])[0].dtype == torch.float64
    with pytest.raises(RuntimeError, match="x is float64; it must be float16, bfloat16 or float32"):
        torch_npu.npu_rms_norm(x.npu(), x[0].npu())


def test_paged_writes_on_the_device() -> None:
    rows, slots = f(3, 2, 16, dtype=BF16), i32([6, -1, 0])
    caches = [torch.zeros(2, 2, 4, 16, dtype=BF16) for _ in range(2)]
    on_npu = [c.npu() for c in caches]
    torch_npu.npu_scatter_pa_kv_cache(rows.npu(), rows.npu(), *on_npu, slots.npu())
    reference.npu_scatter_pa_kv_cache(rows, rows, *caches, slots)
    for a, b in zip(on_npu, caches, strict=True):
        assert torch.equal(a.cpu(), b) and b.any()


def test_in_place_operators_return_their_input() -> None:
    cache = torch.zeros(2, 1, 5, 3, device="npu")
    out = torch_npu.scatter_update_(
        cache, torch.tensor([1, 4], device="npu"), torch.ones(2, 1, 1, 3, device="npu"), -2
    )
    assert out is cache and cache.sum().item() == 6
    x = torch.ones(3, device="npu")
    assert torch_npu.npu_silu_(x) is x and x.sum().item() < 3


@pytest.mark.parametrize("case", ["attention BNSD", "attention TND, paged"])
def test_attention_into_given_outputs(case: str) -> None:
    name, args, kwargs = CASES[case](F16)
    wanted, lse = getattr(reference, name)(*args, **kwargs)
    args, kwargs = moved((args, kwargs), "npu")
    out = [torch.empty(w.shape, dtype=w.dtype, device="npu") for w in (wanted, lse)]
    space = getattr(torch.ops.npu, f"_{name}_get_max_workspace")(*args, **kwargs)
    getattr(torch.ops.npu, name).out(*args, workspace=space, out=out, **kwargs)
    assert torch.equal(out[0].cpu(), wanted) and torch.equal(out[1].cpu(), lse)


def test_grouped_matmul_with_numbers() -> None:
    x, weight = f(6, 4), f(3, 4, 5)
    (got,) = torch_npu.npu_grouped_matmul([x.npu()], [weight.npu()], group_list=[2, 2, 6], **SPLIT)
    (wanted,) = reference.npu_grouped_matmul(
        [x], [weight], group_list=torch.tensor([2, 2, 6]), **SPLIT
    )
    assert torch.equal(got.cpu(), wanted)


@pytest.fixture
def internal_formats() -> Iterator[None]:
    torch.npu.config.allow_internal_format = True
    yield
    torch.npu.config.allow_internal_format = False


def test_a_storage_format_changes_no_value(internal_formats: None) -> None:
    weight = f(32, 48, dtype=F16)
    cast = ops.npu_format_cast(weight.npu(), 29)
    assert torch_npu.get_npu_format(cast) == 29 and torch.equal(cast.cpu(), weight)
    assert torch.equal((f(2, 32, dtype=F16).npu() @ cast).cpu(), f(2, 32, dtype=F16) @ weight)
    plain = ops.npu_format_cast(cast, 2)
    assert torch_npu.get_npu_format(plain) == 2 and torch.equal(plain.cpu(), weight)


def test_format_cast_returns_the_tensor_that_the_device_returns(internal_formats: None) -> None:
    """Between base formats only the input's tag changes; from an internal one the rank decides."""
    x = f(2, 2, 4, 4, dtype=F16).npu()
    assert torch_npu.npu_format_cast(x, torch_npu.get_npu_format(x)) is x
    assert torch_npu.npu_format_cast(x, 2) is x and torch_npu.get_npu_format(x) == 2
    nz = torch_npu.npu_format_cast(x, 29)
    assert nz is not x and torch_npu.get_npu_format(nz) == 29 and torch.equal(nz, x)
    assert torch_npu.get_npu_format(torch_npu.npu_format_cast(nz, 2)) == 0  # 4-D: NCHW
    assert torch_npu.get_npu_format(torch_npu.npu_format_cast(x, nz)) == 29
    assert torch_npu.npu_format_cast_(x, 29) is x and torch_npu.get_npu_format(x) == 29
    assert torch.equal(torch_npu.npu_format_cast(nz[1], 0).contiguous(), nz[1].contiguous())
    with pytest.raises(RuntimeError, match="customize_dtype is not supported"):
        torch_npu.npu_format_cast(f(32, 32, dtype=F16).npu(), 29, customize_dtype=1)


def test_without_leave_an_internal_format_is_a_base_format() -> None:
    """torch_npu's default: it warns and creates a base format, so weights stay as they are."""
    assert torch_npu.get_npu_format(torch_npu.npu_format_cast(f(32, 32).half().npu(), 29)) in (0, 2)


def test_prefetch_returns_nothing() -> None:
    x = f(4, 4).npu()
    assert ops.npu_prefetch(x, None, 16) is None


@pytest.mark.parametrize("name", contracts_on_cpu.REFUSED)
def test_wrong_arguments_are_refused_here_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same calls as on the CPU, with npu tensors: what only the values show is found by the
    host kernel."""
    usual = (
        F16 if name in ("rope cos heads", "rope view") else F32
    )  # on npu, interleave_rope takes 16 bits only
    monkeypatch.setattr(
        contracts_on_cpu, "f", lambda *s, dtype=usual: torch.zeros(s, dtype=dtype).npu()
    )
    monkeypatch.setattr(
        contracts_on_cpu, "ints", lambda v, dtype=torch.int32: torch.tensor(v, dtype=dtype).npu()
    )
    run, kind, message = contracts_on_cpu.REFUSED[name]
    with pytest.raises((kind, PortError), match=message):
        run()


def test_activations_of_the_grouped_matmul_need_int8() -> None:
    _, args, kwargs = CASES["grouped_matmul"](F16)
    with pytest.raises(ValueError, match="act_type is 5; it must be 0 with torch.float16"):
        ops.npu_grouped_matmul(*moved(args, "npu"), act_type=5, **moved(kwargs, "npu"))


def test_past_our_dispatch_the_contracts_hold() -> None:
    x = f(3, 4).npu()
    with pytest.raises(TypeError, match="row_idx is int64; it must be int32"):
        torch_npu.npu_moe_init_routing(x, ROW_IDX.long().npu(), CHOSEN.npu(), 3)


@pytest.mark.parametrize(
    "name", ["npu_linear", "npu_mla_prolog_v2", "npu_moe_re_routing", "npu_geglu"]
)
def test_what_nobody_implemented_says_its_name(name: str) -> None:
    op = getattr(torch.ops.npu, name).default
    values = [
        f(2, 4, dtype=F16).npu()
        if str(a.type) == "Tensor"
        else 1
        if str(a.type) == "int"
        else "BSH"
        for a in op._schema.arguments
        if not a.has_default_value()
    ]
    with pytest.raises(NotImplementedError, match=f"npu::{name}: the host stand-in has no kernel"):
        op(*values)


def test_cpu_tensors_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="CPU"):
        torch_npu.npu_swiglu(f(2, 8))
