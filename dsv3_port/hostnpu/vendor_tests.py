"""The vendor's operator tests over the host NPU, from a checkout that the user names: nothing of it is
kept or copied.

One process a file, because a test may leave torch_npu in another state; results as JUnit's XML, which
every pytest writes. A test that cannot pass on any device, or proves nothing, is in
vendor_broken.json by name, with the reason.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from tabulate import tabulate

from ..errors import PortError
from . import why_not
from .vendor_child import HIDDEN, LIFT, LIMIT

BROKEN = Path(__file__).with_name("vendor_broken.json")
PACKAGES = ("pytest", "expecttest")  # torch_npu.testing imports the second
SEVERAL_CARDS = (
    "skipIfUnsupportMultiNPU"  # such a test starts children, which never enable anything
)
OUTCOMES = ("passed", "refused", "broken", "failed", "skipped", "left out")
NO_KERNEL = "the host stand-in has no kernel"


@dataclass(frozen=True)
class Result:
    """One test, or one file that gave none. outcome: one of OUTCOMES."""

    file: str
    test: str
    outcome: str
    reason: str
    hidden: bool = False


def broken(file: str, test: str, known: dict[str, str]) -> str:
    """Why a test is known to be broken; "" if it is not."""
    name = f"{file}::{test.split(HIDDEN)[0]}"
    return next((why for pattern, why in known.items() if fnmatch.fnmatchcase(name, pattern)), "")


def known_broken() -> dict[str, str]:
    """`file::test` patterns and the reason of each."""
    found: dict[str, str] = json.loads(BROKEN.read_text(encoding="utf-8"))
    return found


def read(report: Path, file: str, known: dict[str, str]) -> list[Result]:
    """The tests of one file from its XML."""
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        test = case.get("name", "")
        outcome, reason = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome = "skipped" if child.tag == "skipped" else "failed"
                text = child.get("message") or child.text or ""
                reason = " ".join(text.split())[:200]
                if NO_KERNEL in text or NO_KERNEL in (child.text or ""):
                    outcome = "refused"
        why = broken(file, test, known)
        if why and outcome == "failed":
            outcome, reason = "broken", why
        found.append(Result(file, test, outcome, reason, HIDDEN in test))
    return found


def files(checkout: Path, folder: str, only: str) -> list[Path]:
    where = checkout / "test" / folder
    if not where.is_dir():
        raise PortError(
            f"{checkout}: there is no test/{folder} in it; a checkout of Ascend/op-plugin is wanted"
        )
    found = sorted(where.rglob("test_*.py"))
    chosen = [f for f in found if only in f.name or f"def {only}" in f.read_text(encoding="utf-8")]
    if not chosen:
        raise PortError(f"--only {only}: no file or test of {where} has that in its name")
    return chosen


def one(
    file: Path, lifted: bool, only: str, limits: tuple[int, int], known: dict[str, str]
) -> list[Result]:
    """Run one file in a process of its own. limits: seconds for a test and for the file."""
    if SEVERAL_CARDS in file.read_text(encoding="utf-8"):
        return [Result(file.name, "", "left out", "needs several cards in child processes")]
    with tempfile.TemporaryDirectory() as work:
        report = Path(work) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-c", os.devnull]
        command += ["--rootdir", str(file.parent), "-p", "no:cacheprovider"]
        command += ["-p", "dsv3_port.hostnpu.vendor_child", f"--junitxml={report}", str(file)]
        if only and only not in file.name:
            command += ["-k", only]
        env = {
            **os.environ,
            LIMIT: str(limits[0]),
            LIFT: "1" if lifted else "",
            "OMP_NUM_THREADS": "1",
        }
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=env, timeout=limits[1]
            )
        except subprocess.TimeoutExpired:
            return [Result(file.name, "", "failed", f"the file took longer than {limits[1]} s")]
        if not report.is_file():
            last = " ".join((done.stdout + done.stderr).split())[-200:]
            return [
                Result(file.name, "", "failed", f"the process ended with {done.returncode}: {last}")
            ]
        return read(report, file.name, known)


def results(
    chosen: list[Path], lifted: bool, only: str, limits: tuple[int, int]
) -> Iterator[tuple[Path, list[Result]]]:
    known = known_broken()
    for file in chosen:
        yield file, one(file, lifted, only, limits, known)


def table(found: list[Result]) -> str:
    rows = []
    for file in dict.fromkeys(r.file for r in found):
        counts = Counter(r.outcome for r in found if r.file == file)
        rows.append([file, *(counts[o] or "" for o in OUTCOMES)])
    total = Counter(r.outcome for r in found)
    rows.append(["all", *(total[o] for o in OUTCOMES)])
    return tabulate(rows, headers=["file", *OUTCOMES], tablefmt="simple")


def run(
    checkout: Path,
    *,
    folder: str = "test_custom_ops",
    lifted: bool = False,
    only: str = "",
    limits: tuple[int, int] = (120, 900),
    into: Path = Path("vendor-tests.json"),
) -> int:
    """Run, print and write. Returns 0, or 1 where a test failed that is not known to be broken."""
    reason = why_not()
    if reason:
        raise PortError(reason)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise PortError(
            f"the vendor's tests need {' and '.join(missing)}: pip install {' '.join(missing)}"
        )
    chosen, found, start = files(checkout, folder, only), [], time.monotonic()
    for n, (file, part) in enumerate(results(chosen, lifted, only, limits), 1):
        found += part
        counts = Counter(r.outcome for r in part)
        said = ", ".join(f"{counts[o]} {o}" for o in OUTCOMES if counts[o]) or "no test"
        minutes = (time.monotonic() - start) / 60
        print(f"[{n}/{len(chosen)}, {minutes:.0f} min] {file.name}: {said}", flush=True)
    into.write_text(json.dumps([asdict(r) for r in found], indent=1) + "\n", encoding="utf-8")
    print(table(found))
    for r in found:
        if r.outcome in ("failed", "broken"):
            print(f"{r.outcome}: {r.file}::{r.test}: {r.reason}")
    print(f"each test with its reason: {into}")
    return int(any(r.outcome == "failed" for r in found))
