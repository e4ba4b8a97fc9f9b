"""The slot of 16_one_launch: what npu_mla_prolog_v3 computes, written out."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ...model.decoder import DeepseekV3
from ...model.mla_prolog import PrologAttention
from ...model.paged_cache import Paging
from ...plan import PortPlan
from ..prolog_toy import PROLOG
from . import Function, Slot, Wrong, changed

STUB = '''
def mla_prolog(token_x, matrices, gammas, sin, cos, caches, slots, eps):
    """token_x [T, H]; matrices w_dq [H, Rq], w_uq_qr [Rq, N (D + Dr)], w_uk [N, D, R], w_dkv_kr
    [H, R + Dr]; gammas [Rq] and [R]; sin, cos [T, Dr]; caches [blocks, block, 1, R] and [.., Dr],
    written in place at rows slots [T] of all blocks -> query [T, N, R], query_rope [T, N, Dr]"""
    ...
'''

TURN = "torch.cat((a, b), -1) * cos + torch.cat((-b, a), -1) * sin"
PAIRS = "a, b = x[..., ::2], x[..., 1::2]"
OF_Q = "norm(token_x @ w_dq, gammas[0])"
OF_KV = "norm(latent, gammas[1])"
HEADS = "heads = (cq @ w_uq_qr).unflatten(-1, (n, -1))"
QUERY, QUERY_ROPE = 'torch.einsum("tnd,ndr->tnr", heads[..., :d], w_uk)', "heads[..., d:]"
ROW = "latent, key = (token_x @ w_dkv_kr).tensor_split([r], -1)"
CACHES = f"zip(caches, ({OF_KV}, turn(key, sin, cos)))"
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
    w_dq, w_uq_qr, w_uk, w_dkv_kr = matrices
    n, d, r = w_uk.shape
    cq = {OF_Q}
    {HEADS}
    query = {QUERY}
    {ROW}
    {KEPT}
    for cache, rows in {CACHES}:
        {WRITE}
    return query, turn({QUERY_ROPE}, sin[:, None], cos[:, None])
""",
)


def attentions(twin: DeepseekV3) -> list[PrologAttention]:
    return [m for m in twin.modules() if isinstance(m, PrologAttention)]


def as_operator(function: Function, *tensors: Tensor, **given: Any) -> tuple[Tensor, ...]:
    """Called as npu_mla_prolog_v3 is; its further results are those of no quantisation."""
    (token_x, *matrices), gammas, angles, caches = (
        tensors[a:b] for a, b in ((0, 5), (5, 7), (7, 9), (9, 11))
    )
    slots, eps = given["cache_index"], given["rmsnorm_epsilon_cq"]
    query, query_rope = function(token_x, matrices, gammas, *angles, caches, slots, eps)
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
                "Between the two matrices of the queries stands a norm, with the first gamma. Without it the scores "
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
                        "                        .rsqrt() * gammas[1]",
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
                changed(SOLUTION, (CACHES, CACHES.replace("zip(caches", "zip(caches[::-1]"))),
                "The first cache takes the latents, R wide, the second the turned keys, Dr wide. Yours go each "
                "to the other one.",
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
        toy=PROLOG,
        attach=attach,
        calls=lambda twin, cached: len(attentions(twin)) * cached,
    ),
)
