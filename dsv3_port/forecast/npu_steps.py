"""What each porting step changes, in kernels that others measured: before and after, by size.

Kernel time only: launches saved come on top. Where nothing fits a step, its entry says so.
"""

from __future__ import annotations

from functools import lru_cache

from ..steps import step
from .kernel_fit import MATMUL, Call
from .kernels import CARD, NO_KERNEL, find, gaps
from .npu_parts import Pair, Part, StepKernels, fitted, measured, pair, product, vector


def _sizes() -> list[tuple[str, int]]:
    return [(f"decode, {n} token{'s' if n > 1 else ''}", n) for n in (1, 8, 64)]


def _tensor_parallel() -> StepKernels:
    whole, part = product(8, 16384, 7168), product(8, 2048, 7168)
    pairs = pair("decode, 8 tokens", "o_proj: whole, and a rank of 8", [whole], [part], "")
    pairs += pair(
        "decode, 8 tokens",
        "7,168 to 512 columns, and half of them on a rank of 2",
        [product(8, 7168, 512)],
        [product(8, 7168, 256)],
        "exact: below about 8 MB a kernel is its start, and cutting further saves little",
    )
    said = (
        "Prefill 4,096: the whole o_proj is 3.6 times beyond the largest measured product: not covered.",
        "No collective was measured: what the cut costs in all-reduces is not in the picture.",
    )
    return StepKernels("tensor_parallel", tuple(pairs), said)


def _mla() -> StepKernels:
    scale = 4096 / 3585
    slices = measured("Slice", "3585x16x256;3;3", 2, scale)
    expanded = [measured("MatMulV2", "4096x512;4096x512"), slices]
    pairs = pair(
        "decode, 8 tokens",
        "K and V of 4,096 latent rows made anew (a sequence and layer), and absorbed products",
        [*expanded],
        [measured("BatchMatMulV2", "16x8x128;16x128x512", 2)],
        "near: the second product (512 to 128) is taken as the first; 16 heads of a rank of 8",
    )
    pairs += pair(
        "decode, 1 token",
        "K and V of 4,096 latent rows made anew, and absorbed products",
        [*expanded],
        [measured("BatchMatMulV2", "16x1x128;16x128x512", 2)],
        "near: the second product is taken as the first",
    )
    call = Call(2e-6 * 16 * (64 * 640 + 128 * 512), 2e-9 * 16 * 64 * 128 * 512, 64, 2.097)
    pairs += pair(
        "decode, 64 tokens",
        "K and V of 4,096 latent rows made anew, and absorbed products",
        [*expanded],
        [fitted(MATMUL, call, "16 × 64×128·128×512", 2)],
        "",
    )
    pairs += pair(
        "prefill, 4,096 tokens",
        "projections: absorbed, and expanded (what prefill_attention chooses between)",
        [
            measured("BatchMatMulV2", "16x4096x128;16x128x512"),
            measured("BatchMatMulV2", "16x4096x512;16x512x128"),
        ],
        [*expanded, measured("BroadcastTo", "3585x1x64;3", 1, scale)],
        "near: slices scaled from 3,585 rows; attention itself is apart",
    )
    said = ("Attention over an expanded cache: " + NO_KERNEL + ".",)
    return StepKernels("mla_low_rank", tuple(pairs), said)


def _gmm() -> StepKernels:
    down, up = "256x2048;2x2048x7168;2", "256x7168;2x7168x4096;2"
    pairs = pair(
        "decode, 8 tokens",
        "2 experts of full width: gate, up and down",
        [
            measured("MatMulV2", "8x7168;4608x7168", 2, 4096 / 4608),
            measured("MatMulV2", "8x2048;7168x2048", 2),
        ],
        [measured("GroupedMatmul", up), measured("GroupedMatmul", down)],
        "near: down has exactly the same weights, up is scaled from 4,608 columns",
    )
    pairs += pair(
        "decode, 1 token",
        "8 experts of a rank of 8 (256 of 2,048 wide)",
        [measured("MatMulV2", "8x7168;256x7168", 16), measured("MatMulV2", "8x256;7168x256", 8)],
        [measured("GroupedMatmul", down), measured("GroupedMatmul", down, 1, 0.5)],
        "near: before at 8 rows; after has the same weight bytes in 2 wide experts, not 8 narrow ones",
    )
    said = (
        "Launches come on top: 24 products and 24 small kernels of the loop become 5.",
        "Prefill 4,096 and decode of 64: grouped products were measured with 2 experts only: not covered.",
    )
    return StepKernels("gmm_routing", tuple(pairs), said)


def _one_hot() -> StepKernels:
    scatter = find("ScatterElements", "1;1;1", "910B1", "int64")
    gate = find("MoeGatingTopK", "1x256;256", CARD, "")
    said = (
        f"Float scatter and one-hot mask: {NO_KERNEL}.",
        f"What is near: one int64 scatter ran on the AI CPU in {scatter.median:.1f} µs [{scatter.id}] (910B1, a "
        f"single sample), and a fused gate does the whole of it in {gate.median:.2f} µs [{gate.id}] (910B4-1, one "
        "token). Whether a float scatter stays on the AI core is not told.",
    )
    return StepKernels("one_hot_gate", (), said)


def _merged() -> StepKernels:
    pairs: list[Pair] = []
    for size, n in [*_sizes(), ("prefill, 4,096 tokens", 4096)]:
        pairs += pair(
            size,
            "shared expert of a rank of 8: gate and up",
            [product(n, 7168, 256, 2)],
            [product(n, 7168, 512)],
            "exact: the router's weight has the shape of one half" if n in (8, 4096) else "",
        )
    pairs += pair(
        "decode, 8 tokens",
        "dense layer of a rank of 8: gate and up",
        [measured("MatMulV2", "8x7168;2112x7168", 2, 2304 / 2112)],
        [measured("MatMulV2", "8x7168;4608x7168")],
        "near: half of 4,608 scaled from 2,112 columns",
    )
    return StepKernels("merged_mlp", tuple(pairs), ())


def _cache() -> StepKernels:
    copy = 4096 * 16 * 320 / (3585 * 7168)
    row = measured("ScatterNdUpdate", "66304x1x512;1x1;1x1x512", device="A3")
    pairs = pair(
        "decode, 1 token",
        "append a token: copy of an expanded cache of 4,096 (16 heads), and a row written",
        [measured("TensorMove", "3585x7168", 1, copy)],
        [row],
        "two devices: the copy is 910B4-1's, the row A3's",
    )
    pairs += pair(
        "decode, 1 token",
        "the same with the latent cache",
        [measured("TensorMove", "3585x2048", 1, 4096 * 576 / (3585 * 2048))],
        [row],
        "two devices; writing is not faster than copying 4.7 MB: the gain is static shapes",
    )
    return StepKernels(
        "fixed_kv_cache", tuple(pairs), ("8 and 64 tokens, prefill: " + NO_KERNEL + ".",)
    )


def _rope() -> StepKernels:
    pairs = [
        p
        for size, inputs in (
            ("decode, 1 token", "163840x64;1;2;1"),
            ("prefill, 3,585 tokens", "163840x64;1;2;3585"),
        )
        for p in pair(
            size,
            "cos and sin of a step of 61 layers",
            [measured("Index", inputs, 122)],
            [measured("Index", inputs, 2)],
            "exact",
        )
    ]
    pairs += pair(
        "prefill, 4,096 tokens",
        "rotary operator, 8 heads of 64",
        [measured("Mul", "4096x8x64;4096x1x64", 2), measured("Add", "4096x8x64;4096x8x64")],
        [
            measured(
                "InterleaveRope", "3585x16x1x64;3585x1x1x64;3585x1x1x64", 1, 4096 * 8 / (3585 * 16)
            )
        ],
        "near: before without slices, negation and cat; after scaled by elements",
    )
    return StepKernels("rope_once", tuple(pairs), ("8 and 64 tokens: " + NO_KERNEL + ".",))


def _norm() -> StepKernels:
    pairs: list[Pair] = []
    for size, n in [*_sizes(), ("prefill, 4,096 tokens", 4096)]:
        x = f"{n}x7168"
        pairs += pair(
            size,
            "Add and RMSNorm",
            [
                vector("Add", f"{x};{x}", 3, n, 7168),
                vector("RmsNorm", f"{x};7168", 2 + 1 / n, n, 7168),
            ],
            [vector("AddRmsNorm", f"{x};{x};7168", 4 + 1 / n, n, 7168)],
            "exact" if n in (8, 4096) else "",
        )
    said = ("Upstream's norm is six operators, not one RmsNorm: its gain is larger than shown.",)
    return StepKernels("add_rms_norm", tuple(pairs), said)


def _head() -> StepKernels:
    pairs = pair(
        "prefill, 4,096 tokens",
        "LM head of a rank of 8: all positions, and the last",
        [measured("MatMulV3", "4096x7168;4608x7168", 1, 16160 / 4608)],
        [measured("Index", "3585x7168;1;2;1"), measured("MatMulV2", "1x7168;16160x7168")],
        "after: exact; before: scaled from 4,608 to 16,160 columns",
    )
    said = ("Decode has one position of each sequence: the step does not gain there.",)
    return StepKernels("last_token_head", tuple(pairs), said)


def _waits(graph: str) -> StepKernels:
    """Not kernels but what stands between them: eager and graph of the same 43 layers."""
    by_file = {g.file.rsplit("/", 1)[-1]: g for g in gaps()}
    eager, static = by_file["swiglu.csv"], by_file["dequant_swiglu_quant.csv"]
    sides = [
        (Part("wait of a kernel", g.wait, g.wait_p10, g.wait_p90, g.id, (g.id,), "A3", "measured"),)
        for g in (eager, static)
    ]
    near = "the same 43 layers, one token a rank; eager bfloat16, graph int8, two days apart; p10 to p90"
    pairs = (
        Pair(
            "decode, 1 token", "a kernel waits behind the one before it", sides[0], sides[1], near
        ),
    )
    said = [
        f"Layer to layer {eager.layer_us:,.0f} µs [{eager.id}] eager and {static.layer_us:,.0f} µs [{static.id}] in a "
        f"graph; step to step {eager.step_ms:.1f} ms [{eager.id}] and {static.step_ms:.1f} ms [{static.id}]. Another "
        "model than DeepSeek-V3, with the profiler on.",
    ]
    if graph == "ge_graph":
        said.append("No export says that it is a GE graph: a captured graph's wait is shown.")
    return StepKernels(graph, pairs, tuple(said))


@lru_cache(maxsize=16)
def kernels_of(step_id: str) -> StepKernels:
    """What measured kernels say of a step. PortError for a step that is none."""
    name = step(step_id).id
    made = {
        "tensor_parallel": _tensor_parallel,
        "mla_low_rank": _mla,
        "gmm_routing": _gmm,
        "one_hot_gate": _one_hot,
        "merged_mlp": _merged,
        "fixed_kv_cache": _cache,
        "rope_once": _rope,
        "add_rms_norm": _norm,
        "last_token_head": _head,
    }
    return made[name]() if name in made else _waits(name)
