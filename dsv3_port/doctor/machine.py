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
from ..hostnpu import cann
from ..messages import N_, told, tr
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
    outside, remedy = tr("{version} is outside {low} to {high}"), tr("use Python {low} to {high}")
    detail = outside.format(version=here, low=low, high=high)
    return Check("Python", FAIL, detail, remedy.format(low=low, high=high))


def _torch(torch: Any, problem: str) -> Check:
    version = version_of("torch")
    if version is None:
        return Check("torch", FAIL, tr("not installed"), f"pip install torch=={TESTED_TORCH}")
    if torch is None:
        command = f"pip install --force-reinstall torch=={TESTED_TORCH}"
        remedy = tr("reinstall it: {command}").format(command=command)
        known = ascend.symptom(problem) if version_of("torch-npu") else None
        if known:
            cause = tr("{cause}: {remedy}")
            remedy = cause.format(cause=told(known.cause), remedy=told(known.remedy))
        elif version_of("torch-npu"):
            remedy = tr(
                "torch_npu loads with torch: look at the checks of Ascend below; TORCH_DEVICE_BACKEND_AUTOLOAD=0 "
                "leaves it out"
            )
        broken = tr("{version} is installed and cannot be imported: {problem}")
        return Check("torch", FAIL, broken.format(version=version, problem=problem), remedy)
    if numbers(version) < TORCH:
        old = tr("{version} is too old").format(version=version)
        return Check("torch", FAIL, old, f"pip install torch=={TESTED_TORCH}")
    tested = tr(" (tested with {version})").format(version=TESTED_TORCH)
    tested = "" if numbers(version) == numbers(TESTED_TORCH) else tested
    ready = tr("{version}, {n} threads")
    detail = ready.format(version=f"{version}{tested}", n=torch.get_num_threads())
    return Check("torch", OK, detail)


def _transformers() -> Check:
    version = version_of("transformers")
    low, high = (".".join(map(str, v)) for v in TRANSFORMERS)
    remedy = f"pip install 'transformers>={low},<{high.split('.')[0]}'"
    if version is None:
        return Check("transformers", FAIL, tr("not installed"), remedy)
    fits = TRANSFORMERS[0] <= numbers(version) < TRANSFORMERS[1]
    return Check(
        "transformers",
        OK if fits else FAIL,
        version
        if fits
        else tr("{version} is outside {low} to {high}").format(version=version, low=low, high=high),
        "" if fits else remedy,
    )


def _tier(torch: Any) -> Check:
    name = N_("device")
    if torch is None:
        return Check(name, FAIL, tr("no device without torch"), tr("see torch above"))
    if hostnpu.enabled():
        here = tr("npu: {name}, enabled in this process. Results are exact, its times are no NPU's")
        return Check(name, OK, here.format(name=hostnpu.DEVICE_NAME))
    if hasattr(torch, "npu") and torch.npu.is_available():
        sees = tr("npu: torch_npu sees {n} card(s)")
        return Check(name, OK, sees.format(n=torch.npu.device_count()))
    if torch.cuda.is_available():
        cuda = tr("cuda: {name}; no NPU is visible to torch")
        return Check(name, OK, cuda.format(name=torch.cuda.get_device_name()))
    built = tr(", though this torch is built for CUDA (no driver or no card)")
    cpu = tr(
        "cpu: torch sees neither NPU nor GPU{built}. Results are exact, timings are this CPU's"
    )
    return Check(name, OK, cpu.format(built="" if torch.version.cuda is None else built))


def _host_npu() -> Check:
    """The stand-in: which torch_npu it would run, or why it cannot be had."""
    name = N_("host NPU")
    if cann.installed():
        none = tr("CANN is here: the stand-in is never loaded beside it")
        return Check(name, NA, none)
    found = hostnpu.status()
    if found.reason:
        return Check(name, NA, found.reason)
    on, off = tr("enabled in this process"), tr("device host-npu, or dsv3_port.hostnpu.enable()")
    state = on if found.enabled else off
    there = tr("torch_npu {version} in {folder}: {state}")
    values = {"version": found.torch_npu, "folder": found.folder, "state": state}
    return Check(name, OK, there.format(**values))


def _compiler() -> Check:
    """torch.compile on cpu builds C++ that includes Python.h."""
    title = N_("C++ compiler")
    name = environment("CXX") or next(
        (c for c in ("g++", "clang++", "c++") if shutil.which(c)), None
    )
    if name is None or shutil.which(name.split()[0]) is None:
        return Check(
            title,
            FAIL,
            tr("none found: torch.compile on cpu needs one, notebooks 07, 08 and 10 too"),
            tr("install g++ (Debian, Ubuntu: apt install g++)"),
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        missing = tr(
            "{compiler}, but Python's headers are missing: torch.compile on cpu needs them"
        )
        remedy = tr("install them (Debian, Ubuntu: apt install python3-dev)")
        return Check(title, FAIL, missing.format(compiler=name), remedy)
    return Check(title, OK, name)


def _disk() -> Check:
    from platformdirs import user_cache_dir

    short = []
    seen = {}
    for what, folder in (
        (tr("this folder"), Path.cwd()),
        (tr("the cache folder"), Path(user_cache_dir("dsv3-port"))),
    ):
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        seen[what] = shutil.disk_usage(folder).free / 2**30
        if seen[what] < NEED_GIB or not os.access(folder, os.W_OK):
            short.append(what)
    name, there = N_("disk"), tr("{free:.1f} GiB free in {folder}")
    detail = tr(", ").join(there.format(free=free, folder=what) for what, free in seen.items())
    if short:
        need = tr("{size:g} GiB and write access are needed in {folders}")
        remedy = need.format(size=NEED_GIB, folders=tr(" and ").join(short))
        return Check(name, FAIL, detail, remedy)
    return Check(name, OK, detail)


def _notebooks() -> Check:
    title = N_("notebooks")
    found = {
        name: version_of(name) for name in ("jupyterlab", "papermill", "nbconvert", "ipykernel")
    }
    missing = [name for name, version in found.items() if version is None]
    if len(missing) == len(found):
        remedy = "pip install 'dsv3-port[tutorial]'"
        return Check(title, NA, tr("the tutorial's packages are not installed"), remedy)
    if missing:
        detail = tr("missing: {packages}").format(packages=", ".join(missing))
        return Check(title, FAIL, detail, f"pip install {' '.join(missing)}")
    return Check(title, OK, ", ".join(f"{name} {version}" for name, version in found.items()))


def _embedded_model(torch: Any) -> Check:
    name = N_("embedded model")
    if torch is None:
        return Check(name, NA, tr("not looked for: reading it needs torch"))
    try:
        from ..paths import tiny
        from ..weights.checkpoint import Checkpoint

        folder = tiny()
        config = Checkpoint.open(folder).config
        size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
        there = tr("{folder}, {n} layers, {size:.1f} MB")
        layers = config.num_hidden_layers
        return Check(name, OK, there.format(folder="data/tiny-dsv3", n=layers, size=size))
    except (PortError, OSError) as error:
        remedy = tr("clone the repository again, or work inside its checkout")
        return Check(name, FAIL, str(error), remedy)


def _busy() -> Check:
    import psutil

    load, cores = psutil.getloadavg()[0], psutil.cpu_count() or 1
    name = N_("quiet machine")
    detail = tr("load {load:.1f} on {cores} cores").format(load=load, cores=cores)
    if load > cores / 2:
        noisy = tr("{load}: timings will be noisy").format(load=detail)
        return Check(name, WARN, noisy, tr("wait until other work is done"))
    return Check(name, OK, detail)


def _guarded(name: str, check: Callable[[], Check | list[Check]]) -> Check | list[Check]:
    try:
        return check()
    except Exception as error:  # a doctor that falls over helps nobody
        why = f"{type(error).__name__}: {error}"
        unknown = tr("could not be checked: {why}").format(why=why)
        return Check(name, FAIL, unknown, tr("please report this"))


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
