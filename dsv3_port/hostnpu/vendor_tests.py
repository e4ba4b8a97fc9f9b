"""The vendor's operator tests over the host NPU, from a checkout that the user names: nothing of it is
kept or copied.

One process a file, because a test may leave torch_npu in another state: forks of one that has
imported everything (vendor_server.py). Results are JUnit's XML, which every pytest writes. A test
that cannot pass on any device, or proves nothing, is in vendor_broken.json by name, with the reason.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from tabulate import tabulate

from ..errors import PortError
from . import why_not
from .vendor_child import HIDDEN, LIFT, LIMIT

BROKEN = Path(__file__).with_name("vendor_broken.json")
PACKAGES = ("pytest", "expecttest")  # torch_npu.testing imports the second
OPTIONAL = ("einops", "scipy", "ml_dtypes", "en_dtypes")  # some files import one of them
MISSING = re.compile(r"No module named '(\w+)'")
# such a file starts children, which never enable anything
SEVERAL_CARDS = ("skipIfUnsupportMultiNPU", "multiprocessing")
OUTCOMES = ("passed", "refused", "broken", "failed", "skipped", "left out")
LINE = re.compile(r"([\w ]+\.py):(\d+): ")
# by us, or by torch_npu for what it launches past PyTorch's dispatcher
REFUSALS = (
    "the host stand-in has no kernel",
    "do not support internal format",
    "not in libopapi.so",
)


@dataclass(frozen=True)
class Result:
    """One test, or one file that gave none. outcome: one of OUTCOMES; at: the test's line that
    failed."""

    file: str
    test: str
    outcome: str
    reason: str
    hidden: bool = False
    at: str = ""


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
        outcome, reason, at, whole = "passed", "", "", False
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome = "skipped" if child.tag == "skipped" else "failed"
                text = child.get("message") or child.text or ""
                whole = child.get("message") == "collection failure"  # its name is the file's
                reason = " ".join(((child.text if whole else text) or "").split())[
                    -200 if whole else 0 :
                ][:200]
                lines = [f"{n}:{at}" for n, at in LINE.findall(child.text or "") if n == file]
                at = lines[-1] if lines else ""
                if any(words in text + (child.text or "") for words in REFUSALS):
                    outcome = "refused"
        why = broken(file, test, known)
        if why and outcome == "failed" and not whole:
            outcome, reason = "broken", why
        found.append(Result(file, test, outcome, reason, HIDDEN in test, at))
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


Server = Callable[[list[str], Path, int], int | None]


@contextlib.contextmanager
def server(lifted: bool, limit: int) -> Iterator[Server]:
    """A function that runs pytest with arguments in a new process, its output in a file, at most so
    many seconds, and returns the exit code, or None where that was too long. limit: seconds of
    processor time a test."""
    env = {**os.environ, LIMIT: str(limit), LIFT: "1" if lifted else ""}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # nothing of what else is installed
    command = [sys.executable, "-m", "dsv3_port.hostnpu.vendor_server"]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=env,
        )

        def run(arguments: list[str], output: Path, seconds: int) -> int | None:
            assert process.stdin and process.stdout
            job = {"arguments": arguments, "output": str(output), "limit": seconds}
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(job), file=process.stdin, flush=True)
            line = process.stdout.readline()
            if not line:
                errors.seek(0)
                raise PortError(f"the process of the tests ended: {errors.read()[-500:].strip()}")
            code: int | None = json.loads(line)
            return code

        try:
            yield run
        finally:
            process.stdin.close() if process.stdin else None
            process.wait()


def one(file: Path, run: Server, only: str, limit: int, known: dict[str, str]) -> list[Result]:
    """Run one file in a process of its own. limit: seconds for the file."""
    source = file.read_text(encoding="utf-8")
    if all(word in source for word in SEVERAL_CARDS):
        return [Result(file.name, "", "left out", "needs several cards in child processes")]
    with tempfile.TemporaryDirectory() as work:
        report, output = Path(work) / "report.xml", Path(work) / "output"
        arguments = ["-q", "--noconftest", "-c", os.devnull, "--rootdir", str(file.parent)]
        arguments += ["-p", "no:cacheprovider", "-p", "dsv3_port.hostnpu.vendor_child"]
        arguments += [f"--junitxml={report}", str(file)]
        if only and only not in file.name:
            arguments += ["-k", only]
        code = run(arguments, output, limit)
        if code is None:
            return [Result(file.name, "", "failed", f"the file took longer than {limit} s")]
        if not report.is_file():
            said = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
            reason = f"the process ended with {code}: {' '.join(said.split())[-200:]}"
            return [Result(file.name, "", "failed", reason)]
        return read(report, file.name, known)


def results(
    chosen: list[Path], lifted: bool, only: str, limits: tuple[int, int]
) -> Iterator[tuple[Path, list[Result]]]:
    """Each file with its tests. limits: seconds of processor time for a test, of the clock for a file."""
    known = known_broken()
    with server(lifted, limits[0]) as run:
        for file in chosen:
            yield file, one(file, run, only, limits[1], known)


def table(found: list[Result]) -> str:
    rows = []
    for file in dict.fromkeys(r.file for r in found):
        counts = Counter(r.outcome for r in found if r.file == file)
        rows.append([file, *(counts[o] or "" for o in OUTCOMES)])
    total = Counter(r.outcome for r in found)
    rows.append(["all", *(total[o] for o in OUTCOMES)])
    return tabulate(rows, headers=["file", *OUTCOMES], tablefmt="simple")


def wanted_packages(found: list[Result]) -> list[str]:
    """Of OPTIONAL, those whose absence failed a file or a test."""
    named = {name for r in found if r.outcome == "failed" for name in MISSING.findall(r.reason)}
    return [name for name in OPTIONAL if name in named]


def run(
    checkout: Path,
    *,
    folder: str = "test_custom_ops",
    lifted: bool = False,
    only: str = "",
    limits: tuple[int, int] = (300, 1800),
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
    if wanted := wanted_packages(found):
        print(f"some files import {', '.join(wanted)}: pip install {' '.join(wanted)}")
    print(f"each test with its reason: {into}")
    return int(any(r.outcome == "failed" for r in found))
