"""What the host NPU costs beside an earlier state of this code: `python ci/bench/hostnpu_overhead.py
[--before COMMIT] [--rounds N]`.

Three folders are laid out by `git archive`: the earlier commit (default: v0.1.0), this commit, and
this commit again; what the last two differ by is what this run cannot tell from nothing. Turns are
interleaved, each a process of its own, the order another one in every round. A turn measures

enable   hostnpu.enable() and the first operator, torch being imported already
decode   a decode step of the tiny model, full port, float32, median of 64 tokens
add, mm  an operator of 64 x 64 numbers

These are processor times of the stand-in, never times of an NPU, and nothing else shows them. The
table has the median, the quartiles, and the ratio of medians. Exit code 1 where enable is slower
than before by more than twice the noise, or decode by more than 10 %; 2 with a sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

FOLDERS = ("before", "now", "again")
ALLOWED = {"decode": 1.10}  # a decode step may take a tenth more

TURN = """
import json, statistics, sys, time
import torch

def per_call(call):
    found = []
    for _ in range(30):
        start = time.perf_counter()
        for _ in range(100):
            call()
        found.append((time.perf_counter() - start) / 100)
    return statistics.median(found)

start = time.perf_counter()
import dsv3_port.hostnpu
dsv3_port.hostnpu.enable()
torch.ones(2, device="npu").add(1).cpu()
found = {"enable": time.perf_counter() - start}
assert dsv3_port.__file__.startswith(sys.argv[2]), dsv3_port.__file__
x = torch.ones(64, 64, device="npu")
found["add"], found["mm"] = per_call(lambda: x + x), per_call(lambda: x @ x)
try:
    from dsv3_port.engine.generate import generate
    from dsv3_port.engine.loading import load_model
except ImportError:  # v0.1.0
    from dsv3_port.engine.runner import generate, load_model
from dsv3_port.engine.tokenizer import load_tokenizer

model, tokenizer = load_model(sys.argv[1], device="npu", dtype="float32"), load_tokenizer(sys.argv[1])
for _ in range(2):  # the first one's kernels are met for the first time
    (done,) = generate(model, tokenizer, ["Once upon a time"], 64)
found["decode"] = done.seconds_per_token
print("FOUND", json.dumps({"seconds": found, "tokens": done.token_ids}))
"""


def lay_out(commit: str, folder: Path) -> None:
    folder.mkdir()
    names = ("dsv3_port", "data/tiny-dsv3")
    with tempfile.TemporaryFile() as archive:
        command = ["git", "-C", str(ROOT), "archive", commit, *names]
        subprocess.run(command, check=True, stdout=archive)
        archive.seek(0)
        subprocess.run(["tar", "x", "-C", str(folder)], check=True, stdin=archive)


def turn(checkout: Path, checkpoint: Path, empty: Path) -> tuple[dict[str, float], list[int]]:
    """Seconds by what was measured, and the tokens. empty: the working folder, as torch_npu walks
    through the one where it is imported."""
    from dsv3_port.hostnpu.install import find

    env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    env["DSV3_TORCH_NPU_DIR"] = str(find())
    command = [sys.executable, "-c", TURN, str(checkpoint), str(checkout)]
    done = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if done.returncode or not lines:
        raise RuntimeError(f"{checkout.name}: {(done.stderr or done.stdout).strip()[-800:]}")
    found = json.loads(lines[0].removeprefix("FOUND "))
    return found["seconds"], found["tokens"]


def measure(before: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round, by what was measured and folder."""
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as work:
        empty = Path(work) / "empty"
        empty.mkdir()
        for name in FOLDERS:
            lay_out(before if name == "before" else "HEAD", Path(work) / f"{name:_<6}")
        checkouts = {name: Path(work) / f"{name:_<6}" for name in FOLDERS}
        checkpoint = checkouts["now"] / "data" / "tiny-dsv3"
        for n in range(rounds + 1):  # the first compiles the stand-in and fills the page cache
            said = {}
            for i in range(len(FOLDERS)):
                name = FOLDERS[(n + i) % len(FOLDERS)]
                seconds, said[name] = turn(checkouts[name], checkpoint, empty)
                for what, value in seconds.items() if n else ():
                    found.setdefault(what, {}).setdefault(name, []).append(value)
            if said["now"] != said["before"]:
                print(
                    "the two chose different tokens: another sequence, other work", file=sys.stderr
                )
            print(f"round {n} of {rounds}" if n else "warm", file=sys.stderr, flush=True)
    return found


def text(values: list[float]) -> str:
    low, high = (min(values), max(values))
    if len(values) > 3:
        low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values) * 1e3:.3g} [{low * 1e3:.3g}, {high * 1e3:.3g}]"


def judged(found: dict[str, dict[str, list[float]]]) -> tuple[list[list[str]], list[str]]:
    """Rows of the table, and what is slower than it may be."""
    rows, slow = [], []
    for what, by in found.items():
        middle = {name: statistics.median(values) for name, values in by.items()}
        ratio, noise = middle["now"] / middle["before"], abs(middle["again"] / middle["now"] - 1)
        rows.append([what, *(text(by[n]) for n in FOLDERS), f"{ratio:.3f}", f"{noise:.1%}"])
        if ratio > ALLOWED.get(what, 1 + 2 * noise) and what in ("enable", "decode"):
            slow.append(f"{what}: {ratio:.3f} times as long as before")
    return rows, slow


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", default="v0.1.0", metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=9, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round's seconds")
    args = parser.parse_args(argv)
    from tabulate import tabulate

    from dsv3_port.bench.machine import BUSY_SHARE, BusyWatch

    watch = BusyWatch()
    try:
        found = measure(args.before, args.rounds)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"ci/bench/hostnpu_overhead.py: {error}", file=sys.stderr)
        return 2
    watch.look()
    rows, slow = judged(found)
    heads = ["milliseconds", args.before, "now", "now again", "now / before", "noise"]
    print(tabulate(rows, headers=heads, tablefmt="simple", disable_numparse=True))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if watch.share > BUSY_SHARE:
        print(f"no verdict: others used {watch.share:.0%} of this machine")
        return 2
    print("\n".join(slow) or "nothing is slower than it may be")
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
