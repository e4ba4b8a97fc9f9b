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
from ..hostnpu.library import ascendcl, cann_home, cann_library
from .findings import FAIL, NA, OK, WARN, Check, numbers, version_of
from .versions import CARD, install_command, newest_for_cann, pair_of

DEVICES = Path("/dev")
NONE_HERE = "no Ascend NPU, CANN or torch_npu on this machine"


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
        "the driver's libraries are not found",
        "install the NPU driver; in a container, mount /usr/local/Ascend/driver and add its lib64/driver and "
        "lib64/common to LD_LIBRARY_PATH",
        "vllm-ascend #117",
    ),
    Symptom(
        r"libatb\.so.*cannot open",
        "ATB (CANN's NNAL package) is not found",
        "install Ascend-cann-nnal of CANN's version and source /usr/local/Ascend/nnal/atb/set_env.sh",
        "vllm-ascend #152",
    ),
    Symptom(
        r"undefined symbol: _ZNK?\d(?:atb|Mki)",
        "ATB (CANN's NNAL package) is of another version or C++ ABI than torch_npu was built for",
        "install the NNAL package of CANN's own version and source its atb/set_env.sh after CANN's",
        "vllm-ascend #117, #750; Ascend/pytorch #99",
    ),
    Symptom(
        r"undefined symbol: \w*(?:2at|3c10|5torch|7c10_npu)",
        "torch_npu was built for another torch",
        install_command(),
        "vllm-ascend #340; dlinfer #183",
    ),
    Symptom(
        r"undefined symbol: (?:Msprof|acl|rt[A-Z]|Hccl|ge|_ZN2ge)",
        "torch_npu and CANN are of different times",
        "install the pair of the table in docs/versions.md",
        "triton-ascend #328",
    ),
    Symptom(
        r"lib(?:hccl|ascendcl|ge_runner|graph|acl\w*|runtime|profapi|register)\.so.*cannot open",
        "torch_npu loads with torch and found no working CANN",
        "source CANN's set_env.sh, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0, or pip uninstall torch-npu",
        "seen with torch_npu 2.13.0",
    ),
    Symptom(
        r"No module named '(?:tbe|te|decorator|attr|scipy|cffi|psutil|google)\b",
        "CANN's own Python packages are missing",
        "source CANN's set_env.sh; pip install attrs cffi decorator protobuf psutil scipy",
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
            what = "CANN is" if cann_home() else "NPU cards are"
            return Check("torch_npu", FAIL, f"{what} here, torch_npu is not", install_command())
        return Check("torch_npu", NA, "not installed: needed on an Ascend machine only")
    if torch is not None and numbers(version)[:3] != numbers(torch)[:3]:
        own = ".".join(map(str, numbers(version)[:3]))
        keep = f"; or keep torch_npu: pip install torch=={own}" if numbers(own) >= (2, 9) else ""
        return Check(
            "torch_npu",
            FAIL,
            f"{version} belongs to torch {own}, and torch is {torch}",
            f"{install_command()}{keep}",
        )
    if problem := clash():
        remedy = f"use the CPU build, {allocator_keys.cpu_build()}"
        return Check("torch_npu", FAIL, f"{version}: {problem}", remedy)
    if ascendcl() is None:
        return Check(
            "torch_npu",
            FAIL,
            f"{version} without CANN: it breaks `import torch` where it loads by itself",
            "install CANN and source its set_env.sh, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0, or "
            "pip uninstall torch-npu",
        )
    usual = "" if version.split("+")[0] == CARD.torch_npu else f" (recommended: {CARD.torch_npu})"
    return Check("torch_npu", OK, f"{version}, the one for torch {torch}{usual}")


def cann() -> Check:
    """CANN itself, and whether it is the one that torch_npu was released for."""
    home = cann_home()
    if home is None:
        if ascendcl():
            return Check(
                "CANN", OK, f"{ascendcl()}, version unknown: ASCEND_HOME_PATH names no folder"
            )
        if device_files():
            return Check(
                "CANN",
                FAIL,
                "NPU cards are here, CANN is not",
                "install CANN's toolkit and this chip's kernels (ops) package, then source its set_env.sh",
            )
        return Check(
            "CANN", NA, "not installed: neither ASCEND_HOME_PATH nor libascendcl was found"
        )
    if ascendcl() is None:
        return Check(
            "CANN",
            FAIL,
            f"{home} holds no libascendcl.so",
            "install CANN's toolkit again, then source its set_env.sh",
        )
    version, npu = cann_version(home), version_of("torch-npu")
    if version is None:
        return Check(
            "CANN",
            WARN,
            f"in {home}, version unknown: no *-linux/ascend_*_install.info",
            "check by hand that it is the CANN of the table in docs/versions.md",
        )
    pair = pair_of(npu.split("+")[0]) if npu else None
    if pair is None or not pair.cann:
        note = f"; for torch_npu {npu} no CANN was published when this was written" if npu else ""
        return Check("CANN", OK, f"{version} in {home}{note}")
    if numbers(version)[:2] == numbers(pair.cann)[:2]:
        return Check("CANN", OK, f"{version} in {home}, the one for torch_npu {npu}")
    fitting = newest_for_cann(numbers(version))
    other = f", or {install_command(fitting)}" if fitting else ""
    older = numbers(version) < numbers(pair.cann)
    return Check(
        "CANN",
        FAIL if older else WARN,
        f"{version} is {'older' if older else 'newer'} than the {pair.cann} "
        f"that torch_npu {npu} was released with",
        f"install CANN {pair.cann}{other}",
    )


def set_env() -> Check:
    """Whether set_env.sh was sourced in this shell: it exports the home and puts the libraries on
    the loader's path."""
    name, home = "CANN's set_env.sh", cann_home()
    if home is None:
        return Check(name, NA, NONE_HERE if not is_ascend() else "no CANN to source")
    given = environment("ASCEND_HOME_PATH")
    script = next(
        (
            str(f)
            for f in (Path(home) / "set_env.sh", Path(home).parent / "set_env.sh")
            if f.is_file()
        ),
        f"{home}/set_env.sh",
    )
    remedy = f"source {script} (each shell; ~/.bashrc makes it permanent)"
    if not given:
        return Check(
            name, FAIL, f"not sourced: ASCEND_HOME_PATH is not set, CANN lies in {home}", remedy
        )
    if not Path(given).is_dir():
        return Check(name, FAIL, f"ASCEND_HOME_PATH={given} is no folder", f"unset it and {remedy}")
    real = os.path.realpath(given)
    on_path = [os.path.realpath(p) for p in (environment("LD_LIBRARY_PATH") or "").split(":") if p]
    if not any(p == real or p.startswith(real + os.sep) for p in on_path):
        return Check(
            name,
            FAIL,
            f"ASCEND_HOME_PATH={given}, but LD_LIBRARY_PATH has nothing of it: exported by hand?",
            remedy,
        )
    if not environment("ASCEND_OPP_PATH"):
        return Check(name, WARN, "ASCEND_OPP_PATH is not set: operators may not be found", remedy)
    return Check(name, OK, f"ASCEND_HOME_PATH={given}")


def hccl() -> Check:
    """The library for several cards, and an interface that the environment names for it."""
    if not is_ascend():
        return Check("HCCL", NA, NONE_HERE)
    if cann_library("hccl") is None:
        return Check(
            "HCCL",
            FAIL,
            "libhccl.so was not found: several cards cannot talk, torch_npu does not load",
            "install CANN's toolkit (HCCL is part of it), then source its set_env.sh",
        )
    wanted = environment("HCCL_SOCKET_IFNAME")
    if wanted and not wanted.startswith(("^", "=")):
        import psutil

        have = psutil.net_if_addrs()
        if not any(card.startswith(prefix) for prefix in wanted.split(",") for card in have):
            return Check(
                "HCCL",
                FAIL,
                f"HCCL_SOCKET_IFNAME={wanted} names no interface of {', '.join(have)}",
                "set it to the interface that the machines share, or unset it on a single machine",
            )
    reach = (
        ""
        if Path("/etc/hccn.conf").exists()
        else "; one machine only, as there is no /etc/hccn.conf"
    )
    return Check("HCCL", OK, f"{cann_library('hccl')}{reach}")


def mindspeed() -> Check:
    """MindSpeed is optional; GMM_PROVIDER=mindspeed needs it."""
    provider, instead = (
        environment("GMM_PROVIDER") or "auto",
        "torch_npu's npu_grouped_matmul is used on npu",
    )
    if provider == "reference":
        instead = "GMM_PROVIDER=reference: plain PyTorch multiplies the experts, also on npu"
    if importlib.util.find_spec("mindspeed") is not None:
        used = (
            "its npu_gmm is used on npu"
            if provider == "mindspeed"
            else f"GMM_PROVIDER={provider}: {instead}"
        )
        return Check("MindSpeed", OK, f"{version_of('mindspeed') or 'installed'}; {used}")
    if provider == "mindspeed":
        return Check(
            "MindSpeed",
            FAIL,
            "GMM_PROVIDER=mindspeed, and MindSpeed is not installed",
            "git clone https://gitee.com/ascend/MindSpeed.git && pip install -e MindSpeed, or "
            "export GMM_PROVIDER=torch_npu",
        )
    return Check("MindSpeed", NA, f"not installed, and not needed: {instead}, PyTorch elsewhere")
