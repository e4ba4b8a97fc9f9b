"""Time and memory of the splitter on DeepSeek-V3's own widths: `python ci/bench/bench_shard.py --work DIR
--out FILE`.

Makes checkpoints of several sizes under DIR (gigabytes; removed afterwards) and measures,
interleaved round by round, each in a process of its own:

split     `shard_checkpoint` to 8 ranks, FP8 blocks dequantised to bfloat16, flushed to the disk
read      the source's files from front to back, into one buffer
write     as many bytes as the split writes, from one buffer, flushed: with read, the disk's bound
kernel    dequantising alone on every core, in memory: the processor's bound
split8, write8, kernel8: the same of the split to int8 (`--quant w8a8`), whose kernel also quantises
ordinary  whole source shards in memory, one file a rank at the end, as most conversion scripts do
cp, copy  a bfloat16 checkpoint copied by `cp` and flushed; and split to 8 ranks, which needs no arithmetic

The source is dropped from the page cache before every turn (posix_fadvise), as one larger than
memory would be.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench_shard_kinds import BYTES, BYTES8, KINDS, RANKS

FP8_KINDS, EIGHT = ["read", "write", "kernel", "split"], ["write8", "kernel8", "split8"]

# ---- a turn --------------------------------------------------------------------------------------


def child(kind: str, source: Path, target: Path) -> None:
    """Run one kind here; prints seconds, bytes and the peaks of memory (RssAnon and of the whole
    process)."""
    import torch  # noqa: F401  imported before the clock starts

    import dsv3_port.weights.sharding  # noqa: F401

    peak, ended = {"RssAnon": 0, "VmRSS": 0}, threading.Event()

    def watch() -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            for key in peak:
                peak[key] = max(
                    peak[key], next(int(x.split()[1]) for x in lines if x.startswith(key)) << 10
                )
            if ended.wait(0.02):
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    moved = KINDS[kind](source, target)
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    print(
        json.dumps(
            {
                "kind": kind,
                "seconds": seconds,
                "bytes": moved,
                "rss_anon": peak["RssAnon"],
                "rss": peak["VmRSS"],
            }
        )
    )


def turn(kind: str, source: Path, work: Path) -> dict[str, Any]:
    target = work / "target"
    shutil.rmtree(target, ignore_errors=True)
    for file in source.glob("*.safetensors"):
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    done = subprocess.run(
        [sys.executable, __file__, "--child", kind, str(source), str(target)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    shutil.rmtree(target, ignore_errors=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"  {kind:9s} {found['seconds']:7.2f} s  {found['bytes'] / 1e9:6.2f} GB  "
        f"peak {found['rss_anon'] / 2**30:.2f} GiB",
        flush=True,
    )
    return found


def prepare(work: Path, experts: int, fp8: bool) -> Path:
    from dsv3_port.parallel import TensorParallel
    from dsv3_port.plan import PortPlan
    from dsv3_port.weights.layout import targets
    from dsv3_port.weights.sharding import DTYPES
    from dsv3_port.weights.sharding.plan import target_bytes
    from dsv3_port.weights.synthetic import random_codes_checkpoint, real_size_config

    config = real_size_config(experts)
    source = random_codes_checkpoint(
        work / f"source-{experts}-{'fp8' if fp8 else 'bf16'}", config, fp8=fp8, shard_bytes=1 << 30
    )
    for name, quant in ((BYTES, "none"), (BYTES8, "w8a8")):
        plan = PortPlan.full().replace(quant=quant)
        wanted = targets(config, plan, TensorParallel(0, RANKS))
        total = RANKS * sum(target_bytes(t, DTYPES["bf16"]) for t in wanted)
        (source / name).write_text(str(total))
    return source


def fp8_values(source: Path) -> int:
    from dsv3_port.weights.checkpoint import Checkpoint
    from dsv3_port.weights.fp8 import FP8

    checkpoint = Checkpoint.open(source)
    return sum(
        checkpoint.place(n)[2] for n in checkpoint.names if checkpoint.stored_dtype(n) == FP8
    )


# ---- the report ----------------------------------------------------------------------------------


def bounded(rows: list[dict[str, Any]], eight: str = "") -> dict[str, Any]:
    """A split against this machine's bound. eight: "8" of the one to int8."""
    split, write, kernel = (kind + eight for kind in ("split", "write", "kernel"))
    bound = [
        max(
            seconds(t, "read") + seconds(t, write),
            t["codes"] / (t[kernel]["bytes"] / seconds(t, kernel)),
        )
        for t in rows
    ]
    return {
        "source_bytes": rows[0]["source_bytes"],
        "seconds": spread([seconds(t, split) for t in rows]),
        "bound_seconds": spread(bound),
        "share_of_bound": spread([b / seconds(t, split) for b, t in zip(bound, rows, strict=True)]),
        "bytes_a_second": spread([t[split]["bytes"] / seconds(t, split) for t in rows]),
        "rss_anon": max(t[split]["rss_anon"] for t in rows),
    }


def seconds(row: dict[str, Any], kind: str) -> float:
    return float(row[kind]["seconds"])


def summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and quartiles of ratios that are paired within a round."""
    fp8 = [t for t in turns if "split" in t and "read" in t]
    out: dict[str, Any] = {"sizes": [], "int8": []}
    for source in dict.fromkeys(t["source_bytes"] for t in fp8):
        rows = [t for t in fp8 if t["source_bytes"] == source]
        out["sizes"].append(bounded(rows))
        both = [t for t in rows if "split8" in t]
        if both:
            times = [seconds(t, "split8") / seconds(t, "split") for t in both]
            out["int8"].append(bounded(both, "8") | {"times_bf16": spread(times)})
    pairs = [t for t in fp8 if "ordinary" in t]
    if pairs:
        out["ordinary"] = {
            "times_faster": spread([seconds(t, "ordinary") / seconds(t, "split") for t in pairs]),
            "share_of_memory": spread(
                [t["split"]["rss_anon"] / t["ordinary"]["rss_anon"] for t in pairs]
            ),
            "rss_anon": max(t["ordinary"]["rss_anon"] for t in pairs),
        }
    copies = [t for t in turns if "cp" in t]
    if copies:
        out["without_dequantising"] = {
            "share_of_cp": spread([seconds(t, "cp") / seconds(t, "split") for t in copies])
        }
    return out


def spread(values: list[float]) -> dict[str, Any]:
    low, high = (
        (min(values), max(values)) if len(values) < 4 else statistics.quantiles(values, n=4)[::2]
    )
    return {"median": statistics.median(values), "low": low, "high": high, "n": len(values)}


def plot(found: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    fig = Figure((6.4, 4), layout="constrained")
    ax = fig.subplots()
    for key, label, marker in (
        ("seconds", "split to 8 ranks", "o"),
        ("bound_seconds", "bound of this machine", "s"),
    ):
        x = [s["source_bytes"] / 1e9 for s in found["sizes"]]
        y = [s[key] for s in found["sizes"]]
        ax.errorbar(
            x,
            [v["median"] for v in y],
            [[v["median"] - v["low"] for v in y], [v["high"] - v["median"] for v in y]],
            marker=marker,
            label=label,
            capsize=4,
        )
    ax.set(
        xlabel="source, GB (FP8)",
        ylabel="seconds",
        title="Cost grows with the bytes",
        xlim=(0, None),
        ylim=(0, None),
    )
    ax.legend(frameon=False)
    fig.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="folder on the disk to be measured")
    parser.add_argument(
        "--experts",
        default="16,32,64",
        help="sizes: experts of 44 MB of FP8 (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--ordinary-at",
        type=int,
        default=32,
        help="size at which the ordinary way runs too; 0: never",
    )
    parser.add_argument(
        "--int8-at", type=int, default=32, help="size that is split to int8 too; 0: never"
    )
    parser.add_argument(
        "--cp-at",
        type=int,
        default=16,
        help="size of the paired copy of a bf16 checkpoint; 0: never",
    )
    parser.add_argument(
        "--out", type=Path, help="JSON file; turns are added to those of the same machine in it"
    )
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]), Path(args.child[2]))
        return 0
    if args.work is None:
        parser.error("--work is needed")
    args.work.mkdir(parents=True, exist_ok=True)
    turns = json.loads(args.out.read_text())["turns"] if args.out and args.out.is_file() else []
    plans = [
        (
            n,
            True,
            [*FP8_KINDS, *EIGHT * (n == args.int8_at), *["ordinary"] * (n == args.ordinary_at)],
        )
        for n in (int(word) for word in args.experts.split(",") if word)
    ]
    plans += [(args.cp_at, False, ["cp", "split"])] if args.cp_at else []
    for experts, fp8, kinds in plans:
        source = prepare(args.work, experts, fp8)
        size = sum(f.stat().st_size for f in source.glob("*.safetensors"))
        codes = fp8_values(source)
        print(f"{experts} experts, {size / 1e9:.2f} GB, {'FP8' if fp8 else 'BF16'}", flush=True)
        for number in range(args.rounds):
            order = kinds if number % 2 == 0 else kinds[::-1]
            turns.append(
                {
                    "experts": experts,
                    "source_bytes": size,
                    "codes": codes,
                    **{kind: turn(kind, source, args.work) for kind in order},
                }
            )
        shutil.rmtree(source)
    found = summary(turns)
    print(json.dumps(found, indent=1))
    if args.out:
        args.out.write_text(
            json.dumps(
                {
                    "machine": {"cores": os.cpu_count(), "jobs": "default"},
                    "turns": turns,
                    "summary": found,
                },
                indent=1,
            )
            + "\n"
        )
    if args.plot:
        plot(found, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
