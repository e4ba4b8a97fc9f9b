"""The second form of the MLA cache's update, whose schema says that it writes both caches.

The first form writes them too, but its schema declares nothing written: a graph compiler may drop or
move the write, and under torch.compile later steps then read an empty cache. Graphs need this form.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .cache import check_kv_rmsnorm_rope_cache
from .cache import npu_kv_rmsnorm_rope_cache as _first_form
from .table import OPERATORS, operator
from .wide import unsupported


def _run(*tensors: Tensor, **given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    unsupported(
        "npu_kv_rmsnorm_rope_cache_v2",
        k_cache_dtype=given.pop("k_cache_dtype"),
        ckv_cache_dtype=given.pop("ckv_cache_dtype"),
    )
    meaning = OPERATORS[_first_form.__name__].meaning
    result: tuple[Tensor, Tensor, Tensor, Tensor] = meaning(*tensors, **given)
    return result


@operator(check_kv_rmsnorm_rope_cache)
def npu_kv_rmsnorm_rope_cache_v2(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    k_cache: Tensor,
    ckv_cache: Tensor,
    *,
    k_rope_scale: Tensor | None = None,
    c_kv_scale: Tensor | None = None,
    k_rope_offset: Tensor | None = None,
    c_kv_offset: Tensor | None = None,
    v: Tensor | None = None,
    epsilon: float = 1e-5,
    cache_mode: str = "Norm",
    is_output_kv: bool = False,
    k_cache_dtype: int | None = None,
    ckv_cache_dtype: int | None = None,
) -> tuple[Tensor, Tensor]:
    """npu_kv_rmsnorm_rope_cache, both caches declared as written; returns its last two, (k_embed, y)."""
    return _run(**locals())[2:]


@operator(check_kv_rmsnorm_rope_cache)
def npu_kv_rmsnorm_rope_cache_v2_functional(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    k_cache: Tensor,
    ckv_cache: Tensor,
    *,
    k_rope_scale: Tensor | None = None,
    c_kv_scale: Tensor | None = None,
    k_rope_offset: Tensor | None = None,
    c_kv_offset: Tensor | None = None,
    v: Tensor | None = None,
    epsilon: float = 1e-5,
    cache_mode: str = "Norm",
    is_output_kv: bool = False,
    k_cache_dtype: int | None = None,
    ckv_cache_dtype: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same on copies of the caches: (k_embed, y, k_cache, ckv_cache)."""
    given = locals() | {"k_cache": k_cache.clone(), "ckv_cache": ckv_cache.clone()}
    k_cache, ckv_cache, k_embed, y = _run(**given)
    return k_embed, y, k_cache, ckv_cache
