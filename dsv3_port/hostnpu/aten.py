"""aten operators that the device has and the CPU has not, or not for these dtypes.

Everything else of aten is the CPU's own operator (kernels.py), with the general remedies of
fallback.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import autograd, batch_norm, fallback
from .kernels import Kernel
from .registry import full_name, names, register, schema_of

aten = torch.ops.aten
# Allocation, views and storage stay torch_npu's own, and out of every capture.
NATIVE = frozenset(
    """
_copy_from_and_resize _has_compatible_shallow_copy_type _lazy_clone _local_scalar_dense _pin_memory _reshape_alias
_to_copy alias as_strided as_strided_ contiguous detach empty empty_like empty_strided empty_with_format is_pinned
is_set_to lift_fresh new_empty new_empty_strided pin_memory record_stream resize_ resize_as_ select set_ slice unfold
unsafe_empty_with_format view view_as_complex view_as_real
""".split()
)


def histc(self: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """Integers too: they are exact in float64 up to 2^53."""
    if self.is_floating_point():
        return aten.histc(self, bins, min, max)
    return aten.histc(self.double(), bins, min, max).to(self.dtype)


def histc_out(
    self: Tensor, bins: int = 100, min: float = 0, max: float = 0, *, out: Tensor
) -> Tensor:
    found = histc(self, bins, min, max)
    return out.resize_(found.shape).copy_(found) if out.shape != found.shape else out.copy_(found)


def softmax(self: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """half_to_float: float16 in, float32 out (softmax(x, dtype=float32))."""
    return aten._softmax(self.float() if half_to_float else self, dim, False)


def log_softmax(self: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return aten._log_softmax(self.float() if half_to_float else self, dim, False)


def softmax_backward(
    name: str,
) -> Callable[[Tensor, Tensor, int, torch.dtype], Tensor]:
    """The gradient may be float32 while the input was float16 (half_to_float)."""

    def call(grad: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
        found: Tensor = getattr(aten, name)(grad, output, dim, grad.dtype)
        return found.to(input_dtype)

    return call


def foreach_steps(op: Any) -> Callable[..., Any]:
    """_foreach_addcdiv and _foreach_addcmul: self + tensor1 / tensor2 * value. float16 is rounded at every
    step, value too; bfloat16 once."""
    run = fallback.wide(op, (torch.bfloat16,))
    divide, in_place = "addcdiv" in op._schema.name, op._schema.name.endswith("_")

    def call(self: list[Tensor], first: list[Tensor], second: list[Tensor], value: Any = 1) -> Any:
        if not self or self[0].dtype != torch.float16:
            return run(self, first, second, value)
        values = value.tolist() if isinstance(value, Tensor) else value
        values = values if isinstance(values, (list, tuple)) else [values] * len(self)
        results = []
        for a, b, c, v in zip(self, first, second, values, strict=True):
            y = a + (b / c if divide else b * c) * torch.tensor(v, dtype=a.dtype)
            results.append(a.copy_(y) if in_place else y)
        return None if in_place else results

    call.__name__ = op._schema.name
    return call


def renorm(self: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    """p = 0 too, which the CPU refuses: the norm is the number of elements other than 0."""
    if p:
        return aten.renorm(self, p, dim, maxnorm)
    others = [d for d in range(self.dim()) if d != dim % self.dim()]
    count = (self != 0).sum(others, keepdim=True).float()
    factor = torch.where(count > maxnorm, maxnorm / (count + 1e-7), 1.0)
    return (self.float() * factor).to(self.dtype)


def renorm_(self: Tensor, *args: Any) -> Tensor:
    return self.copy_(renorm(self, *args))


def renorm_out(self: Tensor, *args: Any, out: Tensor) -> Tensor:
    found = renorm(self, *args)
    return out.resize_(found.shape).copy_(found)


def adaptive_avg_pool2d(self: Tensor, output_size: Sequence[int]) -> Tensor:
    """Any number of leading dimensions, and torch_npu's words for a wrong size."""
    name = "adaptive_avg_pool2d"
    if len(output_size) != 2:
        raise RuntimeError(f"{name}: output size must be 2")
    if min(output_size) < 0:
        raise RuntimeError(f"{name}: elements of output_size must be greater than or equal to 0")
    if self.dim() <= 4:
        return aten._adaptive_avg_pool2d(self, output_size)
    found = aten._adaptive_avg_pool2d(self.flatten(0, -4), output_size)
    return found.unflatten(0, self.shape[:-3])


def adaptive_avg_pool2d_backward(grad: Tensor, self: Tensor) -> Tensor:
    if self.dim() <= 4:
        return aten._adaptive_avg_pool2d_backward(grad, self)
    found = aten._adaptive_avg_pool2d_backward(grad.flatten(0, -4), self.flatten(0, -4))
    return found.view(self.shape)


def refused(op: Any) -> Callable[..., Any]:
    """A quantised tensor carries its scale beside the memory, where a host kernel sees memory alone."""

    def call(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{op._schema.name}: the host stand-in has no kernel for this operator: it makes no "
            "quantised tensors of PyTorch's; the real NPU may"
        )

    return call


def long_indices(op: Any, *names: str) -> Callable[..., Any]:
    """op with its int32 index arguments as the int64 that the CPU wants; sums of 16-bit losses in
    float32."""
    run = fallback.wide(op)
    places = [(i, a.name) for i, a in enumerate(op._schema.arguments) if a.name in names]

    def widen(value: Any) -> Any:
        return value.long() if isinstance(value, Tensor) and value.dtype == torch.int32 else value

    def call(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        for i, name in places:
            if i < len(given):
                given[i] = widen(given[i])
            elif name in kwargs:
                kwargs[name] = widen(kwargs[name])
        return run(*given, **kwargs)

    call.__name__ = op._schema.name
    return call


# operators whose targets or indices may be int32 on the device
INT32 = {
    "nll_loss_forward": ("target",),
    "nll_loss_backward": ("target",),
    "nll_loss2d_forward": ("target",),
    "nll_loss2d_backward": ("target",),
    "multilabel_margin_loss_forward": ("target",),
    "multilabel_margin_loss_backward": ("target",),
    "multi_margin_loss": ("target",),
    "multi_margin_loss_backward": ("target",),
    "put_": ("index",),
}
QUANTISED = frozenset(
    "quantize_per_tensor quantize_per_channel quantize_per_tensor_dynamic".split()
)
# the CPU's kernels of these round to 16 bits in between
WIDE = frozenset(
    """
_conv_depthwise2d _slow_conv2d_backward binary_cross_entropy_with_logits conv_depthwise3d convolution
convolution_backward convolution_backward_overrideable convolution_overrideable grid_sampler_2d
grid_sampler_2d_backward grid_sampler_3d grid_sampler_3d_backward slow_conv_dilated2d slow_conv_dilated3d
slow_conv_transpose2d slow_conv_transpose3d upsample_bicubic2d upsample_bicubic2d_backward upsample_bilinear2d
upsample_bilinear2d_backward upsample_linear1d upsample_linear1d_backward upsample_trilinear3d
upsample_trilinear3d_backward
""".split()
)
# the vendor's tests hold these against float32 in bfloat16 and against float16 steps in float16
WIDE_BFLOAT16 = frozenset(
    """
_foreach_add _foreach_add_ _foreach_sub _foreach_sub_
""".split()
)
IN_STEPS = frozenset(
    "_foreach_addcdiv _foreach_addcdiv_ _foreach_addcmul _foreach_addcmul_".split()
)
OWN: dict[str, Callable[..., Any]] = {
    "histc": histc,
    "histc.out": histc_out,
    "_softmax": softmax,
    "_log_softmax": log_softmax,
    "_softmax_backward_data": softmax_backward("_softmax_backward_data"),
    "_log_softmax_backward_data": softmax_backward("_log_softmax_backward_data"),
    "matmul_backward": autograd.matmul_backward,
    "renorm": renorm,
    "renorm_": renorm_,
    "renorm.out": renorm_out,
    "_adaptive_avg_pool2d": adaptive_avg_pool2d,
    "_adaptive_avg_pool2d_backward": adaptive_avg_pool2d_backward,
    **batch_norm.ATEN,
}


def function(op: Any) -> Callable[..., Any] | None:
    """What runs in the place of the CPU's operator; None: the operator itself."""
    name = full_name(op._schema).removeprefix("aten::")
    base = name.split(".")[0]
    if name in OWN:
        return OWN[name]
    if base in INT32:
        return long_indices(op, *INT32[base])
    if base in WIDE:
        return fallback.wide(op)
    if base in IN_STEPS:
        return foreach_steps(op)
    if base in WIDE_BFLOAT16:
        return fallback.wide(op, (torch.bfloat16,))
    return refused(op) if base in QUANTISED else None


def covered() -> Iterator[str]:
    """Full names of the operators that get a host kernel: all that torch_npu has kernels for, or
    would hand to its CPU fallback, which copies and cannot be captured."""
    mine = names("aten", "PrivateUse1")
    fallen = names("aten", "CPU") - names("aten", "CompositeExplicitAutograd")
    # true_divide has both: a kernel would stand before its autograd formula
    fallen -= names("aten", "CompositeImplicitAutograd")
    for name in mine | fallen:
        if name.removeprefix("aten::").partition(".")[0] in NATIVE:
            continue
        schema = schema_of(name)
        aliases = [r.alias_info for r in schema.returns] if schema else []
        if schema and all(a is None or a.is_write for a in aliases):  # no view
            yield name


# what nearly every program calls first; all others are prepared when they are called
FIRST = "aten::ones aten::zeros aten::zero_ aten::fill_.Scalar aten::copy_ aten::add.Tensor".split()


def install() -> int:
    """Host kernels for all of them; returns how many."""
    kernels = {name: Kernel(name, function) for name in covered()}
    register(kernels.items())
    for name in FIRST:
        kernels[name].prepare()
    return len(kernels)
