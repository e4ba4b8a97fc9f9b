"""Backward operators of torch_npu's own autograd formulas.

torch_npu differentiates some operators differently from PyTorch's CPU: it calls a backward operator
that only the device has. Here each is the gradient that PyTorch finds for the forward operator on
the CPU (`gradients`), or its formula where the forward's input is not at hand. 16-bit forwards that
compute in float32 and cast once get gradients of the same kind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Reductions = ("none", "mean", "sum")  # at::Reduction


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Autograd inside a kernel, which the dispatcher calls with autograd switched off."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)
    keys = keys.add(torch._C.DispatchKey.ADInplaceOrView).add(torch._C.DispatchKey.AutogradOther)
    include = torch._C._dispatch_tls_local_include_set()
    exclude = torch._C._dispatch_tls_local_exclude_set() - keys
    with torch.inference_mode(False), torch.enable_grad():
        with torch._C._ForceDispatchKeyGuard(include, exclude):
            yield


def gradients(
    fn: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor, ...]:
    """What autograd gives for each of `inputs` of fn(*inputs), for `grad` of its result; zeros where
    fn does not depend on one."""
    with recording():
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = fn(*leaves)
        found = torch.autograd.grad(out, leaves, grad.to(out.dtype), allow_unused=True)
    pairs = zip(inputs, found, strict=True)
    return tuple(torch.zeros_like(x) if g is None else g.detach() for x, g in pairs)


# ---- matmul --------------------------------------------------------------------------------------


def matmul_backward(
    grad: Tensor, self: Tensor, other: Tensor, mask: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    d_self, d_other = gradients(torch.matmul, (self, other), grad)
    return (d_self if mask[0] else None), (d_other if mask[1] else None)


def matmul_double_backward(
    grad_self: Tensor | None,
    grad_other: Tensor | None,
    grad_out: Tensor,
    input: Tensor,
    other: Tensor,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of matmul_backward: for grad_out, input and other."""
    found = [torch.zeros_like(grad_out), torch.zeros_like(input), torch.zeros_like(other)]
    if grad_self is not None:
        found[0] = found[0] + grad_self @ other
        found[2] = gradients(torch.matmul, (grad_self, other), grad_out)[1]
    if grad_other is not None:
        found[0] = found[0] + input @ grad_other
        found[1] = gradients(torch.matmul, (input, grad_other), grad_out)[0]
    return found[0], found[1], found[2]


# ---- indexing, casts -----------------------------------------------------------------------------


def gather_backward(
    grad: Tensor, self_size: Sequence[int], dim: int, index: Tensor, sparse_grad: bool
) -> Tensor:
    if sparse_grad:
        raise NotImplementedError(
            "npu_gather_backward: the host stand-in has no kernel for sparse_grad; the real NPU may"
        )
    return grad.new_zeros(self_size).scatter_add_(dim, index.long(), grad)


def dtype_cast_backward(
    grad: Tensor, dtype: torch.dtype, grad_dtype: Any = None, input_dtype: Any = None
) -> Tensor:
    return grad.to(dtype)


def repeat_interleave_backward_int(
    grad: Tensor, input: Tensor, repeats: int, dim: int | None = None
) -> Tensor:
    return gradients(lambda x: x.repeat_interleave(repeats, dim), (input,), grad)[0]


def repeat_interleave_backward_tensor(
    grad: Tensor, input: Tensor, repeats: Tensor, dim: int | None = None
) -> Tensor:
    return gradients(lambda x: x.repeat_interleave(repeats.long(), dim), (input,), grad)[0]


def renorm_backward(grad: Tensor, input: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    return gradients(lambda x: torch.renorm(x, p, dim, maxnorm), (input,), grad)[0]


def selected_backward(
    grad: Tensor, dim: int, indices: Tensor, sizes: Sequence[int], keepdim: bool
) -> Tensor:
    """Of max and min along a dimension: to the element that was chosen."""
    if not keepdim and sizes:
        grad, indices = grad.unsqueeze(dim), indices.unsqueeze(dim)
    return grad.new_zeros(sizes).scatter_(dim, indices.long(), grad)


# ---- losses --------------------------------------------------------------------------------------


def l1_loss_backward(grad: Tensor, input: Tensor, target: Tensor, reduction: int) -> Tensor:
    kind = Reductions[reduction]
    return gradients(lambda x: F.l1_loss(x, target, reduction=kind), (input,), grad)[0]


def _kl_div(input: Tensor, target: Tensor, reduction: int, log_target: bool) -> Tensor:
    return F.kl_div(input, target, reduction=Reductions[reduction], log_target=log_target)


def kl_div_backward(
    grad: Tensor, input: Tensor, target: Tensor, reduction: int = 1, *, log_target: bool = False
) -> Tensor:
    return gradients(lambda x: _kl_div(x, target, reduction, log_target), (input,), grad)[0]


def kl_div_target_backward(
    grad: Tensor, input: Tensor, target: Tensor, reduction: int = 1, *, log_target: bool = False
) -> Tensor:
    return gradients(lambda t: _kl_div(input, t, reduction, log_target), (target,), grad)[0]


def bce_with_logits_backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: int,
) -> Tensor:
    """In float32, cast once."""
    kind: Any = Reductions[reduction]

    def loss(x: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            x, _wide(target), _wide(weight), pos_weight=_wide(pos_weight), reduction=kind
        )

    return gradients(loss, (_wide(input),), _wide(grad))[0].to(input.dtype)


def _wide(x: Any) -> Any:
    """16-bit tensors as float32."""
    narrow = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if narrow else x


# ---- Fourier transforms --------------------------------------------------------------------------


def fft_r2c_backward(
    grad: Tensor, dim: Sequence[int], normalization: int, onesided: bool, last_dim_size: int
) -> Tensor:
    """The transpose of a real-to-complex transform: pad what a onesided one left out, transform
    back, keep the real part."""
    last = dim[-1]
    if onesided:
        shape = list(grad.shape)
        shape[last] = last_dim_size
        padded = grad.new_zeros(shape)
        padded.narrow(last, 0, grad.shape[last]).copy_(grad)
        grad = padded
    return torch.ops.aten._fft_c2c(grad, dim, normalization, False).real.contiguous()


def fft_c2r_backward(grad: Tensor, dim: Sequence[int], normalization: int) -> Tensor:
    """The transpose of a complex-to-real transform: middle frequencies stand for two."""
    found = torch.ops.aten._fft_r2c(grad, dim, normalization, True)
    twice = grad.shape[dim[-1]] - found.shape[dim[-1]]
    if twice > 0:
        found.narrow(dim[-1], 1, twice).mul_(2)
    return found


def stft_backward(
    grad: Tensor,
    input: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
) -> Tensor:
    def transform(x: Tensor) -> Tensor:
        return torch.stft(
            x,
            n_fft,
            hop_length,
            win_length,
            window,
            center=False,
            normalized=normalized,
            onesided=onesided,
            return_complex=return_complex,
        )

    return gradients(transform, (input,), grad)[0]


NPU: dict[str, Callable[..., Any]] = {
    "_npu_dtype_cast_backward": dtype_cast_backward,
    "npu_dtype_cast_backward": dtype_cast_backward,
    "npu_gather_backward": gather_backward,
    "npu_max_backward": selected_backward,
    "npu_min_backward": selected_backward,
    "npu_binary_cross_entropy_with_logits_backward": bce_with_logits_backward,
    "l1_loss_backward": l1_loss_backward,
    "kl_div_backward": kl_div_backward,
    "kl_div_target_backward": kl_div_target_backward,
    "repeat_interleave_backward_int": repeat_interleave_backward_int,
    "repeat_interleave_backward_tensor": repeat_interleave_backward_tensor,
    "npu_renorm_backward": renorm_backward,
    "fft_r2c_backward": fft_r2c_backward,
    "fft_c2r_backward": fft_c2r_backward,
    "stft_backward": stft_backward,
    "matmul_double_backward": matmul_double_backward,
}
