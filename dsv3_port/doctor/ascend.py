"""What the doctor finds out about Ascend's software: torch_npu, CANN, HCCL, MindSpeed (cards:
doctor/npu_smi.py).

Read from package metadata, files, the environment; neither torch nor torch_npu is imported, because
a torch_npu that does not fit its CANN or driver breaks `import torch` itself. Threads: where people
met each mismatch.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..engine.settings import environment
from ..hostnpu import allocator_keys
from ..hostnpu.cann import ascendcl, cann_home, cann_library
from ..messages import N_, told, tr
from .findings import FAIL, NA, OK, WARN, Check, numbers, version_of
from .versions import CARD, install_command, newest_for_cann, pair_of

DEVICES = Path("/dev")
NONE_HERE = N_("no Ascend NPU, CANN or torch_npu on this machine")


@dataclass(frozen=True)
class Symptom:
    """A message of a failing import -> what is wrong and what to do."""

    pattern: str
    cause: str
    remedy: str
    thread: str


# First match counts.
SYMPTOMS = (
    Symptom(
        r"libascend_hal\.so|libdrvdsmi|libdcmi",
        N_("the driver's libraries are not found"),
        N_(
            "install the NPU driver; in a container, mount /usr/local/Ascend/driver and add its lib64/driver and "
            "lib64/common to LD_LIBRARY_PATH"
        ),
        "vllm-ascend #117",
    ),
    Symptom(
        r"libatb\.so.*cannot open",
        N_("ATB (CANN's NNAL package) is not found"),
        N_(
            "install Ascend-cann-nnal of CANN's version and source /usr/local/Ascend/nnal/atb/set_env.sh"
        ),
        "vllm-ascend #152",
    ),
    Symptom(
        r"undefined symbol: _ZNK?\d(?:atb|Mki)",
        N_(
            "ATB (CANN's NNAL package) is of another version or C++ ABI than torch_npu was built for"
        ),
        N_(
            "install the NNAL package of CANN's own version and source its atb/set_env.sh after CANN's"
        ),
        "vllm-ascend #117, #750; Ascend/pytorch #99",
    ),
    Symptom(
        r"undefined symbol: \w*(?:2at|3c10|5torch|7c10_npu)",
        N_("torch_npu was built for another torch"),
        install_command(),
        "vllm-ascend #340; dlinfer #183",
    ),
    Symptom(
        r"undefined symbol: (?:Msprof|acl|rt[A-Z]|Hccl|ge|_ZN2ge)",
        N_("torch_npu and CANN are of different times"),
        N_("install the pair of the table in docs/versions.md"),
        "triton-ascend #328",
    ),
    Symptom(
        r"lib(?:hccl|ascendcl|ge_runner|graph|acl\w*|runtime|profapi|register)\.so.*cannot open",
        N_("torch_npu loads with torch and found no working CANN"),
        N_(
            "source CANN's set_env.sh, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0, or pip uninstall torch-npu"
        ),
        "seen with torch_npu 2.13.0",
    ),
    Symptom(
        r"No module named '(?:tbe|te|decorator|attr|scipy|cffi|psutil|google)\b",
        N_("CANN's own Python packages are missing"),
        N_("source CANN's set_env.sh; pip install attrs cffi decorator protobuf psutil scipy"),
        "Ascend/pytorch #7, #29",
    ),
)


def symptom(problem: str) -> Symptom | None:
    return next((s for s in SYMPTOMS if re.search(s.pattern, problem)), None)


# ---- what is there -------------------------------------------------------------------------------


def cann_version(home: str) -> str | None:
    """`version=` of the toolkit's install record, which lies in a folder named after the machine."""
    for file in sorted(Path(home).glob("*-linux/ascend_*_install.info")) + sorted(
        Path(home).glob("ascend_*.info")
    ):
        found = re.search(
            r"^version=(\S+)", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        )
        if found:
            return found[1]
    return None


def device_files() -> list[Path]:
    """/dev/davinci0, ...: one for each card that this machine or container has."""
    return sorted(f for f in DEVICES.glob("davinci*") if f.name[7:].isdigit())


def is_ascend() -> bool:
    """Whether anything of Ascend is here; otherwise its checks are N/A."""
    return bool(cann_home() or device_files() or shutil.which("npu-smi") or version_of("torch-npu"))


def clash() -> str:
    """Why the torch_npu of this environment aborts the process when torch loads it, or ""."""
    spec = importlib.util.find_spec("torch_npu") if version_of("torch-npu") else None
    return allocator_keys.clash(Path(spec.origin).parent) if spec and spec.origin else ""


# ---- checks --------------------------------------------------------------------------------------


def torch_npu() -> Check:
    version, torch = version_of("torch-npu"), version_of("torch")
    if version is None:
        if cann_home() or device_files():
            a, b = tr("CANN is here, torch_npu is not"), tr("NPU cards are here, torch_npu is not")
            return Check("torch_npu", FAIL, a if cann_home() else b, install_command())
        none = tr("not installed: needed on an Ascend machine only")
        return Check("torch_npu", NA, none)
    if torch is not None and numbers(version)[:3] != numbers(torch)[:3]:
        own = ".".join(map(str, numbers(version)[:3]))
        keep = tr("; or keep torch_npu: {command}").format(command=f"pip install torch=={own}")
        other = tr("{version} belongs to torch {own}, and torch is {torch}")
        detail = other.format(version=version, own=own, torch=torch)
        keep = keep if numbers(own) >= (2, 9) else ""
        return Check("torch_npu", FAIL, detail, f"{install_command()}{keep}")
    if problem := clash():
        remedy = tr("use the CPU build, {build}").format(build=allocator_keys.cpu_build())
        return Check("torch_npu", FAIL, f"{version}: {problem}", remedy)
    if ascendcl() is None:
        alone = tr("{version} without CANN: it breaks `import torch` where it loads by itself")
        remedy = tr(
            "install CANN and source its set_env.sh, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0, or "
            "pip uninstall torch-npu"
        )
        return Check("torch_npu", FAIL, alone.format(version=version), remedy)
    usual = tr(" (recommended: {version})").format(version=CARD.torch_npu)
    usual = "" if version.split("+")[0] == CARD.torch_npu else usual
    fits = tr("{version}, the one for torch {torch}")
    return Check("torch_npu", OK, f"{fits.format(version=version, torch=torch)}{usual}")


def cann() -> Check:
    """CANN itself, and whether it is the one that torch_npu was released for."""
    home = cann_home()
    if home is None:
        if ascendcl():
            there = tr("{library}, version unknown: ASCEND_HOME_PATH names no folder")
            return Check("CANN", OK, there.format(library=ascendcl()))
        if device_files():
            remedy = tr(
                "install CANN's toolkit and this chip's kernels (ops) package, then source its set_env.sh"
            )
            return Check("CANN", FAIL, tr("NPU cards are here, CANN is not"), remedy)
        none = tr("not installed: neither ASCEND_HOME_PATH nor libascendcl was found")
        return Check("CANN", NA, none)
    if ascendcl() is None:
        detail = tr("{folder} holds no libascendcl.so").format(folder=home)
        remedy = tr("install CANN's toolkit again, then source its set_env.sh")
        return Check("CANN", FAIL, detail, remedy)
    version, npu = cann_version(home), version_of("torch-npu")
    if version is None:
        unknown = tr("in {folder}, version unknown: no *-linux/ascend_*_install.info")
        remedy = tr("check by hand that it is the CANN of the table in docs/versions.md")
        return Check("CANN", WARN, unknown.format(folder=home), remedy)
    pair = pair_of(npu.split("+")[0]) if npu else None
    there = tr("{version} in {folder}").format(version=version, folder=home)
    if pair is None or not pair.cann:
        note = tr("; for torch_npu {npu} no CANN was published when this was written")
        return Check("CANN", OK, f"{there}{note.format(npu=npu) if npu else ''}")
    if numbers(version)[:2] == numbers(pair.cann)[:2]:
        fits = tr("{there}, the one for torch_npu {npu}")
        return Check("CANN", OK, fits.format(there=there, npu=npu))
    return _other_cann(version, pair.cann, npu or "")


def _other_cann(version: str, due: str, npu: str) -> Check:
    """CANN of another release than torch_npu's: an older one is not believed to run."""
    is_older = numbers(version) < numbers(due)
    older = tr("{version} is older than the {due} that torch_npu {npu} was released with")
    newer = tr("{version} is newer than the {due} that torch_npu {npu} was released with")
    detail = (older if is_older else newer).format(version=version, due=due, npu=npu)
    remedy, fitting = (
        tr("install CANN {version}").format(version=due),
        newest_for_cann(numbers(version)),
    )
    if fitting:
        either = tr("{remedy}, or {command}")
        remedy = either.format(remedy=remedy, command=install_command(fitting))
    return Check("CANN", FAIL if is_older else WARN, detail, remedy)


def set_env() -> Check:
    """Whether set_env.sh was sourced in this shell: it exports the home and puts the libraries on
    the loader's path."""
    name, home = N_("CANN's set_env.sh"), cann_home()
    if home is None:
        return Check(name, NA, tr("no CANN to source") if is_ascend() else told(NONE_HERE))
    given = environment("ASCEND_HOME_PATH")
    script = next(
        (
            str(f)
            for f in (Path(home) / "set_env.sh", Path(home).parent / "set_env.sh")
            if f.is_file()
        ),
        f"{home}/set_env.sh",
    )
    command = f"source {script}"
    remedy = tr("{command} (each shell; ~/.bashrc makes it permanent)").format(command=command)
    if not given:
        unset = tr("not sourced: ASCEND_HOME_PATH is not set, CANN lies in {folder}")
        return Check(name, FAIL, unset.format(folder=home), remedy)
    if not Path(given).is_dir():
        gone = tr("ASCEND_HOME_PATH={folder} is no folder").format(folder=given)
        return Check(name, FAIL, gone, tr("unset it and {remedy}").format(remedy=remedy))
    real = os.path.realpath(given)
    on_path = [os.path.realpath(p) for p in (environment("LD_LIBRARY_PATH") or "").split(":") if p]
    if not any(p == real or p.startswith(real + os.sep) for p in on_path):
        half = tr(
            "ASCEND_HOME_PATH={folder}, but LD_LIBRARY_PATH has nothing of it: exported by hand?"
        )
        return Check(name, FAIL, half.format(folder=given), remedy)
    if not environment("ASCEND_OPP_PATH"):
        unset = tr("ASCEND_OPP_PATH is not set: operators may not be found")
        return Check(name, WARN, unset, remedy)
    return Check(name, OK, f"ASCEND_HOME_PATH={given}")


def hccl() -> Check:
    """The library for several cards, and an interface that the environment names for it."""
    if not is_ascend():
        return Check("HCCL", NA, told(NONE_HERE))
    if cann_library("hccl") is None:
        gone = tr("libhccl.so was not found: several cards cannot talk, torch_npu does not load")
        remedy = tr("install CANN's toolkit (HCCL is part of it), then source its set_env.sh")
        return Check("HCCL", FAIL, gone, remedy)
    wanted = environment("HCCL_SOCKET_IFNAME")
    if wanted and not wanted.startswith(("^", "=")):
        import psutil

        have = psutil.net_if_addrs()
        if not any(card.startswith(prefix) for prefix in wanted.split(",") for card in have):
            none = tr("HCCL_SOCKET_IFNAME={wanted} names no interface of {cards}")
            detail = none.format(wanted=wanted, cards=", ".join(have))
            remedy = tr(
                "set it to the interface that the machines share, or unset it on a single machine"
            )
            return Check("HCCL", FAIL, detail, remedy)
    alone = tr("; one machine only, as there is no /etc/hccn.conf")
    reach = "" if Path("/etc/hccn.conf").exists() else alone
    return Check("HCCL", OK, f"{cann_library('hccl')}{reach}")


def mindspeed() -> Check:
    """MindSpeed is optional; GMM_PROVIDER=mindspeed needs it."""
    provider = environment("GMM_PROVIDER") or "auto"
    instead = tr("torch_npu's npu_grouped_matmul is used on npu")
    if provider == "reference":
        instead = tr("GMM_PROVIDER=reference: plain PyTorch multiplies the experts, also on npu")
    if importlib.util.find_spec("mindspeed") is not None:
        used = tr("its npu_gmm is used on npu")
        if provider != "mindspeed":
            used = f"GMM_PROVIDER={provider}: {instead}"
        there = version_of("mindspeed") or tr("installed")
        return Check("MindSpeed", OK, tr("{version}; {used}").format(version=there, used=used))
    if provider == "mindspeed":
        gone = tr("GMM_PROVIDER=mindspeed, and MindSpeed is not installed")
        remedy = tr(
            "git clone https://gitee.com/ascend/MindSpeed.git && pip install -e MindSpeed, or "
            "export GMM_PROVIDER=torch_npu"
        )
        return Check("MindSpeed", FAIL, gone, remedy)
    none = tr("not installed, and not needed: {instead}, PyTorch elsewhere")
    return Check("MindSpeed", NA, none.format(instead=instead))
