"""W8A8 by its definition, with nothing of `dsv3_port`: numpy's float32, exact sums in int64, and one
cast. Bit for bit is meant: every rounding stands here once, in the order of the operators' documents.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

F32 = np.float32


def to_numpy(x: Tensor) -> np.ndarray:
    return x.float().numpy()


def weight(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N, K] -> codes [N, K] int64, scale [N, 1] float32, row by row."""
    codes, scales = [], []
    for row in values.astype(F32):
        scale = F32(np.abs(row).max()) / F32(127)
        scale = scale if scale >= np.finfo(F32).tiny else F32(1)
        codes.append(np.rint(row / scale).astype(np.int64))
        scales.append([scale])
    return np.stack(codes), np.array(scales, F32)


def token(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """npu_dynamic_quant: float32 [T, K] -> codes int64, scale [T] float32; a row of zeros has scale 0."""
    scale = np.abs(x).max(-1) / F32(127)
    with np.errstate(invalid="ignore", divide="ignore"):
        codes = np.where(scale[:, None] > 0, np.rint(x / scale[:, None]), 0)
    return codes.astype(np.int64), scale.astype(F32)


def scaled(total: np.ndarray, scale: np.ndarray, token_scale: np.ndarray) -> np.ndarray:
    """int64 sums [T, N] times the output's scale, then the token's, in float32."""
    return total.astype(F32) * scale.reshape(1, -1) * token_scale[:, None]


def linear(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """[T, K] -> [T, N] in the dtype of x."""
    q, s = token(to_numpy(x))
    return of_codes(q, s, codes, scale, x.dtype)


def of_codes(
    q: np.ndarray, s: np.ndarray, codes: Tensor, scale: Tensor, dtype: torch.dtype
) -> Tensor:
    total = q @ codes.numpy().astype(np.int64).T
    return torch.from_numpy(scaled(total, to_numpy(scale), s)).to(dtype)


def swiglu(
    total: np.ndarray, scale: np.ndarray, token_scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """npu_dequant_swiglu_quant with activate_left: sums [T, 2I], scale [2I] -> codes and scale of
    silu(left) * right. It multiplies by 127 / max where npu_dynamic_quant divides by max / 127. silu in
    torch: its exp is no operation of IEEE 754, two libraries may differ in the last bit."""
    y = torch.from_numpy(scaled(total, scale, token_scale))
    left, right = y.chunk(2, -1)
    y = (torch.nn.functional.silu(left) * right).numpy()
    most = np.abs(y).max(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        codes = np.where(most[:, None] > 0, np.rint(y * (F32(127) / most)[:, None]), 0)
    return np.clip(codes, -128, 127).astype(np.int64), most / F32(127)


def merged_mlp(x: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """x [T, H]; (codes [2I, H], scale) of [gate | up]; (codes [H, I], scale) of down -> [T, H]."""
    q, s = token(to_numpy(x))
    total = q @ first[0].numpy().astype(np.int64).T
    inner = swiglu(total, to_numpy(first[1]).flatten(), s)
    return of_codes(*inner, *second, x.dtype)


def experts(
    rows: Tensor, ends: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> Tensor:
    """Each expert's MLP over its own rows; first [E, 2I, H], second [E, H, I] with scales [E, rows, 1]."""
    out, start = [], 0
    for e, end in enumerate(ends.tolist()):
        if end > start:
            mine = ((t[0][e], t[1][e]) for t in (first, second))
            out.append(merged_mlp(rows[start:end], *mine))
        start = end
    return torch.cat(out)
