"""Operators that torch_npu's C++ code launches itself, past PyTorch's dispatcher
(aclopCompileAndExecute).

cann_host.c hands over their names, shapes and addresses. An operator that is not in `OPERATORS` is
refused by name: returning success would leave results that were never computed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels, library


class Desc(ctypes.Structure):
    """struct desc of cann_host.c: what aclCreateTensorDesc was told."""

    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("dims", ctypes.c_int64 * 16),
    ]


class Buffer(ctypes.Structure):
    """struct buffer of cann_host.c."""

    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]


# aclDataType
DTYPES = {
    0: torch.float32,
    1: torch.float16,
    2: torch.int8,
    3: torch.int32,
    4: torch.uint8,
    6: torch.int16,
    9: torch.int64,
    11: torch.float64,
    12: torch.bool,
    27: torch.bfloat16,
}


def _pad(x: Tensor, pads: Tensor, value: Tensor) -> Tensor:
    """pads: (before, after) of each dimension, first dimension first; F.pad wants the last one
    first."""
    return F.pad(x, pads.view(-1, 2).flip(0).flatten().tolist(), value=value.item())


def _one_hot(x: Tensor, depth: Tensor, on: Tensor, off: Tensor) -> Tensor:
    return torch.where(F.one_hot(x.long(), int(depth)).bool(), on, off)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Cast": lambda x: x,
    "Fill": lambda dims, value: value.reshape(()),
    "Identity": lambda x: x,
    "OneHot": _one_hot,
    "PadV3": _pad,
    "TensorMove": lambda x: x,
    "ZerosLike": torch.zeros_like,
}
_callback: Any = None  # must live as long as the process


def _tensor(desc: Any, buffer: Any) -> Tensor:
    shape = desc.contents.dims[: desc.contents.ndim]
    strides = torch.empty(shape, device="meta").stride()
    return kernels.at_address(
        buffer.contents.data, buffer.contents.size, DTYPES[desc.contents.dtype], shape, strides
    )


def _on_launch(
    name: bytes, n_in: int, in_desc: Any, in_data: Any, n_out: int, out_desc: Any, out_data: Any
) -> int:
    """0: done. An exception cannot cross the C frames; cann_host.c names the operator in its error."""
    fn = OPERATORS.get(name.decode())
    if fn is None or n_out != 1:
        return 1
    try:
        args = [_tensor(in_desc[i], in_data[i]) for i in range(n_in)]
        out = _tensor(out_desc[0], out_data[0])
        if kernels.recorder.capturing():
            kernels.recorder.record(fn, args, {}, [out])
        else:
            kernels.recorder.flush()
            out.copy_(fn(*args))
        return 0
    except Exception:
        return 1


def install() -> None:
    global _callback
    arrays: list[Any] = [ctypes.POINTER(ctypes.POINTER(t)) for t in (Desc, Buffer)]
    side = [ctypes.c_int, *arrays]  # how many, their descriptions, their memory
    _callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, *side, *side)(_on_launch)
    library.loaded().hostcann_set_launch(_callback)
