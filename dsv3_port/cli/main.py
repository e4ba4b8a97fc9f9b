"""The command line: arguments in, sentences out; dsv3_port/cli/commands.py prints what the rooms below
find.

Exit codes: 0 done; 1 done, and the answer is "no" (a notebook failed, models differ, a check of
doctor failed); 2 bad input or an unusable machine, told in one sentence; 130 interrupted. torch is
imported by the commands that need it, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from ..doctor.machine import import_torch
from ..engine.settings import TABLE
from ..errors import PortError
from ..version import __version__
from . import commands
from . import ge as commands_ge

DEVICE_HELP = "auto, cpu, cuda, npu or host-npu"
PLAN_HELP = "full, upstream, upto:STEP, or step ids separated by commas (`dsv3-port plan --steps` lists them)"
Command = Callable[[argparse.Namespace], int]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dsv3-port",
        description="Learn and carry out a port of DeepSeek-V3 inference to Ascend NPUs.",
    )
    parser.add_argument("--version", action="version", version=f"dsv3-port {__version__}")
    sub = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(run: Command, text: str, needs_torch: bool = True) -> argparse.ArgumentParser:
        made = sub.add_parser(run.__name__, help=text, description=text[0].upper() + text[1:] + ".")
        made.set_defaults(run=run, needs_torch=needs_torch)
        return made

    p = add(commands.doctor, "what this machine has, and what will run on it", needs_torch=False)
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument(
        "--room",
        action="store_true",
        help="also try what a course needs, without a network: text, a "
        "kernel, a compiled step, two ranks (about a minute)",
    )
    p = add(
        commands.hostnpu,
        "the real torch_npu on a machine without NPU and CANN: install it, or say what there is",
    )
    p.add_argument(
        "action",
        choices=("install", "status"),
        help="install: torch_npu of torch's version, 150 MB, into "
        "a folder of its own; status: whether device host-npu can be used, and why not",
    )
    _plan(
        add(
            commands.plan,
            "memory per card, from config.json alone; a forecast of times; or the steps of the port",
        )
    )
    _shard(add(commands.shard, "split a published checkpoint into one folder per rank"))
    _infer(
        add(commands.infer, "continue prompts; every setting is a flag and an environment variable")
    )
    _bench(add(commands.bench, "measure the ladder on this machine"))
    _record(add(commands.record, "a signed measurement of this device for data/recorded"))
    _compare(add(commands.compare, "find the first layer in which two models differ"))
    commands_ge.arguments(
        add(commands_ge.ge, "list, count, draw, run or compare converted GE graphs (.air, pbtxt)")
    )
    _tutorial(add(commands.tutorial, "execute the notebooks and build the pages"))
    return parser


def _plan(p: argparse.ArgumentParser) -> None:
    p.add_argument("--steps", action="store_true", help="print the steps of the port instead")
    p.add_argument(
        "--config", default="v3-671b", help="preset or checkpoint folder (default: %(default)s)"
    )
    p.add_argument(
        "--world-size",
        default="8,16,32,64",
        metavar="N,N",
        help="numbers of cards (default: %(default)s)",
    )
    p.add_argument("--hbm", default="64GiB", help="memory of a card (default: %(default)s)")
    p.add_argument(
        "--dtype",
        default="bf16",
        metavar="D,D",
        help="bf16, fp16, fp32, fp8, int8 (default: %(default)s)",
    )
    p.add_argument(
        "--batch", type=int, default=1, help="sequences in the KV cache (default: %(default)s)"
    )
    p.add_argument(
        "--seq-len", type=int, default=4096, help="positions of each (default: %(default)s)"
    )
    p.add_argument("--plan", default="full", help=PLAN_HELP)
    p.add_argument(
        "--forecast",
        metavar="CARD",
        nargs="?",
        const="a3",
        help="times instead: the roofline FORECAST of "
        "each step of the ladder in bfloat16 on a2, a2-280t or a3 (default), as ranges",
    )
    p.add_argument(
        "--prefill", type=int, default=1024, help="a forecast's prompt (default: %(default)s)"
    )
    p.add_argument("--json", action="store_true", help="print JSON")


def _shard(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model-path", required=True, help="checkpoint folder in the published format")
    p.add_argument("--output-path", required=True, help="folder for the rank folders")
    p.add_argument("--world-size", type=int, required=True, help="number of ranks")
    p.add_argument("--plan", default="full", help=PLAN_HELP)
    p.add_argument("--dtype", default="bf16", help="bf16, fp16 or fp32 (default: %(default)s)")
    p.add_argument(
        "--ranks", help="write these only, as in 0-7 or 0,3: several machines share one job"
    )
    p.add_argument("--jobs", type=int, help="threads (default: one more than cores, 8 at most)")
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, estimate memory, disk and time, write nothing",
    )
    p.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from what an interrupted run wrote (default), or begin unfinished ranks anew",
    )
    p.add_argument(
        "--verify", action="store_true", help="read everything back and compare the hashes"
    )
    p.add_argument("--json", action="store_true", help="print the report as JSON")


def _infer(p: argparse.ArgumentParser) -> None:
    for row in TABLE:
        default = f", default {row.default}" if row.default != "" else ""
        text = f"{row.meaning} ({row.variable}{default})"
        p.add_argument("--" + row.field.replace("_", "-"), dest=row.field, help=text)
    p.add_argument(
        "--prompt", action="append", help="a text to continue; may be given several times"
    )
    p.add_argument(
        "--prompts", metavar="FILE", help="JSON list of texts or of lists of chat messages"
    )
    p.add_argument(
        "--chat",
        dest="tokenizer_mode",
        action="store_const",
        const="chat",
        help="through the chat template, as --tokenizer-mode chat",
    )
    p.add_argument(
        "--pad", action="store_true", help="pad every prompt to INPUT_MAX_LEN in eager mode too"
    )
    p.add_argument("--plan", default="full", help=PLAN_HELP)
    p.add_argument("--device", default="auto", help=DEVICE_HELP)
    p.add_argument(
        "--dtype", help="float32, bfloat16 or float16 (default: float32 on cpu, else bfloat16)"
    )
    p.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    p.add_argument("--seed", type=int, default=0, help="of the draws with a temperature")
    p.add_argument(
        "--json", metavar="FILE", help="write texts, token ids, times and memory per rank there"
    )
    p.add_argument(
        "--show-settings",
        action="store_true",
        help="print every setting and where it came from; run nothing",
    )


def _bench(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--profile",
        default="w1",
        help="a preset (random weights, made once) or a checkpoint folder",
    )
    p.add_argument("--device", default="auto", help=DEVICE_HELP)
    p.add_argument(
        "--dtype", default="float32", help="float32, bfloat16 or float16 (default: %(default)s)"
    )
    p.add_argument(
        "--context",
        type=int,
        default=1024,
        help="cached positions of a decode step (default: %(default)s)",
    )
    p.add_argument("--batch", type=int, default=1, help="sequences (default: %(default)s)")
    p.add_argument(
        "--prefill", type=int, default=128, help="tokens of a prompt (default: %(default)s)"
    )
    p.add_argument(
        "--rounds", type=int, default=7, help="interleaved rounds (default: %(default)s)"
    )
    p.add_argument("--compile", action="store_true", help="the compiled full port, too")
    p.add_argument("--alone", action="store_true", help="each step alone, too")
    p.add_argument("--peer", action="store_true", help="transformers' own model, too")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", metavar="FILE", help="append the records to this JSON file")
    p.add_argument("--plot", metavar="FILE", help="draw the ladder there (.png or .svg)")


def _record(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or npu; the host stand-in is refused"
    )
    p.add_argument(
        "--profile", default="w1", help="a preset (random weights, made once; default: %(default)s)"
    )
    p.add_argument(
        "--dtype", help="float32, bfloat16 or float16 (default: float32 on cpu, else bfloat16)"
    )
    p.add_argument(
        "--context",
        type=int,
        default=1024,
        help="cached positions of a decode step (default: %(default)s)",
    )
    p.add_argument("--batch", type=int, default=1, help="sequences (default: %(default)s)")
    p.add_argument(
        "--prefill", type=int, default=128, help="tokens of a prompt (default: %(default)s)"
    )
    p.add_argument(
        "--rounds", type=int, default=9, help="interleaved rounds (default: %(default)s)"
    )
    p.add_argument("--eager", action="store_true", help="without the compiled full port")
    p.add_argument(
        "--busy",
        action="store_true",
        help="keep what was measured while others used the machine, marked",
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--out",
        metavar="DIR",
        default="data/recorded",
        help="folder of the file (default: %(default)s)",
    )


def _compare(p: argparse.ArgumentParser) -> None:
    p.add_argument("a", help="checkpoint folder")
    p.add_argument(
        "b", nargs="?", help="another one, or the word transformers (default: the same folder)"
    )
    p.add_argument("--plan-a", default="full", help=PLAN_HELP)
    p.add_argument("--plan-b", default="upstream", help="likewise for b (default: %(default)s)")
    p.add_argument("--device", default="auto", help=DEVICE_HELP)
    p.add_argument(
        "--dtype", help="float32, bfloat16 or float16 (default: float32 on cpu, else bfloat16)"
    )
    for which in "ab":
        p.add_argument(f"--device-{which}", metavar="DEVICE", help=f"of {which} alone")
        p.add_argument(f"--dtype-{which}", metavar="DTYPE", help=f"of {which} alone")
        p.add_argument(
            f"--ranks-{which}",
            type=int,
            default=0,
            metavar="N",
            help=f"run {which} over N ranks (default: as its folder was split, else 1)",
        )
    p.add_argument(
        "--prompt", action="append", help="text to run through both (default: random tokens)"
    )
    p.add_argument(
        "--tokens",
        type=int,
        default=24,
        help="random tokens, two rows of them (default: %(default)s)",
    )
    p.add_argument(
        "--rtol", type=float, help="largest difference over the largest value (default: by dtype)"
    )
    p.add_argument("--seed", type=int, default=0)


def _tutorial(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--only", action="append", metavar="N,N", help="these notebooks only, by number or name"
    )
    p.add_argument(
        "--profile", default="tiny", help="a file of ci/profiles, or a path (default: %(default)s)"
    )
    p.add_argument("--device", default="auto", help=f"{DEVICE_HELP}; auto is what the profile says")
    p.add_argument("--seed", type=int)
    p.add_argument(
        "--out", metavar="DIR", help="where pages and results go (default: out/ beside notebooks/)"
    )
    p.add_argument(
        "--notebooks",
        metavar="DIR",
        help="the notebooks' folder (default: the one of this checkout)",
    )
    p.add_argument(
        "--timeout", type=float, default=900.0, help="seconds for one cell (default: %(default)s)"
    )
    p.add_argument("--quiet", action="store_true", help="no progress bars")


def _require_torch() -> None:
    """A torch_npu without CANN breaks `import torch`: say so instead of showing its traceback."""
    torch, problem = import_torch()
    if torch is None:
        raise PortError(f"torch cannot be imported ({problem}); `dsv3-port doctor` says what to do")


def _out_of_memory(error: BaseException) -> bool:
    """torch raises its own kind on cuda and npu, and a plain RuntimeError on cpu."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or isinstance(error, RuntimeError)
        and "can't allocate memory" in str(error)
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        if args.needs_torch and not getattr(args, "steps", False):
            _require_torch()
        return int(args.run(args))
    except PortError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("\ndsv3-port: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `dsv3-port plan | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        message = f"out of memory ({' '.join(str(error).split())[:200]}); a smaller batch, context or model is needed"
    print(f"dsv3-port: {' '.join(message.split())}", file=sys.stderr)
    return 2
