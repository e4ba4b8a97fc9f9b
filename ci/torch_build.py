"""Which build of torch `.venv` gets, why, and how big it is.

`DSV3_TORCH_BUILD` says it: `cpu`, `cuda`, `default` (what pip takes by itself), or `auto`, as if unset. Auto is the
first of these that holds:

1. A torch of the pinned version that is in .venv already stays, whatever build it is (so also for the other words).
2. Where pip's settings (variables or configuration files) name an index, more indexes, links or no index, pip takes
   torch from there like everything else; nothing is added, and nobody else is asked.
3. Linux with an NVIDIA GPU: PyPI's build, which has CUDA.
4. Linux without one: the CPU build, from PyTorch's own index if that answers within seconds and has it.
5. Otherwise PyPI's build (Linux: with CUDA; macOS and Windows: without).

PyTorch's index is asked for torch alone, every other package comes from pip's own sources. Standard library only;
any Python 3 must be able to read this file (nothing newer than 3.6).
"""

import collections
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from venv_checks import Problem

if False:  # for type checkers only
    from typing import Mapping  # noqa: UP035

CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # as pytorch.org's "Get started" has it
VARIABLE = "DSV3_TORCH_BUILD"
WORDS = ("auto", "cpu", "cuda", "default")
# GB that .venv takes, and GB of the wheels it is made from; measured on Linux x86_64 with torch 2.13.0
SIZES = {"cpu": (2.0, 0.6), "cuda": (6.0, 3.1)}
SOURCES = ("index-url", "extra-index-url", "find-links", "no-index")
INDEX_SECONDS = 5  # a socket's; the whole question gets four times as long
GPU_DRIVER = Path("/proc/driver/nvidia/version")

# kind: cpu, cuda, or other (built for something else, or not known before it is there)
# requirement: for pip; options: more words for pip; why: a clause for people; kept: nothing is installed
Build = collections.namedtuple("Build", "kind requirement options why kept")


def wanted(environ: "Mapping[str, str]") -> str:
    word = environ.get(VARIABLE, "").strip().lower() or "auto"
    if word not in WORDS:
        raise Problem(f"{VARIABLE}={environ[VARIABLE]} is none of {', '.join(WORDS)}")
    if word == "cuda" and not sys.platform.startswith("linux"):
        raise Problem(
            f"{VARIABLE}=cuda: PyPI has a CUDA build for Linux only; set PIP_EXTRA_INDEX_URL to PyTorch's index of "
            "your CUDA and leave the variable unset"
        )
    return word


def gpu() -> str:
    """How an NVIDIA GPU was seen, or ""."""
    tool = shutil.which("nvidia-smi")
    if tool:
        try:
            done = subprocess.run(
                [tool, "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20
            )
            if done.returncode == 0 and b"GPU" in done.stdout:
                return "nvidia-smi lists a GPU"
        except (OSError, subprocess.TimeoutExpired):
            pass
    return f"NVIDIA's driver is loaded ({GPU_DRIVER})" if GPU_DRIVER.exists() else ""


def installed(venv: "Path") -> "str | None":
    """`2.13.0+cu130` of the torch in this environment, read and not imported; None without one."""
    packages = list(venv.glob("lib/python3*/site-packages")) + [venv / "Lib" / "site-packages"]
    for file in (folder / "torch" / "version.py" for folder in packages):
        if not file.is_file():
            continue
        found = re.search(r"^__version__ = '([^']+)'", file.read_text("utf-8"), re.MULTILINE)
        if found:
            return found.group(1)
    return None


def kind_of(version: str) -> str:
    """cpu or cuda of an installed torch; both say so behind the +, PyPI's macOS build says nothing."""
    local = version.partition("+")[2]
    return "cpu" if local in ("", "cpu") else "cuda" if local.startswith("cu") else "other"


def pip_output(python: str, words: "list[str]", environ: "Mapping[str, str]", limit: float) -> str:
    """What pip prints on its standard output; "" where it fails or takes too long."""
    try:
        done = subprocess.run(
            [python, "-m", "pip", "--disable-pip-version-check"] + words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environ),
            timeout=limit,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def pip_sources(python: str, environ: "Mapping[str, str]") -> "list[str]":
    """Settings of pip that name where packages come from, as `find-links`; PyPI itself is none."""
    found = []
    for line in pip_output(python, ["config", "list"], environ, 60).splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        value = value.strip("'\"").rstrip("/")
        usual = key == "index-url" and value == "https://pypi.org/simple"
        off = not value or (key == "no-index" and value.lower() in ("0", "no", "off", "false"))
        if section in ("global", "install", ":env:") and key in SOURCES and not usual and not off:
            found.append(key)
    return sorted(set(found))


def offered(python: str, pin: str, options: "list[str]", environ: "Mapping[str, str]") -> str:
    """The version that pip would take for `torch==pin` on this Python: with its build behind a +,
    plain for PyPI's, "" if there is none or no answer."""
    words = ["index", "versions", "torch", "--timeout", str(INDEX_SECONDS), "--retries", "0"]
    text = pip_output(python, words + options, environ, 4 * INDEX_SECONDS)
    listed = re.search(r"^Available versions: (.*)$", text, re.MULTILINE)
    versions = [v.strip() for v in listed.group(1).split(",")] if listed else []
    return next((v for v in versions if v.partition("+")[0] == pin), "")  # the newest comes first


def pypi(pin: str, why: str) -> "Build":
    """PyPI's own file: === leaves out what other sources offer with a + behind the version."""
    return Build(
        "cuda" if sys.platform.startswith("linux") else "cpu", f"torch==={pin}", [], why, False
    )


def from_settings(
    python: str, pin: str, sources: "list[str]", environ: "Mapping[str, str]"
) -> "Build":
    why = f"pip's settings ({', '.join(sources)}) say where packages come from, and {{}}"
    version = offered(python, pin, [], environ)
    if not version:
        return Build(
            "other", f"torch=={pin}", [], why.format("did not tell which they have"), False
        )
    if version == pin:
        return pypi(pin, why.format("have PyPI's"))
    return Build(kind_of(version), f"torch=={version}", [], why.format(f"have {version}"), False)


def from_cpu_index(python: str, pin: str, why: str, environ: "Mapping[str, str]") -> "Build":
    options = ["--index-url", CPU_INDEX, "--retries", "1"]
    return Build("cpu", f"torch=={pin}+cpu", options, why, False)


def choose(python: str, venv: "Path", pin: str, environ: "Mapping[str, str]") -> "Build":
    """The build for this machine, or Problem. See the head of this file."""
    word, have = wanted(environ), installed(venv)
    if have is not None and have.partition("+")[0] == pin:
        return Build(kind_of(have), f"torch=={have}", [], "it is in .venv already", True)
    linux = sys.platform.startswith("linux")
    if word == "cuda":
        return pypi(pin, f"{VARIABLE}=cuda")
    if word == "cpu" and linux:
        return from_cpu_index(python, pin, f"{VARIABLE}=cpu", environ)
    sources = pip_sources(python, environ)
    if sources:
        return from_settings(python, pin, sources, environ)
    if word != "auto":
        return pypi(pin, f"{VARIABLE}={word}")
    if not linux or platform.machine() not in ("x86_64", "aarch64"):
        return pypi(pin, "it is the one for this system")
    seen = gpu()
    if seen:
        return pypi(pin, seen)
    if offered(python, pin, ["--index-url", CPU_INDEX], environ) == f"{pin}+cpu":
        return from_cpu_index(python, pin, "no NVIDIA GPU was found", environ)
    return pypi(pin, f"{CPU_INDEX} did not answer, or has no CPU build for this Python")


def need(build: "Build") -> "tuple[float, float]":
    """GB for what will be installed, and for its wheels."""
    installed_gb, wheels = SIZES.get(build.kind, SIZES["cpu"])
    return (1.0, 0.3) if build.kept else (installed_gb, wheels)


def sentence(build: "Build", pin: str) -> str:
    """Which, why, how big, how to change it."""
    name = {"cpu": "the CPU build", "cuda": "the CUDA build"}.get(build.kind, "its build")
    size = f"; .venv takes about {SIZES[build.kind][0]:g} GB" if build.kind in SIZES else ""
    if build.kept:
        return f"torch {build.requirement.partition('==')[2]} stays: {build.why}"
    others = [w for w in ("cpu", "cuda") if w != build.kind]
    if not sys.platform.startswith("linux"):
        return f"torch {pin}, {name}: {build.why}{size}"
    return f"torch {pin}, {name}: {build.why}{size}. {VARIABLE}={'|'.join(others)} takes the other"


def differs(word: str, have: "str | None") -> str:
    """A sentence where .venv holds another build than the variable asks for, else ""."""
    if have is None or word not in ("cpu", "cuda") or kind_of(have) == word:
        return ""
    if not sys.platform.startswith("linux"):
        return ""
    return (
        f".venv has torch {have}, which stays although {VARIABLE}={word}; to change it: remove .venv, or "
        f"{os.path.join('.venv', 'bin', 'pip')} uninstall torch, and call again"
    )
