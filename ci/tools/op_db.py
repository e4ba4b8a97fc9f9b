"""PyTorch's own operator database over the host NPU: `python ci/tools/op_db.py [--every N] [--only NAME]`.

Each operator of torch.testing's op_db runs with its first samples on the CPU and on device npu, in
float32 (or the first dtype that it has), forward and backward, and is put into one word: equal, close
(one rounding), differs, refused (named by the stand-in or by torch_npu), error. Random results and
memory that nobody wrote are left out. All goes to the screen, what is not equal to --json as well.
Needs expecttest, which torch.testing imports. --against FILE: exit code 1 if a word got worse.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

WORDS = ("equal", "close", "refused", "error", "differs", "left out")
RANK = {"equal": 0, "left out": 0, "close": 1, "refused": 2, "error": 3, "differs": 4}
SECONDS = 20  # an operator
UNWRITTEN = ("empty", "new_empty", "resize_", "resize_as_", "as_strided_scatter.partial_views")


class Slow(Exception):
    """An operator took longer than its time."""


def _late(number: int, frame: object) -> None:
    raise Slow


def moved(tree: Any, device: str, seen: dict[int, Any]) -> Any:
    """The samples on a device: one tensor that is used twice stays one tensor."""
    import torch
    from torch.utils._pytree import tree_map_only

    def move(x: torch.Tensor) -> torch.Tensor:
        if id(x) not in seen:
            copy = x.detach().to(device) if device != "cpu" else x.detach().clone()
            seen[id(x)] = copy.requires_grad_(x.requires_grad)
        return seen[id(x)]

    return tree_map_only(torch.Tensor, move, tree)


def results(op: Any, sample: Any, device: str, dtype: Any) -> list[Any]:
    """Forward results and gradients, on the CPU."""
    import torch
    from torch.utils._pytree import tree_leaves

    seen: dict[int, Any] = {}
    given = moved((sample.input, sample.args, sample.kwargs), device, seen)
    kwargs = {k: device if k == "device" else v for k, v in given[2].items()}
    torch.manual_seed(0)
    out = [t for t in tree_leaves(op(given[0], *given[1], **kwargs)) if isinstance(t, torch.Tensor)]
    leaves = [t for t in seen.values() if t.requires_grad]
    depends = [t for t in out if t.requires_grad and t.grad_fn is not None]
    if op.supports_autograd and leaves and depends:
        total = sum((t.abs() if t.is_complex() else t).sum() for t in depends)
        assert isinstance(total, torch.Tensor)
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
        out += [g for g in grads if g is not None]
    return [
        t.detach().to_dense().cpu() if t.layout != torch.strided else t.detach().cpu() for t in out
    ]


def compare(ours: list[Any], theirs: list[Any]) -> str:
    import torch

    if len(ours) != len(theirs):
        return "differs"
    worst = "equal"
    for a, b in zip(ours, theirs, strict=True):
        if a.dtype.is_floating_point and a.dtype.itemsize == 1:  # few operators take 8 bits
            a, b = a.float(), b.float()
        if a.dtype == torch.complex32:
            a, b = a.to(torch.complex64), b.to(torch.complex64)
        if (
            a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(a.nan_to_num(), b.nan_to_num())
        ):
            continue
        try:
            torch.testing.assert_close(a, b, equal_nan=True)
        except (AssertionError, TypeError):
            return "differs"
        worst = "close"
    return worst


def judge(op: Any, samples: int) -> tuple[str, str]:
    """(word, reason) of one operator."""
    import torch

    if op.name in UNWRITTEN or "random" in op.name or not op.dtypes:
        return "left out", ""
    dtype = torch.float32 if torch.float32 in op.dtypes else sorted(op.dtypes, key=str)[0]
    worst, why = "left out", ""
    signal.alarm(SECONDS)
    try:
        grad = op.supports_autograd and dtype.is_floating_point
        for i, sample in enumerate(op.sample_inputs("cpu", dtype, requires_grad=grad)):
            if i >= samples:
                break
            try:
                wanted = results(op, sample, "cpu", dtype)
                again = results(op, sample, "cpu", dtype)
            except Exception:
                continue  # the CPU itself has no such form
            if compare(wanted, again) != "equal":
                return "left out", "random"
            try:
                word, text = compare(results(op, sample, "npu", dtype), wanted), ""
            except NotImplementedError as error:
                word, text = "refused", str(error)
            except Slow:
                raise
            except Exception as error:
                word, text = "error", f"{type(error).__name__}: {error}"
            if worst == "left out" or RANK[word] > RANK[worst]:
                worst, why = word, " ".join(text.split())[:160]
    except Slow:
        return "left out", f"longer than {SECONDS} s"
    finally:
        signal.alarm(0)
    return worst, why


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each N-th operator")
    parser.add_argument("--only", default="", metavar="NAME")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--against", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    try:
        import expecttest  # noqa: F401
    except ImportError:
        print("ci/tools/op_db.py: torch.testing needs expecttest: pip install it", file=sys.stderr)
        return 2
    from dsv3_port import hostnpu

    hostnpu.enable(2)
    from torch.testing._internal.common_methods_invocations import op_db

    warnings.simplefilter("ignore")
    random.seed(0)
    signal.signal(signal.SIGALRM, _late)
    words: dict[str, tuple[str, str]] = {}
    for op in [o for o in op_db if args.only in o.name][:: args.every]:
        name = f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name
        words[name] = judge(op, args.samples)
        print(f"{words[name][0]:9} {name}  {words[name][1]}", flush=True)
    counts = Counter(word for word, _ in words.values())
    print(", ".join(f"{counts[w]} {w}" for w in WORDS), f"of {len(words)}")
    if args.json:  # what isn't equal
        rest = {name: found for name, found in sorted(words.items()) if found[0] != "equal"}
        args.json.write_text(json.dumps(rest, indent=1) + "\n", encoding="utf-8")
    if args.against is None:
        return 0
    before = json.loads(args.against.read_text(encoding="utf-8"))
    was = {n: before.get(n, ("equal", ""))[0] for n in words}
    worse = [f"{n}: {was[n]} -> {w}" for n, (w, _) in words.items() if RANK[w] > RANK[was[n]]]
    print("\n".join(worse) or "none got worse")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
