"""The slot of 02_mla_low_rank: attention of a cached step, in the latent space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...model.attention import LowRankAttention
from ...model.decoder import DeepseekV3
from ...plan import PortPlan
from ..toys import Toy
from . import Function, Slot, Wrong, changed

STUB = '''
def absorbed(q_nope, q_rope, rows, mask, w_k, w_v, scale):
    """q_nope [B, N, S, Dn], q_rope [B, N, S, Dr], rows [B, 1, L, R + Dr] = [latent | k_rope],
    mask [B, 1, S, L] added to the scores, w_k [N, Dn, R], w_v [N, R, Dv] -> [B, N, S, Dv]"""
    ...
'''

SOLUTION = STUB.replace(
    "    ...\n",
    """\
    q = torch.cat((q_nope @ w_k, q_rope), -1)               # [B, N, S, R + Dr]
    scores = (q @ rows.transpose(-1, -2)) * scale + mask    # [B, N, S, L]
    weights = scores.softmax(-1).to(rows.dtype)
    latent = weights @ rows[..., : w_k.shape[-1]]           # [B, N, S, R]
    return latent @ w_v                                     # [B, N, S, Dv]
""",
)

EINSUM = STUB.replace(
    "    ...\n",
    """\
    r = w_k.shape[-1]
    latent, k_rope = rows[:, 0, :, :r], rows[:, 0, :, r:]
    turned = torch.einsum("bnsd,ndr->bnsr", q_nope, w_k)
    scores = torch.einsum("bnsr,blr->bnsl", turned, latent)
    scores = scores + torch.einsum("bnsr,blr->bnsl", q_rope, k_rope)
    p = torch.softmax(scores * scale + mask, -1)
    return torch.einsum("bnsl,blr,nrd->bnsd", p, latent, w_v)
""",
)

EXPANDED = STUB.replace(
    "    ...\n",
    """\
    latent, k_rope = rows.split([w_k.shape[-1], q_rope.shape[-1]], -1)
    k_nope = latent @ w_k.transpose(1, 2)                   # [B, N, L, Dn]
    scores = q_nope @ k_nope.transpose(-1, -2) + q_rope @ k_rope.transpose(-1, -2)
    return (scores * scale + mask).softmax(-1) @ (latent @ w_v)
""",
)


def inputs(generator: torch.Generator, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The cache is filled to three positions before its end, and a row has padding."""
    b, n, s, length = (sizes[k] for k in ("B", "N", "S", "L"))
    nope, rope, rank, value = (sizes[k] for k in ("Dn", "Dr", "R", "Dv"))

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    seen = torch.ones(b, 1, s, length, dtype=torch.bool).tril(length - s - 3)
    seen[1, ..., :2] = False
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    return {
        "q_nope": randn(b, n, s, nope),
        "q_rope": randn(b, n, s, rope),
        "rows": randn(b, 1, length, rank + rope),
        "mask": mask,
        "w_k": randn(n, nope, rank),
        "w_v": randn(n, rank, value),
        "scale": 0.11,
    }


def attach(twin: DeepseekV3, function: Function) -> None:
    for at in (m for m in twin.modules() if isinstance(m, LowRankAttention)):

        def absorbed(
            q_nope: Tensor, q_rope: Tensor, rows: Tensor, mask: Tensor, at: Any = at
        ) -> Any:
            return function(
                q_nope, q_rope, rows, mask, at.kv_b_proj_w_k, at.kv_b_proj_w_v, at.scale
            )

        object.__setattr__(at, "absorbed", absorbed)


def calls(twin: DeepseekV3, cached: int) -> int:
    prompt = twin.plan.prefill_attention == "absorbed"
    return twin.config.num_hidden_layers * (cached + prompt)


SLOTS = (
    Slot(
        id="02.absorbed",
        notebook="02_mla_low_rank",
        title="Attention over latent rows",
        minutes=25,
        difficulty=2,
        stub=STUB,
        solution=SOLUTION,
        finished="model.attention:LowRankAttention.absorbed",
        hints=(
            "Bring the query to the rows, not the rows to the query: turn q_nope by w_k once. Then "
            "there is one key row a position for all heads, and its first R numbers are the value too.",
            "q_nope [B, N, S, Dn] · w_k [N, Dn, R] is [B, N, S, R]; with q_rope behind it [B, N, S, R + "
            "Dr]; times rows [B, 1, L, R + Dr] turned round, scores [B, N, S, L]; softmax over L; times "
            "the latent part [B, 1, L, R]; times w_v [N, R, Dv].",
            "The first line is q = torch.cat((q_nope @ w_k, q_rope), -1).",
        ),
        wrong={
            "scale of R + Dr": Wrong(
                changed(SOLUTION, ("* scale", "* rows.shape[-1] ** -0.5")),
                "All scores are off by one factor: whose width is the scale's? It belongs to the dot "
                "product of the model that was trained, Dn + Dr wide.",
            ),
            "rotary part left out": Wrong(
                changed(
                    SOLUTION,
                    ("torch.cat((q_nope @ w_k, q_rope), -1) ", "q_nope @ w_k"),
                    ("q @ rows.transpose", "q @ rows[..., : w_k.shape[-1]].transpose"),
                ),
                "Your scores know what a key says, not where it stands: q_rope has to meet k_rope.",
            ),
            "parts swapped": Wrong(
                changed(SOLUTION, ("(q_nope @ w_k, q_rope)", "(q_rope, q_nope @ w_k)")),
                "In which order does a row hold its two parts? The query must hold them in the same.",
            ),
            "no mask": Wrong(
                changed(SOLUTION, (" + mask ", "")),
                "Right while the cache is full: what stands behind the slot, and left of a short prompt?",
            ),
            "softmax over the queries": Wrong(
                changed(SOLUTION, ("softmax(-1)", "softmax(-2)")),
                "The weights of one query add up to 1 over positions, the last axis of [B, N, S, L].",
            ),
            "last numbers as values": Wrong(
                changed(SOLUTION, (": w_k.shape[-1]]", "-w_k.shape[-1] :]")),
                "Which R of the R + Dr numbers of a row are the latent? A row is [latent | k_rope].",
            ),
        },
        accepted={"einsum": EINSUM, "expanded, for one query as right": EXPANDED},
        plan=PortPlan.full(),
        needs={"attention": "low_rank"},
        toy=Toy(
            {"B": 2, "N": 3, "S": 5, "L": 17, "Dn": 7, "Dr": 11, "R": 13, "Dv": 19},
            inputs,
            ("B", "N", "S", "Dv"),
        ),
        attach=attach,
        calls=calls,
    ),
)
