"""What the words of the command line mean, and the checks made before any work begins."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine.settings import TABLE
from ..errors import PortError
from ..files import read_json
from ..plan import PortPlan
from ..steps import step

DEVICE_HELP = "auto, cpu, cuda, npu or host-npu"
DTYPE_HELP = "float32, bfloat16 or float16 (default: float32 on cpu, else bfloat16)"
PLAN_HELP = (
    "full, production (full and Part II's steps), upstream, upto:STEP, or step ids separated by commas "
    "(`dsv3-port plan --steps` lists them); +w8a8 behind it: matrices and their inputs of int8, +w8a8+nz: "
    "these matrices in FRACTAL_NZ on an NPU; +mla_prolog: cached steps of a paged cache begin with one operator; "
    "+c8 behind both: the cache's latents are int8; +split: decode reads only what is filled of the cache, on "
    "cuda by a Triton kernel"
)
WORKLOAD = ("context", "batch", "prefill", "rounds")
SHORT_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn"}


W8A8, NZ, MLA_PROLOG, C8, SPLIT = "+w8a8", "+nz", "+mla_prolog", "+c8", "+split"


def parse_plan(text: str) -> PortPlan:
    """`full`, `production`, `upstream`, `upto:ID` (a rung of the ladder) or step ids separated by commas;
    `+w8a8` or `+w8a8+nz`, and `+mla_prolog`, behind it, and `+c8` behind these; `+split` last."""
    if text.endswith(SPLIT):
        return parse_plan(text.removesuffix(SPLIT)).replace(decode_attention="split")
    if text.endswith(C8):
        return parse_plan(text.removesuffix(C8)).replace(kv_cache_dtype="int8")
    if text.endswith(MLA_PROLOG):
        return parse_plan(text.removesuffix(MLA_PROLOG)).replace(mla_prolog=True)
    if text.endswith(W8A8 + NZ):
        return parse_plan(text.removesuffix(NZ)).replace(weight_format="nz")
    if text.endswith(W8A8):
        return parse_plan(text.removesuffix(W8A8)).replace(quant="w8a8")
    if text == "full":
        return PortPlan.full()
    if text == "production":
        return PortPlan.production()
    if text == "upstream":
        return PortPlan.upstream()
    if text.startswith("upto:"):
        return PortPlan.upto(text.removeprefix("upto:"))
    return PortPlan.with_steps(*(step(word.strip()).id for word in text.split(",")))


def parse_ints(text: str, what: str) -> list[int]:
    """`8,16` or `0-7`, or both mixed, as whole numbers."""
    found: list[int] = []
    for word in text.split(","):
        first, dash, last = word.strip().partition("-")
        if not first.isdecimal() or dash and not last.isdecimal():
            raise PortError(f"{what}: {text!r} is not a list of whole numbers such as 8,16 or 0-7")
        if len(first + last) > 12 or max(int(first), int(last or 0)) >= 1 << 20:
            raise PortError(f"{what}: {text[:60]!r} holds a number above {(1 << 20) - 1}")
        found += range(int(first), int(last) + 1) if dash else [int(first)]
    if not found:
        raise PortError(f"{what}: {text!r} is an empty range; write the smaller number first")
    return found


def parse_gib(text: str) -> float:
    """`64GiB`, `64` (GiB) or `64GB` (10^9 bytes), as GiB."""
    number, factor = text.strip(), 1.0
    for unit, size in (("gib", 1.0), ("gb", 1e9 / 2**30), ("g", 1.0)):
        if number.lower().endswith(unit):
            number, factor = number[: -len(unit)], size
            break
    try:
        value = float(number) * factor
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise PortError(f"--hbm: {text!r} is not a size such as 64GiB")
    return value


def long_dtype(name: str) -> str:
    return SHORT_DTYPES.get(name, name)


def read_prompts(texts: Sequence[str] | None, path: str | None, chat: bool) -> list[Any]:
    """`texts`, or a JSON list of texts or chat messages, or a dict of such lists as in
    data/prompts.json."""
    if texts:
        return list(texts)
    if not path:
        return ["Once upon a time"]
    file = Path(path)
    found = read_json(file)
    if isinstance(found, dict):
        found = found.get("chat" if chat else "completion")
    if (
        not isinstance(found, list)
        or not found
        or not all(isinstance(p, (str, list)) for p in found)
    ):
        raise PortError(
            f"{file}: must hold a list of prompts, each a text or a list of chat messages"
        )
    return found


def check_target(path: str | None, suffixes: Sequence[str] = ()) -> None:
    """Refuse a file that cannot be written before the work is done, not after it."""
    if path is None:
        return
    if suffixes and Path(path).suffix not in suffixes:
        raise PortError(f"{path}: its name must end in {' or '.join(suffixes)}")
    if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
        raise PortError(f"{path}: not a file in a folder that exists")


def check_positive(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(args, name) < 1:
            raise PortError(
                f"--{name.replace('_', '-')} must be 1 or more, not {getattr(args, name)}"
            )


def workload_arguments(p: argparse.ArgumentParser, rounds: int) -> None:
    """The flags named in WORKLOAD."""
    for name, default, text in (
        ("context", 1024, "cached positions of a decode step"),
        ("batch", 1, "sequences"),
        ("prefill", 128, "tokens of a prompt"),
        ("rounds", rounds, "interleaved rounds"),
    ):
        p.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")


def setting_arguments(p: argparse.ArgumentParser) -> None:
    """A flag for every setting of a run."""
    for row in TABLE:
        default = f", default {row.default}" if row.default != "" else ""
        text = f"{row.meaning} ({row.variable}{default})"
        p.add_argument(row.flag, dest=row.field, help=text)


def run_arguments(p: argparse.ArgumentParser) -> None:
    """What else a run needs to know: the device, the dtype, and how tokens are chosen."""
    p.add_argument(
        "--chat",
        dest="tokenizer_mode",
        action="store_const",
        const="chat",
        help="through the chat template, as --tokenizer-mode chat",
    )
    p.add_argument("--device", default="auto", help=DEVICE_HELP)
    p.add_argument("--dtype", help=DTYPE_HELP)
    p.add_argument(
        "--temperature",
        type=float,
        help="above 0 draws tokens, 0 is greedy (default: as generation_config.json says, else greedy)",
    )
    p.add_argument(
        "--top-k",
        type=int,
        help="draw among so many likeliest tokens; 0: all (default: that file's, else 50)",
    )
    p.add_argument(
        "--top-p",
        type=float,
        help="draw among the likeliest that have this probability (default: that file's, else 1)",
    )
    p.add_argument(
        "--generation-config",
        choices=("auto", "none"),
        default="auto",
        help="none: the folder's generation_config.json is not read",
    )
    p.add_argument("--seed", type=int, default=0, help="of the draws with a temperature")
