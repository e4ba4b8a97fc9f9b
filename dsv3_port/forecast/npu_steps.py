"""What each porting step changes, in kernels that others measured: before and after, by size.

Kernel time only: launches saved come on top. Where nothing fits a step, its entry says so.
"""

from __future__ import annotations

from functools import lru_cache

from ..messages import language, told, tr, trn
from ..steps import step
from .kernel_fit import MATMUL, Call
from .kernels import CARD, NO_KERNEL, find, gaps
from .npu_parts import Pair, Part, StepKernels, fitted, measured, pair, product, vector


def _decode(n: int) -> str:
    return trn("decode, {n} token", "decode, {n} tokens", n).format(n=n)


def _prefill(n: int = 4096) -> str:
    return tr("prefill, {n:,} tokens").format(n=n)


_SIZES = (1, 8, 64, 4096)  # tokens; the last is a prompt


def _size(n: int) -> str:
    return _decode(n) if n < 4096 else _prefill(n)


def _none(what: str) -> str:
    """A sentence: no kernel of `what` was found."""
    return tr("{what}: {none}.").format(what=what, none=told(NO_KERNEL))


def _tensor_parallel() -> StepKernels:
    whole, part = product(8, 16384, 7168), product(8, 2048, 7168)
    pairs = pair(_decode(8), tr("o_proj: whole, and a rank of 8"), [whole], [part], "")
    pairs += pair(
        _decode(8),
        tr("7,168 to 512 columns, and half of them on a rank of 2"),
        [product(8, 7168, 512)],
        [product(8, 7168, 256)],
        tr("exact: below about 8 MB a kernel is its start, and cutting further saves little"),
    )
    said = (
        tr(
            "Prefill 4,096: the whole o_proj is 3.6 times beyond the largest measured product: not covered."
        ),
        tr("No collective was measured: what the cut costs in all-reduces is not in the picture."),
    )
    return StepKernels("tensor_parallel", tuple(pairs), said)


def _mla() -> StepKernels:
    scale = 4096 / 3585
    slices = measured("Slice", "3585x16x256;3;3", 2, scale)
    expanded = [measured("MatMulV2", "4096x512;4096x512"), slices]
    both = tr("K and V of 4,096 latent rows made anew, and absorbed products")
    pairs = pair(
        _decode(8),
        tr("K and V of 4,096 latent rows made anew (a sequence and layer), and absorbed products"),
        [*expanded],
        [measured("BatchMatMulV2", "16x8x128;16x128x512", 2)],
        tr("near: the second product (512 to 128) is taken as the first; 16 heads of a rank of 8"),
    )
    pairs += pair(
        _decode(1),
        both,
        [*expanded],
        [measured("BatchMatMulV2", "16x1x128;16x128x512", 2)],
        tr("near: the second product is taken as the first"),
    )
    call = Call(2e-6 * 16 * (64 * 640 + 128 * 512), 2e-9 * 16 * 64 * 128 * 512, 64, 2.097)
    pairs += pair(
        _decode(64),
        both,
        [*expanded],
        [fitted(MATMUL, call, "16 × 64×128·128×512", 2)],
        "",
    )
    pairs += pair(
        _prefill(),
        tr("projections: absorbed, and expanded (what prefill_attention chooses between)"),
        [
            measured("BatchMatMulV2", "16x4096x128;16x128x512"),
            measured("BatchMatMulV2", "16x4096x512;16x512x128"),
        ],
        [*expanded, measured("BroadcastTo", "3585x1x64;3", 1, scale)],
        tr("near: slices scaled from 3,585 rows; attention itself is apart"),
    )
    said = (_none(tr("Attention over an expanded cache")),)
    return StepKernels("mla_low_rank", tuple(pairs), said)


def _gmm() -> StepKernels:
    down, up = "256x2048;2x2048x7168;2", "256x7168;2x7168x4096;2"
    pairs = pair(
        _decode(8),
        tr("2 experts of full width: gate, up and down"),
        [
            measured("MatMulV2", "8x7168;4608x7168", 2, 4096 / 4608),
            measured("MatMulV2", "8x2048;7168x2048", 2),
        ],
        [measured("GroupedMatmul", up), measured("GroupedMatmul", down)],
        tr("near: down has exactly the same weights, up is scaled from 4,608 columns"),
    )
    pairs += pair(
        _decode(1),
        tr("8 experts of a rank of 8 (256 of 2,048 wide)"),
        [measured("MatMulV2", "8x7168;256x7168", 16), measured("MatMulV2", "8x256;7168x256", 8)],
        [measured("GroupedMatmul", down), measured("GroupedMatmul", down, 1, 0.5)],
        tr(
            "near: before at 8 rows; after has the same weight bytes in 2 wide experts, not 8 narrow ones"
        ),
    )
    said = (
        tr("Launches come on top: 24 products and 24 small kernels of the loop become 5."),
        tr(
            "Prefill 4,096 and decode of 64: grouped products were measured with 2 experts only: not covered."
        ),
    )
    return StepKernels("gmm_routing", tuple(pairs), said)


def _one_hot() -> StepKernels:
    scatter = find("ScatterElements", "1;1;1", "910B1", "int64")
    gate = find("MoeGatingTopK", "1x256;256", CARD, "")
    near = tr(
        "What is near: one int64 scatter ran on the AI CPU in {scatter:.1f} µs [{scatter_row}] (910B1, a single "
        "sample), and a fused gate does the whole of it in {gate:.2f} µs [{gate_row}] (910B4-1, one token). Whether "
        "a float scatter stays on the AI core is not told."
    ).format(scatter=scatter.median, scatter_row=scatter.id, gate=gate.median, gate_row=gate.id)
    return StepKernels("one_hot_gate", (), (_none(tr("Float scatter and one-hot mask")), near))


def _merged() -> StepKernels:
    pairs: list[Pair] = []
    half = tr("exact: the router's weight has the shape of one half")
    for n in _SIZES:
        pairs += pair(
            _size(n),
            tr("shared expert of a rank of 8: gate and up"),
            [product(n, 7168, 256, 2)],
            [product(n, 7168, 512)],
            half if n in (8, 4096) else "",
        )
    pairs += pair(
        _decode(8),
        tr("dense layer of a rank of 8: gate and up"),
        [measured("MatMulV2", "8x7168;2112x7168", 2, 2304 / 2112)],
        [measured("MatMulV2", "8x7168;4608x7168")],
        tr("near: half of 4,608 scaled from 2,112 columns"),
    )
    return StepKernels("merged_mlp", tuple(pairs), ())


def _cache() -> StepKernels:
    copy = 4096 * 16 * 320 / (3585 * 7168)
    row = measured("ScatterNdUpdate", "66304x1x512;1x1;1x1x512", device="A3")
    pairs = pair(
        _decode(1),
        tr("append a token: copy of an expanded cache of 4,096 (16 heads), and a row written"),
        [measured("TensorMove", "3585x7168", 1, copy)],
        [row],
        tr("two devices: the copy is 910B4-1's, the row A3's"),
    )
    pairs += pair(
        _decode(1),
        tr("the same with the latent cache"),
        [measured("TensorMove", "3585x2048", 1, 4096 * 576 / (3585 * 2048))],
        [row],
        tr("two devices; writing is not faster than copying 4.7 MB: the gain is static shapes"),
    )
    return StepKernels("fixed_kv_cache", tuple(pairs), (_none(tr("8 and 64 tokens, prefill")),))


def _rope() -> StepKernels:
    pairs = [
        p
        for size, inputs in (
            (_decode(1), "163840x64;1;2;1"),
            (_prefill(3585), "163840x64;1;2;3585"),
        )
        for p in pair(
            size,
            tr("cos and sin of a step of 61 layers"),
            [measured("Index", inputs, 122)],
            [measured("Index", inputs, 2)],
            tr("exact"),
        )
    ]
    pairs += pair(
        _prefill(),
        tr("rotary operator, 8 heads of 64"),
        [measured("Mul", "4096x8x64;4096x1x64", 2), measured("Add", "4096x8x64;4096x8x64")],
        [
            measured(
                "InterleaveRope", "3585x16x1x64;3585x1x1x64;3585x1x1x64", 1, 4096 * 8 / (3585 * 16)
            )
        ],
        tr("near: before without slices, negation and cat; after scaled by elements"),
    )
    return StepKernels("rope_once", tuple(pairs), (_none(tr("8 and 64 tokens")),))


def _norm() -> StepKernels:
    pairs: list[Pair] = []
    for n in _SIZES:
        x = f"{n}x7168"
        pairs += pair(
            _size(n),
            tr("Add and RMSNorm"),
            [
                vector("Add", f"{x};{x}", 3, n, 7168),
                vector("RmsNorm", f"{x};7168", 2 + 1 / n, n, 7168),
            ],
            [vector("AddRmsNorm", f"{x};{x};7168", 4 + 1 / n, n, 7168)],
            tr("exact") if n in (8, 4096) else "",
        )
    said = (
        tr("Upstream's norm is six operators, not one RmsNorm: its gain is larger than shown."),
    )
    return StepKernels("add_rms_norm", tuple(pairs), said)


def _head() -> StepKernels:
    pairs = pair(
        _prefill(),
        tr("LM head of a rank of 8: all positions, and the last"),
        [measured("MatMulV3", "4096x7168;4608x7168", 1, 16160 / 4608)],
        [measured("Index", "3585x7168;1;2;1"), measured("MatMulV2", "1x7168;16160x7168")],
        tr("after: exact; before: scaled from 4,608 to 16,160 columns"),
    )
    said = (tr("Decode has one position of each sequence: the step does not gain there."),)
    return StepKernels("last_token_head", tuple(pairs), said)


def _waits(graph: str) -> StepKernels:
    """Not kernels but what stands between them: eager and graph of the same 43 layers."""
    by_file = {g.file.rsplit("/", 1)[-1]: g for g in gaps()}
    eager, static = by_file["swiglu.csv"], by_file["dequant_swiglu_quant.csv"]
    sides = [
        (Part("wait of a kernel", g.wait, g.wait_p10, g.wait_p90, g.id, (g.id,), "A3", "measured"),)
        for g in (eager, static)
    ]
    near = tr(
        "the same 43 layers, one token a rank; eager bfloat16, graph int8, two days apart; p10 to p90"
    )
    what = tr("a kernel waits behind the one before it")
    pairs = (Pair(_decode(1), what, sides[0], sides[1], near),)
    apart = tr(
        "Layer to layer {layer:,.0f} µs [{row}] eager and {layer2:,.0f} µs [{row2}] in a graph; step to step "
        "{step:.1f} ms [{row}] and {step2:.1f} ms [{row2}]. Another model than DeepSeek-V3, with the profiler on."
    ).format(
        layer=eager.layer_us,
        step=eager.step_ms,
        row=eager.id,
        layer2=static.layer_us,
        step2=static.step_ms,
        row2=static.id,
    )
    said = [apart]
    if graph == "ge_graph":
        said.append(tr("No export says that it is a GE graph: a captured graph's wait is shown."))
    return StepKernels(graph, pairs, tuple(said))


def kernels_of(step_id: str) -> StepKernels:
    """What measured kernels say of a step, in the reader's language. PortError for a step that is
    none."""
    return _kernels_of(step(step_id).id, language())


@lru_cache(maxsize=32)
def _kernels_of(name: str, _: str) -> StepKernels:
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
