"""The orders of dimensions that the fused attention takes: B batch, N heads, S positions, D head
size, H = N*D."""

from __future__ import annotations

from torch import Tensor

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
}
# known to torch_npu, without a meaning here
OTHER_LAYOUTS = ("TND", "NTD", "TND_NTD", "NTD_TND", "NSD")
TWO_DIM_MASKS = ("BSH", "BSND", "BNSD", "BNSD_BSND")  # without rope inputs
MLA_HEADS = (1, 2, 4, 8, 16, 32, 64, 128)


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


def check_dense(
    op: str,
    layout: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_rope: Tensor | None,
    key_rope: Tensor | None,
    heads: int,
    kv_heads: int,
) -> None:
    """Heads, head sizes and, with rope inputs, the two forms of MLA."""

    def head_size(name: str, tensor: Tensor, count: int) -> int:
        rank, axis = (3, 2) if layout == "BSH" else (4, layout.index("N"))
        if (
            tensor.dim() != rank
            or tensor.shape[axis] % count
            or (rank == 4 and tensor.shape[axis] != count)
        ):
            raise bad(op, name, tensor.shape, f"{layout} with N = {count} heads")
        return tensor.shape[-1] // count if layout == "BSH" else tensor.shape[-1]

    width = head_size("query", query, heads)
    head_size("value", value, kv_heads)
    if head_size("key", key, kv_heads) != width:
        raise bad(op, "key", key.shape, f"of query's head size, {width}")
    if query_rope is None or key_rope is None:
        return
    if width not in (128, 512):
        raise bad(
            op,
            "query",
            query.shape,
            "of head size 512 (decode, absorbed) or 128 (prefill) beside rope inputs",
        )
    if width == 512 and (kv_heads != 1 or heads not in MLA_HEADS):
        raise bad(
            op,
            "num_heads",
            f"{heads} over {kv_heads}",
            "a power of two up to 128 over one key head, absorbed",
        )
    for name, rope, count in (("query_rope", query_rope, heads), ("key_rope", key_rope, kv_heads)):
        same_dtype(op, name, rope, "query", query)
        if head_size(name, rope, count) != 64:
            raise bad(op, name, rope.shape, "of head size 64")
