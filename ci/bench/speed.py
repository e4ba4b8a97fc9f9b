"""The whole speed matrix, part by part: `python ci/bench/speed.py --part
{graphs,ladder,peer,limit,scaling,prompts,imports}`.

graphs   the full port's step eager, captured, compiled, and both, beside the device's bound of the same run; a decode
         step also with an attention that reads only what is filled of the cache (--buffer: how long that is)
ladder   every step, cumulative and alone, eager and compiled, with operators, KV-cache bytes and peak memory counted
peer     the full port beside transformers in each of its configurations, after the same prompt; or beside
         llama.cpp in each of its own (--with llama.cpp)
limit    compiled decode beside the memory's bandwidth, prefill beside the matmul's rate, measured in the same run
scaling  decode over context, batch and experts per token, prefill over length, with the fitted exponents
prompts  prefill of 512 to 16,384 tokens: with the scores in memory where they fit, whole, and by chunks; time and
         the most memory held at one time
imports  start of a process: torch, the package beyond it, `dsv3-port --help`

Without further arguments a part runs all its cases (minutes each; --list prints them with their
keys); --profile, --dtype, --phase, --batch and --size choose some. Nothing is timed before its
logits agree with the reference's. Results go to data/recorded/bench-<part>-<tier>.json, each case
in the place of the one it repeats; README's table is made of them. A busy machine is refused unless
--busy. Exit codes: 0, or 2 with a sentence.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from dsv3_port.bench.cases import Case

PROFILES = ("w1", "w2", "l")
LAYERS = tuple(f"{kind}-{ranks}" for kind in ("dense", "moe") for ranks in (8, 16, 32))
DECODE = tuple((batch, context) for context in (512, 2048, 8192) for batch in (1, 8))
PREFILL = ((1, 128), (1, 1024))
CURVES = {
    "context": (512, 1024, 2048, 4096, 8192),
    "batch": (1, 2, 4, 8, 16),
    "top": (2, 4, 8, 16),
    "tokens": (64, 128, 256, 512, 1024),
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ci/bench/speed.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--part",
        required=True,
        choices=("graphs", "ladder", "peer", "limit", "scaling", "prompts", "imports"),
    )
    parser.add_argument(
        "--profile",
        action="append",
        help="w1, w2, l, a checkpoint folder, or one layer of the 671B "
        f"model as one of so many ranks holds it: {', '.join(LAYERS)}; may be repeated",
    )
    parser.add_argument(
        "--dtype",
        action="append",
        help="float32 and bfloat16 (default: both on cpu, else bfloat16)",
    )
    parser.add_argument("--phase", choices=("decode", "prefill"), help="only this one")
    parser.add_argument("--batch", type=int, help="only this one")
    parser.add_argument(
        "--size", type=int, help="cached positions of decode, tokens of prefill: this one instead"
    )
    parser.add_argument("--curve", choices=tuple(CURVES), help="only this one (scaling)")
    parser.add_argument(
        "--rounds", type=int, default=9, help="interleaved rounds (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or npu")
    parser.add_argument(
        "--graph",
        choices=("ge", "aclgraph", "compiled-captured", "eager"),
        default="ge",
        help="what the full port's step becomes: compiled, on cuda captured, or both; scaling can be "
        "eager (default: %(default)s)",
    )
    parser.add_argument(
        "--with",
        dest="peers",
        action="append",
        metavar="PEER",
        help="peer: transformers (default) or llama.cpp, may be repeated; keys with llama.cpp end in -llama.cpp",
    )
    parser.add_argument(
        "--cpp-wrapper",
        action="store_true",
        help="limit, peer: the code between kernels in C++ too, "
        "also transformers', which takes longer to compile; keys end in -cpp",
    )
    parser.add_argument(
        "--buffer",
        type=int,
        default=1,
        metavar="N",
        help="graphs, decode: a cache N times as long as what is filled (default: 1); keys end in -bufferN",
    )
    parser.add_argument("--main", action="store_true", help="the main rungs of the ladder only")
    parser.add_argument(
        "--list", action="store_true", help="print the keys of the cases, run nothing"
    )
    parser.add_argument(
        "--busy", action="store_true", help="keep what was measured while others used the machine"
    )
    parser.add_argument(
        "--out", default=str(ROOT / "data" / "recorded"), help="folder of the results"
    )
    return parser.parse_args(argv)


def layer(profile: str) -> Any:
    """A profile's name, or for one layer its random checkpoint."""
    from dsv3_port.weights.synthetic import single_layer_config, synthetic_checkpoint

    kind, _, ranks = profile.rpartition("-")
    return (
        synthetic_checkpoint(single_layer_config(kind, int(ranks)))
        if profile in LAYERS
        else profile
    )


def sizes(args: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """(phase, batch, context or tokens) that the arguments leave."""
    matrix = [("decode", b, s) for b, s in DECODE] + [("prefill", b, s) for b, s in PREFILL]
    if args.part != "ladder":  # the sizes that the figures of README are about
        matrix = [("decode", b, 1024) for b in (1, 8)] + [m for m in matrix if m[1] == 1]
    seen = set()
    for phase, batch, size in matrix:
        if args.phase not in (None, phase) or (
            args.part == "ladder" and args.batch not in (None, batch)
        ):
            continue
        row = (phase, args.batch or batch, args.size or size)
        if row not in seen:
            seen.add(row)
            yield row


def cases(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(key, what measures it)."""
    from dsv3_port.bench import parts
    from dsv3_port.engine.device import pick_device

    if args.part == "imports":
        yield "start-of-a-process", lambda: parts.imports_case(args.rounds)
        return
    where = pick_device(args.device)
    on_cpu = where.type == "cpu"
    common: dict[str, Any] = {"device": str(where), "rounds": args.rounds}
    if args.part != "graphs":
        common["graph"] = args.graph
    for profile in args.profile or PROFILES:
        for dtype in args.dtype or (("float32", "bfloat16") if on_cpu else ("bfloat16",)):
            if args.part == "prompts":
                lengths = (args.size,) if args.size else parts.LENGTHS
                at = {
                    "dtype": dtype,
                    "lengths": lengths,
                    "device": str(where),
                    "rounds": args.rounds,
                }
                yield (
                    f"{profile}-{dtype}-prefill-over-prompts",
                    partial(parts.prompts_case, layer(profile), profile, **at),
                )
                continue
            if args.part == "scaling":
                for curve in [args.curve] if args.curve else CURVES:
                    phase = "prefill" if curve == "tokens" else "decode"
                    yield (
                        f"{profile}-{dtype}-{phase}-over-{curve}",
                        partial(
                            parts.scaling_case,
                            curve,
                            CURVES[curve],
                            profile,
                            dtype=dtype,
                            context=args.size or 1024,
                            **common,
                        ),
                    )
                continue
            for phase, batch, size in sizes(args):
                llama = "-llama.cpp" * ("llama.cpp" in (args.peers or ()))
                yield (
                    parts.key_of(profile, dtype, phase, batch, size)
                    + llama
                    + "-cpp" * args.cpp_wrapper
                    + f"-buffer{args.buffer}" * (args.buffer != 1),
                    partial(
                        run_sized,
                        args,
                        profile,
                        dtype=dtype,
                        phase=phase,
                        batch=batch,
                        size=size,
                        **common,
                    ),
                )


def run_sized(args: argparse.Namespace, profile: str, **at: Any) -> Case:
    from dsv3_port.bench import parts

    if args.part == "ladder":
        return parts.ladder_case(
            layer(profile), profile, every=not args.main and profile not in LAYERS, **at
        )
    if args.part == "graphs":
        return parts.graphs_case(layer(profile), profile, buffer=args.buffer, **at)
    at["options"] = {"cpp_wrapper": True} if args.cpp_wrapper else None
    if args.part == "peer":
        return parts.peer_case(layer(profile), profile, peers=args.peers or ["transformers"], **at)
    return parts.limit_case(layer(profile), profile, **at)


def report(key: str, case: Case) -> None:
    print(f"\n## {key}\n\n{case.results.table()}")
    for name, facts in case.facts.items():
        print(f"{name}: " + ", ".join(f"{what} {value:g}" for what, value in facts.items()))
    for name, why in case.left_out.items():
        print(f"left out: {name}: {why}")
    sys.stdout.flush()


def main(argv: list[str]) -> int:
    args = parse(argv)
    from dsv3_port.bench import cases as bench
    from dsv3_port.errors import PortError

    try:
        if args.graph == "eager" and args.part != "scaling":
            raise PortError(
                "--graph eager belongs to --part scaling: the others time the compiled port"
            )
        if args.peers and args.part != "peer":
            raise PortError("--with belongs to --part peer")
        if args.buffer != 1 and args.part != "graphs":
            raise PortError("--buffer belongs to --part graphs")
        for key, run in cases(args):
            if args.list:
                print(key)
                continue
            case = dataclasses.replace(run(), key=key)
            report(key, case)
            if case.results.busy and not args.busy:
                raise PortError(
                    f"{key}: other processes used this machine meanwhile: not kept; try again when it is "
                    "quiet, or give --busy"
                )
            print(f"kept in {bench.save(args.out, args.part, case.records[0].device, {key: case})}")
    except PortError as error:
        print(f"ci/bench/speed.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
