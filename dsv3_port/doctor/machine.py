"""What this machine has, what will run on it, and what to do about the rest.

Nothing here may fail: torch is imported under guard, because a torch_npu without CANN breaks
`import torch` itself, and everything about Ascend is read from package metadata, files and the
environment.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import hostnpu
from ..engine.settings import environment
from ..errors import PortError
from ..hostnpu import library
from . import ascend, npu_smi
from .findings import FAIL, NA, OK, WARN, Check, numbers, version_of
from .versions import TORCH as TESTED_TORCH

PYTHONS = ((3, 10), (3, 14))
TORCH = (2, 9)
TRANSFORMERS = ((5, 20), (6, 0))
NEED_GIB = 1.0  # random-weight checkpoints, executed notebooks and pages


def import_torch() -> tuple[Any, str]:
    """(torch, "") or (None, why it cannot be imported)."""
    if "torch" not in sys.modules and environment("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") != "0":
        problem = ascend.clash()  # that import would end the process, and no except would help
        if problem:
            return None, problem
    try:
        return importlib.import_module("torch"), ""
    except Exception as error:  # a backend that fails to load raises whatever its loader raises
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _python() -> Check:
    here = platform.python_version()
    low, high = (".".join(map(str, v)) for v in PYTHONS)
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Check("Python", OK, f"{here} ({platform.system()} {platform.machine()})")
    return Check(
        "Python", FAIL, f"{here} is outside {low} to {high}", f"use Python {low} to {high}"
    )


def _torch(torch: Any, problem: str) -> Check:
    version = version_of("torch")
    if version is None:
        return Check("torch", FAIL, "not installed", f"pip install torch=={TESTED_TORCH}")
    if torch is None:
        remedy = f"reinstall it: pip install --force-reinstall torch=={TESTED_TORCH}"
        known = ascend.symptom(problem) if version_of("torch-npu") else None
        if known:
            remedy = f"{known.cause}: {known.remedy}"
        elif version_of("torch-npu"):
            remedy = (
                "torch_npu loads with torch: look at the checks of Ascend below; TORCH_DEVICE_BACKEND_AUTOLOAD=0 "
                "leaves it out"
            )
        return Check(
            "torch", FAIL, f"{version} is installed and cannot be imported: {problem}", remedy
        )
    if numbers(version) < TORCH:
        return Check("torch", FAIL, f"{version} is too old", f"pip install torch=={TESTED_TORCH}")
    tested = "" if numbers(version) == numbers(TESTED_TORCH) else f" (tested with {TESTED_TORCH})"
    return Check("torch", OK, f"{version}{tested}, {torch.get_num_threads()} threads")


def _transformers() -> Check:
    version = version_of("transformers")
    low, high = (".".join(map(str, v)) for v in TRANSFORMERS)
    remedy = f"pip install 'transformers>={low},<{high.split('.')[0]}'"
    if version is None:
        return Check("transformers", FAIL, "not installed", remedy)
    fits = TRANSFORMERS[0] <= numbers(version) < TRANSFORMERS[1]
    return Check(
        "transformers",
        OK if fits else FAIL,
        version if fits else f"{version} is outside {low} to {high}",
        "" if fits else remedy,
    )


def _tier(torch: Any) -> Check:
    if torch is None:
        return Check("device", FAIL, "no device without torch", "see torch above")
    if hostnpu.enabled():
        return Check(
            "device",
            OK,
            f"npu: {hostnpu.DEVICE_NAME}, enabled in this process. Results are exact, its times "
            "are no NPU's",
        )
    if hasattr(torch, "npu") and torch.npu.is_available():
        return Check("device", OK, f"npu: torch_npu sees {torch.npu.device_count()} card(s)")
    if torch.cuda.is_available():
        return Check(
            "device", OK, f"cuda: {torch.cuda.get_device_name()}; no NPU is visible to torch"
        )
    built = (
        ""
        if torch.version.cuda is None
        else ", though this torch is built for CUDA (no driver or no card)"
    )
    return Check(
        "device",
        OK,
        f"cpu: torch sees neither NPU nor GPU{built}. Results are exact, timings are this CPU's",
    )


def _host_npu() -> Check:
    """The stand-in: which torch_npu it would run, or why it cannot be had."""
    if library.cann():
        return Check("host NPU", NA, "CANN is here: the stand-in is never loaded beside it")
    found = hostnpu.status()
    if found.reason:
        return Check("host NPU", NA, found.reason)
    state = (
        "enabled in this process"
        if found.enabled
        else "device host-npu, or dsv3_port.hostnpu.enable()"
    )
    return Check("host NPU", OK, f"torch_npu {found.torch_npu} in {found.folder}: {state}")


def _compiler() -> Check:
    """torch.compile on cpu builds C++ that includes Python.h."""
    name = environment("CXX") or next(
        (c for c in ("g++", "clang++", "c++") if shutil.which(c)), None
    )
    if name is None or shutil.which(name.split()[0]) is None:
        return Check(
            "C++ compiler",
            FAIL,
            "none found: torch.compile on cpu needs one, notebooks 07, 08 and 10 too",
            "install g++ (Debian, Ubuntu: apt install g++)",
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return Check(
            "C++ compiler",
            FAIL,
            f"{name}, but Python's headers are missing: torch.compile on cpu needs them",
            "install them (Debian, Ubuntu: apt install python3-dev)",
        )
    return Check("C++ compiler", OK, name)


def _disk() -> Check:
    from platformdirs import user_cache_dir

    short = []
    seen = {}
    for what, folder in (
        ("this folder", Path.cwd()),
        ("the cache folder", Path(user_cache_dir("dsv3-port"))),
    ):
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        seen[what] = shutil.disk_usage(folder).free / 2**30
        if seen[what] < NEED_GIB or not os.access(folder, os.W_OK):
            short.append(what)
    detail = ", ".join(f"{free:.1f} GiB free in {what}" for what, free in seen.items())
    if short:
        return Check(
            "disk",
            FAIL,
            detail,
            f"{NEED_GIB:g} GiB and write access are needed in {' and '.join(short)}",
        )
    return Check("disk", OK, detail)


def _notebooks() -> Check:
    found = {
        name: version_of(name) for name in ("jupyterlab", "papermill", "nbconvert", "ipykernel")
    }
    missing = [name for name, version in found.items() if version is None]
    if len(missing) == len(found):
        remedy = "pip install 'dsv3-port[tutorial]'"
        return Check("notebooks", NA, "the tutorial's packages are not installed", remedy)
    if missing:
        return Check(
            "notebooks", FAIL, f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}"
        )
    return Check("notebooks", OK, ", ".join(f"{name} {version}" for name, version in found.items()))


def _embedded_model(torch: Any) -> Check:
    if torch is None:
        return Check("embedded model", NA, "not looked for: reading it needs torch")
    try:
        from ..paths import tiny
        from ..weights.checkpoint import Checkpoint

        folder = tiny()
        config = Checkpoint.open(folder).config
        size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
        return Check(
            "embedded model",
            OK,
            f"data/tiny-dsv3, {config.num_hidden_layers} layers, {size:.1f} MB",
        )
    except (PortError, OSError) as error:
        return Check(
            "embedded model",
            FAIL,
            str(error),
            "clone the repository again, or work inside its checkout",
        )


def _busy() -> Check:
    import psutil

    load, cores = psutil.getloadavg()[0], psutil.cpu_count() or 1
    detail = f"load {load:.1f} on {cores} cores"
    if load > cores / 2:
        return Check(
            "quiet machine",
            WARN,
            f"{detail}: timings will be noisy",
            "wait until other work is done",
        )
    return Check("quiet machine", OK, detail)


def _guarded(name: str, check: Callable[[], Check | list[Check]]) -> Check | list[Check]:
    try:
        return check()
    except Exception as error:  # a doctor that falls over helps nobody
        return Check(
            name,
            FAIL,
            f"could not be checked: {type(error).__name__}: {error}",
            "please report this",
        )


def checks() -> list[Check]:
    """All findings, in the order in which they matter."""
    torch, problem = import_torch()
    todo: list[tuple[str, Callable[[], Check | list[Check]]]] = [
        ("Python", _python),
        ("torch", lambda: _torch(torch, problem)),
        ("transformers", _transformers),
        ("device", lambda: _tier(torch)),
        ("torch_npu", ascend.torch_npu),
        ("CANN", ascend.cann),
        ("CANN's set_env.sh", ascend.set_env),
        ("driver", npu_smi.checks),
        ("HCCL", ascend.hccl),
        ("MindSpeed", ascend.mindspeed),
        ("host NPU", _host_npu),
        ("C++ compiler", _compiler),
        ("disk", _disk),
        ("notebooks", _notebooks),
        ("embedded model", lambda: _embedded_model(torch)),
        ("quiet machine", _busy),
    ]
    found: list[Check] = []
    for name, check in todo:
        result = _guarded(name, check)
        found += result if isinstance(result, list) else [result]
    return found
