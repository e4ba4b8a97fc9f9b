"""The slot of 16_one_launch: what npu_mla_prolog_v3 computes, written out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...messages import tr
from ...model.decoder import DeepseekV3
from ...model.mla_prolog import PrologAttention
from ...model.paged_cache import Paging
from ...plan import PortPlan
from ..toys import Toy
from . import Function, Slot, Wrong, changed

EPS = 1e-3  # of the toy: not the operator's default, so that forgetting it shows

STUB = '''
def mla_prolog(token_x, w_dq, w_uq_qr, w_uk, w_dkv_kr, gamma_cq, gamma_ckv, sin, cos,
               kv_cache, kr_cache, slots, eps):
    """token_x [T, H], w_dq [H, Rq], w_uq_qr [Rq, N (D + Dr)] with D before Dr, w_uk [N, D, R],
    w_dkv_kr [H, R + Dr], gamma_cq [Rq], gamma_ckv [R]; sin, cos [T, Dr]: angles, in two halves.
    Writes kv_cache [blocks, block, 1, R] and kr_cache [blocks, block, 1, Dr] in place: token t at
    row slots[t], counted over all blocks; below 0 nowhere. Norms with eps; a turn takes pairs and
    leaves halves -> query [T, N, R], query_rope [T, N, Dr]"""
    ...
'''

TURN = "torch.cat((a, b), -1) * cos + torch.cat((-b, a), -1) * sin"
PAIRS = "a, b = x[..., ::2], x[..., 1::2]"
OF_Q = "norm(token_x @ w_dq, gamma_cq)"
OF_KV = "norm(latent, gamma_ckv)"
HEADS = "heads = (cq @ w_uq_qr).unflatten(-1, (n, -1))"
QUERY, QUERY_ROPE = 'torch.einsum("tnd,ndr->tnr", heads[..., :d], w_uk)', "heads[..., d:]"
ROW = "latent, key = (token_x @ w_dkv_kr).tensor_split([r], -1)"
WRITE = "cache.view(-1, cache.shape[-1])[slots[kept]] = rows[kept]"
KEPT, ALL = "kept = slots >= 0", "kept = torch.ones_like(slots, dtype=torch.bool)"
SOLUTION = STUB.replace(
    "    ...\n",
    f"""\
    def norm(x, gamma):
        return torch.nn.functional.rms_norm(x, gamma.shape, gamma, eps)
    def turn(x, sin, cos):
        {PAIRS}     # pairs in, halves out
        return {TURN}
    n, d, r = w_uk.shape
    cq = {OF_Q}
    {HEADS}
    query = {QUERY}
    {ROW}
    {KEPT}
    for cache, rows in ((kv_cache, {OF_KV}), (kr_cache, turn(key, sin, cos))):
        {WRITE}
    return query, turn({QUERY_ROPE}, sin[:, None], cos[:, None])
""",
)


def inputs(generator: torch.Generator, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Small tokens, so that eps counts; caches hold rows of before; one token has no slot, and the slots
    are in no order."""
    t, h, n, d = (sizes[k] for k in ("T", "H", "N", "D"))
    q, r, rope, blocks, block = (sizes[k] for k in ("Rq", "R", "Dr", "blocks", "block"))

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    angle = 9 * torch.rand(t, rope // 2, generator=generator)
    sin, cos = (torch.cat((f(angle),) * 2, -1) for f in (torch.sin, torch.cos))
    slots = 1 + torch.randperm(blocks * block - 2, generator=generator)[:t]  # neither end
    slots[t // 2] = -1
    return {
        "token_x": 0.1 * some(t, h),
        "w_dq": some(h, q) / h**0.5,
        "w_uq_qr": some(q, n * (d + rope)) / q**0.5,
        "w_uk": some(n, d, r) / d**0.5,
        "w_dkv_kr": some(h, r + rope) / h**0.5,
        "gamma_cq": 1 + 0.3 * some(q),
        "gamma_ckv": 1 + 0.3 * some(r),
        "sin": sin,
        "cos": cos,
        "kv_cache": some(blocks, block, 1, r),
        "kr_cache": some(blocks, block, 1, rope),
        "slots": slots,
        "eps": EPS,
    }


class Prolog(Toy):
    """Both queries and both caches in one row, with the queries' shapes behind them."""

    def outcome(self, function: Function, seed: int) -> tuple[Any, list[str]]:
        def whole(*given: Any) -> Any:
            found, caches = function(*given), given[9:11]
            if not _two(found):
                return found
            shapes = torch.tensor([n / 100 for part in found for n in (*part.shape, 0)])
            return torch.cat([part.flatten() for part in (*found, *caches, shapes)])

        return super().outcome(whole, seed)

    def first_place(self, got: tuple[Any, list[str]], want: tuple[Any, list[str]]) -> str:
        n, t, r, rope = (self.sizes[k] for k in ("N", "T", "R", "Dr"))
        if got[1]:
            return super().first_place(got, want)
        if not isinstance(got[0], Tensor) or got[0].shape != want[0].shape:
            said = tr(
                "mla_prolog returns two tensors, query [T, N, R] and query_rope [T, N, Dr], here {query} and "
                "{rope}; yours returned something else"
            )
            return said.format(query=[t, n, r], rope=[t, n, rope])
        rows = self.sizes["blocks"] * self.sizes["block"]
        parts = got[0].split([t * n * r, t * n * rope, rows * r, rows * rope, 8])
        due = want[0].split([len(p) for p in parts])
        names = "query", "query_rope", "kv_cache", "kr_cache", tr("the results' shapes")
        off = [name for name, a, b in zip(names, parts, due, strict=True) if not self.equal(a, b)]
        return tr("other numbers than due: {names}").format(names=", ".join(off))


def _two(found: Any) -> bool:
    pair = isinstance(found, (tuple, list)) and len(found) == 2
    return pair and all(isinstance(part, Tensor) and part.dim() == 3 for part in found)


def attentions(twin: DeepseekV3) -> list[PrologAttention]:
    return [m for m in twin.modules() if isinstance(m, PrologAttention)]


def as_operator(function: Function, *tensors: Tensor, **given: Any) -> tuple[Tensor, ...]:
    """Called as npu_mla_prolog_v3 is; its further results are those of no quantisation."""
    query, query_rope = function(*tensors, given["cache_index"], given["rmsnorm_epsilon_cq"])
    return query, query_rope, query.new_zeros(1)


def attach(twin: DeepseekV3, function: Function) -> None:
    """In small blocks, which the gate's steps cross; without poison, so that a wrong function has a text
    to look at."""
    for at in attentions(twin):
        at.mla_prolog = partial(as_operator, function)
    twin.paging = Paging(16)


SLOTS = (
    Slot(
        id="16.mla_prolog",
        notebook="16_one_launch",
        title="What one launch computes",
        minutes=20,
        difficulty=3,
        stub=STUB,
        solution=SOLUTION,
        finished="ops.mla_prolog:_run",
        hints=(
            "Two ways begin at token_x. One goes down to Rq, through a norm, up to N heads, and of each head D "
            "channels go over w_uk to the latent's width. The other gives the row that is cached: R channels "
            "through a norm, Dr turned.",
            "cq is [T, Rq], cq @ w_uq_qr is [T, N (D + Dr)]: unflatten it to [T, N, D + Dr]. The first D of a "
            "head by w_uk [N, D, R] give [T, N, R]. The turn takes pairs (x0, x1), (x2, x3) … and leaves "
            "halves: all firsts, then all seconds; for heads sin and cos are [T, 1, Dr]. A cache seen as "
            "[blocks * block, width] has a row for each slot.",
            'The queries over the latents are torch.einsum("tnd,ndr->tnr", heads[..., :d], w_uk).',
        ),
        wrong={
            "cos before sin": Wrong(
                changed(SOLUTION, ("def turn(x, sin, cos)", "def turn(x, cos, sin)")),
                "Sine and cosine have changed places. Every other operator here takes cos first, this one sin: "
                "by how much does your turn move a token at position 0?",
            ),
            "the operator's own epsilon": Wrong(
                changed(SOLUTION, ("gamma, eps)", "gamma, 1e-5)")),
                "That is the default of the operator, 1e-5; DeepSeek's is 1e-6 and has to be handed over. In "
                "float32 the model hardly shows it, a layer with small numbers does. Use eps.",
                "toy",
            ),
            "a slot one behind": Wrong(
                changed(SOLUTION, ("[slots[kept]]", "[slots[kept] - 1]")),
                "Every row lies one place too early: the query then meets an old row in its own place. Slots "
                "count from 0, over all blocks.",
            ),
            "no slot, and written": Wrong(
                changed(SOLUTION, (KEPT, ALL)),
                "A slot of -1 is no place: there is no token, or a text that has ended. As an index of torch "
                "it is the last row of the last block, which is somebody's.",
                "toy",
            ),
            "no slot, and written to 0": Wrong(
                changed(
                    SOLUTION,
                    (KEPT, ALL),
                    ("[slots[kept]]", "[slots.clamp(min=0)]"),
                ),
                "Row 0 is a row like any other, of the block that belongs to nobody and must stay zero. A "
                "negative slot writes nothing at all.",
                "toy",
            ),
            "rotary channels in halves": Wrong(
                changed(SOLUTION, (PAIRS, "a, b = x.chunk(2, -1)")),
                "You paired channel 0 with channel Dr / 2. The weights of DeepSeek have pairs side by side: 0 "
                "with 1, 2 with 3.",
            ),
            "pairs left as pairs": Wrong(
                changed(
                    SOLUTION,
                    (
                        TURN,
                        "torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2)",
                    ),
                    (
                        PAIRS,
                        "a, b, (c, s) = x[..., ::2], x[..., 1::2], (t.chunk(2, -1)[0] for t in (cos, sin))",
                    ),
                ),
                "Turned right and put back as pairs. Scores would not mind, if all rows lay so; the prompt's "
                "rows were cached by another operator, which leaves halves.",
            ),
            "turned before pairs": Wrong(
                changed(
                    SOLUTION,
                    (PAIRS, "a, b = x.chunk(2, -1)"),
                    (
                        f"return {TURN}",
                        f"y = {TURN}\n        return torch.cat((y[..., ::2], y[..., 1::2]), -1)",
                    ),
                ),
                "You turned first and put pairs into halves afterwards: what was turned together were not the "
                "pairs.",
            ),
            "turned backwards": Wrong(
                changed(SOLUTION, ("(-b, a)", "(b, -a)")),
                "You turn the other way: (a, b) by an angle is (a cos - b sin, b cos + a sin). Which half "
                "carries the minus?",
            ),
            "the queries' norm left out": Wrong(
                changed(SOLUTION, (OF_Q, "token_x @ w_dq")),
                "Between the two matrices of the queries stands a norm, with gamma_cq. Without it the scores "
                "grow with the token.",
            ),
            "the latent's norm left out": Wrong(
                changed(SOLUTION, (OF_KV, "latent")),
                "The cache holds normalised latents: w_uk and w_uv were trained behind that norm. Yours are "
                "the product as it comes.",
            ),
            "one norm over the whole row": Wrong(
                changed(
                    SOLUTION,
                    (
                        OF_KV,
                        "latent * (torch.cat((latent, key), -1).square().mean(-1, keepdim=True) + eps)\n"
                        "                        .rsqrt() * gamma_ckv",
                    ),
                ),
                "The mean square is that of the R latent channels alone. The rotary ones are in the same "
                "product and go through no norm.",
            ),
            "not multiplied by w_uk": Wrong(
                changed(SOLUTION, (QUERY, "heads[..., :d]")),
                "Those are queries of D channels, and the cache has latents of R. w_uk of each head takes them "
                "there: that is the absorbed product of 02.",
            ),
            "rotary part first": Wrong(
                changed(
                    SOLUTION,
                    ("heads[..., :d], w_uk", "heads[..., -d:], w_uk"),
                    (QUERY_ROPE, "heads[..., :-d]"),
                ),
                "In which order does a head hold its two parts? D channels without rotation come first, the Dr "
                "rotary ones behind them.",
            ),
            "channels before heads": Wrong(
                changed(SOLUTION, (HEADS, HEADS.replace("(n, -1))", "(-1, n)).transpose(1, 2)"))),
                "The matrix holds one head after the other, each D + Dr wide. You dealt the channels out to "
                "the heads in turn.",
            ),
            "the caches exchanged": Wrong(
                changed(
                    SOLUTION,
                    (
                        f"((kv_cache, {OF_KV}), (kr_cache, turn(key, sin, cos)))",
                        f"((kr_cache, {OF_KV}), (kv_cache, turn(key, sin, cos)))",
                    ),
                ),
                "kv_cache takes the latents, R wide, kr_cache the turned keys, Dr wide. Yours go each to the "
                "other one.",
            ),
            "written nowhere": Wrong(
                changed(SOLUTION, (WRITE, WRITE.replace("cache.view", "cache.clone().view"))),
                "You wrote into a copy: the caches themselves are as they were, and the next step finds the old "
                "rows. The operator writes in place.",
            ),
        },
        accepted={
            "norm in single steps": changed(
                SOLUTION,
                (
                    "torch.nn.functional.rms_norm(x, gamma.shape, gamma, eps)",
                    "x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gamma",
                ),
            ),
            "a product for each head": changed(
                SOLUTION, (QUERY, "(heads[..., :d].transpose(0, 1) @ w_uk).transpose(0, 1)")
            ),
            "turned as complex numbers": changed(
                SOLUTION,
                (PAIRS, "z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())"),
                (
                    f"return {TURN}",
                    "z = z * torch.complex(cos, sin)[..., : z.shape[-1]]\n"
                    "        return torch.cat((z.real, z.imag), -1)",
                ),
            ),
            "index_copy_": changed(
                SOLUTION,
                (WRITE, "cache.view(-1, cache.shape[-1]).index_copy_(0, slots[kept], rows[kept])"),
            ),
        },
        plan=PortPlan.upto("paged_cache").replace(mla_prolog=True),
        needs={"cache": "paged", "mla_prolog": True},
        toy=Prolog(
            {"T": 5, "H": 23, "Rq": 11, "N": 3, "D": 7, "R": 13, "Dr": 6, "blocks": 3, "block": 4},
            inputs,
            ("T", "N", "R"),
            writes=("kv_cache", "kr_cache"),
        ),
        attach=attach,
        calls=lambda twin, cached: len(attentions(twin)) * cached,
    ),
)
