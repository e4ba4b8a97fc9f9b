"""What the vendor's tests of PyTorch's own operators gave the last time that all were run
(vendor_results.json, which ci/tools/vendor_record.py writes): docs/host-npu.md prints it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("vendor_results.json")
MEANINGS = {
    "passed": "",
    "refused": "refused by name: the host NPU has no kernel for the operator, and says so",
    "broken": "cannot pass on any device, or proves nothing: `vendor_broken.json` says why",
    "failed": "below",
    "skipped": "by the tests themselves: other chips, versions of CANN, by hand",
    "left out": "files that start processes on several cards",
}
GOOD = ("passed", "refused", "broken")


def record(results: Iterable[dict[str, Any]], why: dict[str, str]) -> dict[str, Any]:
    """The record of these results (vendor_tests.Result as dicts). why: `file::test` patterns of those
    that fail, with the reason; what is in none keeps its own message."""
    found = list(results)
    failed: dict[str, list[str]] = {}
    for r in (r for r in found if r["outcome"] == "failed"):
        name = f"{r['file']}::{r['test']}"
        reason = next((w for p, w in why.items() if fnmatchcase(name, p)), r["reason"])
        failed.setdefault(reason, []).append(name)
    counts = Counter(r["outcome"] for r in found)
    return {
        "files": len({r["file"] for r in found}),
        "counts": {o: counts[o] for o in MEANINGS},
        "failed": failed,
    }


def share(counts: dict[str, int]) -> float:
    """Of those that ran: passed, refused by name, or broken whatever the device."""
    good = sum(counts[o] for o in GOOD)
    return good / (good + counts["failed"])


def table() -> str:
    data = json.loads(DATA.read_text(encoding="utf-8"))
    counts = data["counts"]
    good, ran = sum(counts[o] for o in GOOD), sum(counts[o] for o in (*GOOD, "failed"))
    rows = [
        f"{data['files']} files, {sum(counts.values()):,} tests; {ran:,} ran, of which {good:,} "
        f"({share(counts):.1%}) pass, are refused by name or cannot pass anywhere.",
        "",
        "| outcome | tests | what that is |",
        "|---|---|---|",
    ]
    rows += [f"| {o} | {counts[o]:,} | {MEANINGS[o]} |" for o in MEANINGS if counts[o]]
    if data["failed"]:
        rows += ["", "| failed | why |", "|---|---|"]
    for reason, names in sorted(data["failed"].items(), key=lambda item: -len(item[1])):
        shown = ", ".join(f"`{n.removesuffix('::')}`" for n in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        rows.append(f"| {shown}{more} | {reason.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)
