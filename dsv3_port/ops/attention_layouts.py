"""The orders of dimensions that the fused attention takes: B batch, N heads, S positions, D head
size, H = N*D; T = the positions of all sequences behind one another."""

from __future__ import annotations

from torch import Tensor

from .attention_call import Call
from .checks import bad, same_dtype

# input_layout -> (layout of query, key and value; layout of the output)
LAYOUTS = {
    "BNSD": ("BNSD", "BNSD"),
    "BSND": ("BSND", "BSND"),
    "BSH": ("BSH", "BSH"),
    "BNSD_NBSD": ("BNSD", "NBSD"),
    "BSND_NBSD": ("BSND", "NBSD"),
    "BSH_NBSD": ("BSH", "NBSD"),
    "BNSD_BSND": ("BNSD", "BSND"),
    "BSH_BNSD": ("BSH", "BNSD"),
    "BSND_BNSD": ("BSND", "BNSD"),
    "TND": ("TND", "TND"),
    "NTD": ("NTD", "NTD"),
    "TND_NTD": ("TND", "NTD"),
    "NTD_TND": ("NTD", "TND"),
}
OTHER_LAYOUTS = ("NSD",)  # known to torch_npu, in no document, without a meaning here
PACKED = ("TND", "NTD")
TWO_DIM_MASKS = ("BSH", "BSND", "BNSD", "BNSD_BSND")  # without rope inputs
MLA_HEADS = (1, 2, 4, 8, 16, 32, 64, 128)
MLA_LAYOUTS = {
    512: ("BSH", "BSND", "BNSD", "BNSD_NBSD", "BSND_NBSD", "BSH_NBSD", "TND", "TND_NTD"),
    128: (*("BSH", "BSND", "TND", "BNSD", "NTD"), "BSH_BNSD", "BSND_BNSD", "BNSD_BSND", "NTD_TND"),
}


def to_bnsd(x: Tensor, layout: str, heads: int) -> Tensor:
    if layout == "BSH":
        x = x.unflatten(-1, (heads, -1))
    return x if layout == "BNSD" else x.transpose(1, 2)


def from_bnsd(x: Tensor, layout: str) -> Tensor:
    if layout == "NBSD":
        return x.transpose(0, 1).contiguous()
    if layout == "BNSD":
        return x
    x = x.transpose(1, 2).contiguous()
    return x.flatten(2) if layout == "BSH" else x


def head_size(op: str, name: str, tensor: Tensor, layout: str, heads: int) -> int:
    """The last dimension of one head of a tensor in that layout."""
    rank = len(layout)
    axis = 2 if layout == "BSH" else layout.index("N")
    whole = layout == "BSH"
    if (
        tensor.dim() != rank
        or tensor.shape[axis] % heads
        or (not whole and tensor.shape[axis] != heads)
    ):
        raise bad(op, name, tensor.shape, f"{layout} with N = {heads} heads")
    return tensor.shape[-1] // heads if whole else tensor.shape[-1]


def check_mla(call: Call, width: int) -> None:
    """What rope inputs ask of head sizes, heads and layouts: the two forms of MLA."""
    if width not in (128, 512):
        raise bad(
            call.op,
            "query",
            call.query.shape,
            "of head size 512 (decode, absorbed) or 128 (prefill) beside rope inputs",
        )
    if width == 512 and (call.kv_heads != 1 or call.heads not in MLA_HEADS):
        raise bad(
            call.op,
            call.words["heads"],
            f"{call.heads} over {call.kv_heads}",
            "a power of two up to 128 over one key head, absorbed",
        )
    if call.layout not in MLA_LAYOUTS[width]:
        wanted = ", ".join(MLA_LAYOUTS[width])
        raise bad(
            call.op,
            "input_layout",
            call.layout,
            f"one of {wanted} (head size {width}, rope inputs)",
        )


def check_rope(call: Call, name: str, rope: Tensor, layout: str, heads: int) -> None:
    """query_rope, or key_rope beside keys that no table scatters."""
    if call.query.is_floating_point():
        same_dtype(call.op, name, rope, "query", call.query)
    if head_size(call.op, name, rope, layout, heads) != 64:
        raise bad(call.op, name, rope.shape, "of head size 64")
