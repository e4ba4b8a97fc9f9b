"""Bytes and FLOPs that a kernel's shapes imply: every tensor once, and only rows that exist.

This is how columns mb and gflop of data/npu-kernels/kernels.csv came about, and how a profiler's
export gets them (forecast/own_kernels.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

BYTES = {
    **dict.fromkeys(("bfloat16", "dt_bf16", "float16"), 2),
    **dict.fromkeys(("float32", "float", "int32"), 4),
    **dict.fromkeys(("int64", "float64"), 8),
    **dict.fromkeys(("int8", "bool", "uint8"), 1),
}
Shape = Sequence[int]
# rows of the result are read and written, not the table that they come from
_ROWS = ("Slice", "SliceAiCore", "Index", "GatherV2", "BroadcastTo")
_BOOL = ("Equal", "NotEqual", "Less", "GreaterEqual", "Greater", "LogicalAnd", "LogicalNot")
# what these move depends on values that no file holds
_UNKNOWN = (
    *("SparseFlashAttention", "SparseAttnSharedkv", "LightningIndexer", "MoeInitRoutingV3"),
    *("MoeDistributeCombineV2", "MoeDistributeDispatchV2", "DequantSwigluQuant", "Compressor"),
    *("DSARandomUniform", "ScatterElements", "HcPreInvRms", "HcPreSinkhorn"),
)
_PLAIN = ("MatMulV2", "MatMulV3", "QuantBatchMatmulV3")


def numel(shape: Shape) -> int:
    return math.prod(shape) if shape else 0


def work(
    kernel: str, ins: Sequence[Shape], dtypes: Sequence[str], outs: Sequence[Shape], note: str = ""
) -> tuple[float, float]:
    """(10^6 bytes, 10^9 FLOPs) of one call; (0, 0) where shapes do not tell. note: "kv=BxL" of
    attention, "valid~R" rows of a grouped matmul that hold tokens."""
    try:
        nbytes, flops = _work(kernel, ins, [BYTES.get(t.lower(), 2) for t in dtypes], outs, note)
    except (IndexError, ValueError):  # an operator of that name with other arguments
        return 0.0, 0.0
    return nbytes / 1e6, flops / 1e9


def _work(
    kernel: str, ins: Sequence[Shape], widths: list[int], outs: Sequence[Shape], note: str
) -> tuple[float, float]:
    size = widths + [2] * len(ins)
    if kernel in _UNKNOWN:
        return 0.0, 0.0
    if kernel in _ROWS:
        return 2 * sum(map(numel, outs)) * size[0], 0.0
    if kernel in ("ScatterNdUpdate", "ViewCopy"):
        return 2 * numel(ins[2 if kernel == "ScatterNdUpdate" else 4]) * size[0], 0.0
    if kernel in ("KvRmsNormRopeCache", "Muls"):  # read once, written once
        return 4.0 * numel(ins[0]), 0.0
    if kernel == "MoeTokenUnpermute":
        return 2.0 * numel(outs[0]), 0.0
    if kernel in ("FusedInferAttentionScore", "RINGMLAPrefillBF16Kernel"):
        return _attention(kernel, ins, note)
    if kernel == "GroupedMatmul":
        return _grouped(ins, size, outs, note)
    made = 2 if not widths or size[0] == 1 else size[0]  # int8 products give bfloat16
    made = 1 if kernel in _BOOL else made
    nbytes = sum(numel(s) * b for s, b in zip(ins, size, strict=False))
    return nbytes + made * sum(map(numel, outs)), _flops(kernel, ins, outs)


def _flops(kernel: str, ins: Sequence[Shape], outs: Sequence[Shape]) -> float:
    if kernel in _PLAIN:
        return 2.0 * outs[0][-2] * outs[0][-1] * ins[0][-1]
    if kernel in ("BatchMatMulV2", "TransposeBatchMatMul"):
        return 2.0 * numel(ins[0]) * ins[1][-1]
    return 0.0


def _attention(kernel: str, ins: Sequence[Shape], note: str) -> tuple[float, float]:
    """DeepSeek's latent rows of 576 numbers in decode; 192 + 128 a head in prefill, half of it
    where a causal mask is handed in."""
    heads = ins[0][1]
    if kernel == "FusedInferAttentionScore":
        found = re.search(r"kv=(\d+)x(\d+)", note)
        if not found:
            return 0.0, 0.0
        batch, length = int(found[1]), int(found[2])
        return 2.0 * batch * (length * 576 + heads * 1088), 2.0 * batch * heads * length * 1088
    q, k, causal = ins[0][0], ins[2][0], list(ins[-1]) == [512, 512]
    return 2.0 * heads * 320 * (q + k), 2.0 * heads * q * k * 320 * (0.5 if causal else 1.0)


def _grouped(
    ins: Sequence[Shape], size: Sequence[int], outs: Sequence[Shape], note: str
) -> tuple[float, float]:
    found = re.search(r"valid~(\d+)", note)
    if not found:
        return 0.0, 0.0
    valid, weight = int(found[1]), ins[1]
    out = outs[0][1] if outs and len(outs[0]) > 1 else weight[2]
    nbytes = valid * ins[0][1] * size[0] + numel(weight) * size[1] + valid * out * 2
    return nbytes, 2.0 * valid * weight[1] * weight[2]
