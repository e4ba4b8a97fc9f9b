"""How many small faults of the host NPU do its tests notice? `python ci/tools/mutate_hostnpu.py [--list]
[--only N,N…]`.

Each row of MUTATIONS changes one line of the stand-in or of an operator's check or meaning in a copy
of the package, and names the tests that should fail then. A fault that every test survives is a hole:
exit code 1, and its name. Nothing in the checkout is changed. The list is by hand: one fault for each
rule that has bitten somebody.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
OPS = "tests/ops/test_attention_forms.py tests/ops/test_rules.py tests/ops/test_attention.py"
QUANT, GROUPED = "tests/ops/test_quantised.py", "tests/ops/test_rules.py"
PAGED, PROLOG = "tests/ops/test_paged_ops.py", "tests/ops/test_mla_prolog.py"
INSIDE = "tests/hostnpu/inside/"
NORMS, EXAMPLES = "tests/ops/test_rounding.py", "tests/ops/test_examples.py"
BEYOND = f"{INSIDE}check_beyond_cpu.py"
RULES = f"{INSIDE}check_devices.py {INSIDE}check_operators.py"


class Mutation(NamedTuple):
    file: str  # below dsv3_port
    old: str  # occurs once
    new: str
    tests: str  # files; those of inside/ run with the stand-in enabled


M = Mutation
ATEN = f"{INSIDE}check_aten.py"
NZ = f"tests/hostnpu/test_formats.py {INSIDE}check_nz.py"
MUTATIONS = (
    M("hostnpu/formats.py", "blocks.movedim(-2, -4)", "blocks", NZ),
    M("hostnpu/formats.py", "name in INPUTS.get(short, ())", "short in INPUTS", NZ),
    M("hostnpu/formats.py", "if name in outputs or not", "if not", NZ),
    M("hostnpu/kernels.py", "fn = formats.Reading(fn, nz)", "pass", NZ),
    M("hostnpu/graphs.py", "formats.host(x) if on_npu and formats.layout_of(x) else ", "", NZ),
    M(
        "hostnpu/launched.py",
        "formats.to_nz(whole, layout.c0)",
        "whole.new_zeros(layout.stored)",
        NZ,
    ),
    M("hostnpu/aten.py", "if base in WIDE:", "if False:", ATEN),
    M("hostnpu/aten.py", "if base in WIDE_BFLOAT16:", "if False:", ATEN),
    M("hostnpu/aten.py", "return refused(op) if base in QUANTISED else None", "return None", ATEN),
    M("hostnpu/aten.py", "dim, grad.dtype)", "dim, input_dtype)", ATEN),
    M("hostnpu/fallback.py", "target.copy_(widened.get(id(target), target))", "pass", ATEN),
    M("hostnpu/fallback.py", "if NO_CPU in text:", "if False:", ATEN),
    M("hostnpu/fallback.py", '    "Unsupported datatype for add_relu",\n', "", ATEN),
    M("ops/attention_masks.py", "column > row + (shift if mode == 3 else 0)", "column > row", OPS),
    M("ops/attention_masks.py", "column < corner - call.pre_tokens", "column < corner - 9", OPS),
    M("ops/attention_packed.py", "return last - sizes + step,", "return last - sizes,", OPS),
    M("ops/attention_packed.py", "padded.masked_fill(~there[:, :, None, None], 0)", "padded", OPS),
    M("ops/attention_paged.py", "torch.where(first < lengths[:, None], table, 0)", "table", OPS),
    M("ops/attention_paged.py", "x.permute(0, 2, 1, 4, 3, 5)", "x.permute(0, 2, 1, 3, 4, 5)", OPS),
    M("ops/attention_core.py", "    if used is not None:  #", "    if False:  #", OPS),
    M(
        "ops/attention_core.py",
        "stored = (weights * scales",
        "stored = (score.softmax(-1) * scales",
        OPS,
    ),
    M("ops/attention_core.py", "number(scales.key) * call.scale", "number(scales.key)", OPS),
    M("ops/attention_quant.py", "x.float() + spread(offset)", "x.float() - spread(offset)", OPS),
    M("ops/attention_quant.py", "(modes[0] != modes[1] and modes != (0, 1))", "False", OPS),
    M("ops/numbers.py", "(((nibbles & 15) ^ 8) - 8)", "(nibbles & 15)", OPS),
    M(
        "ops/numbers.py",
        "((((scale >> 37) & 0x1FF) ^ 0x100) - 0x100)",
        "((scale >> 37) & 0x1FF)",
        QUANT,
    ),
    M(
        "ops/quantise.py",
        "(group_index.long(), row, right=True)",
        "(group_index.long(), row)",
        QUANT,
    ),
    M("ops/quantise.py", "(2 if axis == -2 else 1)", "1", QUANT),
    M("ops/wide.py", "NARROW = 1024", "NARROW = 1 << 20", QUANT),
    M(
        "ops/quantise.py",
        "torch.where(scale > 0, x / scale, 0).round()",
        "(x / scale).trunc()",
        QUANT,
    ),
    M(
        "ops/quantise.py",
        "x.abs().amax(dim, keepdim=True) / most",
        "x.amax(dim, True) / most",
        QUANT,
    ),
    M("ops/quantise.py", "word = (bits & 0xFFFFE000)", "word = bits", QUANT),
    M("ops/quantise.py", "0xFFF + ((bits >> 13) & 1)", "0x1000", QUANT),
    M("ops/quant_matmul.py", "y = y + word_to_offset(scale)", "pass", QUANT),
    M("ops/quant_matmul.py", "y * pertoken_scale[:, None]", "y", QUANT),
    M(
        "ops/quant_fusions.py",
        "torch.full_like(most, 127).div(most)",
        "127 / most",
        QUANT,
    ),
    M("ops/quant_fusions.py", "(x if bias is None else x + bias.reshape(-1))", "x", QUANT),
    M(
        "ops/quant_fusions.py",
        "counts.cumsum(0), row, right=True",
        "counts, row, right=True",
        QUANT,
    ),
    M("ops/grouped_forms.py", "y = y * tokens.float().view(-1, 1)", "pass", GROUPED),
    M("ops/grouped_forms.py", "integers and bias.dtype != torch.int32", "False", GROUPED),
    M("ops/kv_cache_modes.py", "32 if cache.dtype == torch.int8 else 16", "16", GROUPED),
    M(
        "ops/kv_cache_modes.py",
        "(value * wide(scale)).round()",
        "(value * wide(scale)).trunc()",
        PAGED,
    ),
    M("ops/kv_cache_modes.py", "kept = where >= 0", "kept = where >= -1", PAGED),
    M("ops/mla_prolog.py", "return x @ weight", "return wide(x) @ wide(weight)", PROLOG),
    M(
        "ops/mla_prolog.py",
        "exact_product(x, weight).float() * of_x",
        "exact_product(x, weight).float()",
        PROLOG,
    ),
    M("ops/mla_prolog.py", "symmetric(normed * smooth)", "symmetric(normed)", PROLOG),
    M(
        "ops/mla_prolog.py",
        "(wide(query_rope) * factor / of_query)",
        "(wide(query_rope) / of_query)",
        PROLOG,
    ),
    M("ops/mla_prolog.py", "rotated(kr, cos, sin)", "rotated(kr, sin, cos)", PROLOG),
    M("ops/mla_prolog.py", "rmsnorm_epsilon_ckv) * kc_scale", "rmsnorm_epsilon_ckv)", PROLOG),
    M(
        "hostnpu/formats.py",
        '("weight_dq", "weight_uq_qr", "weight_dkv_kr")',
        '("weight_dq", "weight_uq_qr")',
        f"{INSIDE}check_prolog.py::test_eager_is_the_single_operators_bit_for_bit",
    ),
    M(
        "hostnpu/ge_int8.py",
        "quant_mode=_QUANT_MODES[quant_mode]",
        "quant_mode=0",
        f"{INSIDE}check_int8.py::test_graphs_are_the_eager_model_bit_for_bit[ge-bfloat16]",
    ),
    M(
        "hostnpu/ge_paged.py",
        "[query, query_rope, kv_cache, kr_cache, *rest]",
        "[query, query_rope, *rest, kv_cache, kr_cache]",
        f"{INSIDE}check_prolog.py::test_graphs_are_the_eager_model_bit_for_bit[ge-none]",
    ),
    M(
        "ops/quant_fusions.py",
        "if left else (second, first)",
        "if not left else (second, first)",
        QUANT,
    ),
    M("ops/paged_cache.py", "    keep = slots >= 0", "    keep = slots >= -1", QUANT),
    M(
        "ops/token_permute.py",
        "argsort(stable=True)\n    where",
        "argsort(descending=True)\n    where",
        QUANT,
    ),
    M(
        "ops/rope.py",
        "wide(r1.to(input.dtype)), wide(r2.to(input.dtype))",
        "wide(r1), wide(r2)",
        OPS,
    ),
    M(
        "hostnpu/kernels.py",
        "if several and self.check is not None:",
        "if False:",
        INSIDE + "check_devices.py",
    ),
    M(
        "hostnpu/kernels.py",
        "        self._refuse_wait(args, kwargs)",
        "        pass",
        INSIDE + "check_capture.py",
    ),
    M(
        "hostnpu/kernels.py",
        "        if self.draws:\n",
        "        if False:\n",
        INSIDE + "check_devices.py",
    ),
    M(
        "hostnpu/autograd_npu.py",
        "scale * g - x * inner",
        "scale * g",
        INSIDE + "check_training.py",
    ),
    M(
        "ops/norm.py",
        "return (normalised * wide(gamma)).to(input.dtype), rstd",
        "return normalised.to(input.dtype) * gamma, rstd",
        NORMS,
    ),
    M(
        "ops/norm.py",
        "return normalised.to(x.dtype) * gamma, rstd, x",
        "return (normalised * wide(gamma)).to(x.dtype), rstd, x",
        NORMS,
    ),
    M("ops/norm.py", "if x1.dtype == torch.float16:", "if False:", NORMS),
    M("ops/norm.py", "x = wide(x1) + wide(x2)", "x = wide(x1 + x2)", NORMS),
    M("ops/activation.py", "gate, up = wide(input)", "up, gate = wide(input)", NORMS),
    M("ops/moe_gating.py", "-torch.inf", "0.0", EXAMPLES),
    M("hostnpu/batch_norm.py", "(own - whole).square()", "0", BEYOND),
    M("hostnpu/batch_norm.py", "variance * total / (total - 1)", "variance", BEYOND),
    M(
        "hostnpu/fallback.py",
        "class DimensionError(IndexError, RuntimeError)",
        "class DimensionError(IndexError)",
        BEYOND,
    ),
    M("hostnpu/cann_device.c", "  place[type] = v;\n", "", INSIDE + "check_devices.py"),
    M("hostnpu/operators.py", "with device_rules(CANN):", "with contextlib.nullcontext():", RULES),
)


def run(mutation: Mutation, folder: Path) -> str:
    """ "noticed", "survived" or why it could not be tried."""
    file = folder / "dsv3_port" / mutation.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        return f"not tried: its line occurs {text.count(mutation.old)} times"
    head = "import contextlib\n" if "contextlib." in mutation.new else ""
    changed = text.replace(mutation.old, mutation.new)
    if head:
        changed = changed.replace("import os\n", "import os\n" + head, 1)
    file.write_text(changed, encoding="utf-8")
    try:
        inside = ["-p", "tests.hostnpu.enabled"] if INSIDE in mutation.tests else []
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *inside]
            + mutation.tests.split(),
            cwd=folder,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=600,
        )
    finally:
        file.write_text(text, encoding="utf-8")
    if done.returncode == 0:
        return "survived"
    return "noticed" if done.returncode == 1 else f"not tried: {done.stdout[-200:]}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="print the faults, run nothing")
    parser.add_argument("--only", default="", metavar="N,N…")
    args = parser.parse_args(argv)
    chosen = [int(n) for n in args.only.split(",") if n] or range(len(MUTATIONS))
    counts = {"noticed": 0, "survived": 0, "not tried": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("dsv3_port", "tests", "data", "docs", "ci"):
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, folder / part, ignore=skip)
        for part in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / part, folder / part)
        for i in chosen:
            mutation = MUTATIONS[i]
            word = "listed" if args.list else run(mutation, folder)
            print(
                f"{i:3} {word:9} {mutation.file}: {mutation.new!r} for {mutation.old!r}", flush=True
            )
            if not args.list:
                counts[word.partition(":")[0]] += 1
    if not args.list:
        print(", ".join(f"{n} {word}" for word, n in counts.items()))
    return 1 if counts["survived"] or counts["not tried"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
