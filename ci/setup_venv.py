"""Make or re-use .venv beside the README: for ci/run.py, standard library only.

A stamp with a hash of everything that the environment depends on says whether it is complete; it is
removed before anything is changed and written last.
"""

# Any Python 3 must be able to read this file, to say that it is too old: annotations in quotes,
# nothing newer than 3.6.
# ruff: noqa: B904
import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import locked
import side_by_side
import torch_build
import venv_checks
import venv_phase
from venv_checks import Problem, check_version

if False:  # for type checkers only
    from typing import Iterator, Mapping  # noqa: UP035

ROOT = Path(__file__).resolve().parents[1]
# large, and in use everywhere: compiled by the set-up, which says too whether they can be imported
FIRST_IMPORTS = (
    "import torch._inductor.compile_fx",
    "import transformers.models.deepseek_v3.modeling_deepseek_v3, dsv3_port.course.session",
    "import matplotlib.pyplot, papermill, nbconvert, ipykernel.kernelapp, jupyterlab.labapp",
)


# ---- where things are ----------------------------------------------------------------------------


def venv_dir() -> "Path":
    return ROOT / ".venv"


def venv_python() -> "Path":
    return venv_dir() / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def stamp_file() -> "Path":
    return venv_dir() / "dsv3-port-setup.json"


def log_file() -> "Path":
    return venv_dir() / "setup.log"


def setup_key(version: str) -> str:
    """Changes with whatever the environment depends on: requirements, pins, its Python, and where
    it stands."""
    digest = hashlib.sha256()
    for part in (
        ROOT / "pyproject.toml",
        ROOT / "ci" / locked.PINS,
        ROOT / "ci" / locked.CUDA_PINS,
    ):
        digest.update(part.read_bytes())
    digest.update(f"{version} {sys.platform} {ROOT}".encode())
    return digest.hexdigest()


def python_version(python: "Path") -> "str | None":
    """`3.11.7` if this interpreter runs and has pip, else None."""
    code = "import pip, platform; print(platform.python_version())"
    try:
        done = subprocess.run(
            [str(python), "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=clean_environment(os.environ),
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode().strip() if done.returncode == 0 else None


def is_ready() -> bool:
    """Whether a finished set-up for exactly this state of the repository is there."""
    try:
        stamp = json.loads(stamp_file().read_text(encoding="utf-8"))
        return venv_python().exists() and stamp["key"] == setup_key(stamp["python"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def clean_environment(inherited: "Mapping[str, str]") -> "dict[str, str]":
    """What children see: the venv first, nothing that leads Python, pip or Jupyter elsewhere, no
    model hub. Compiled files are kept: without them every import compiles anew."""
    drop = (
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "__PYVENV_LAUNCHER__",
        "PIP_USER",
        "PIP_TARGET",
        "PIP_PREFIX",
        "JUPYTER_PATH",
        "JUPYTER_CONFIG_PATH",
    )
    env = {k: v for k, v in inherited.items() if k not in drop}
    env["VIRTUAL_ENV"] = str(venv_dir())
    env["PATH"] = str(venv_python().parent) + os.pathsep + env.get("PATH", os.defpath)
    # a kernel called python3 in the user's own folder must not win over the venv's
    env["JUPYTER_PATH"] = str(venv_dir() / "share" / "jupyter")
    env["JUPYTER_PREFER_ENV_PATH"] = "1"
    env["TOKENIZERS_PARALLELISM"] = "false"
    env["HF_HUB_OFFLINE"] = "1"
    env["PYTHONUNBUFFERED"] = "1"
    return env


# ---- set-up --------------------------------------------------------------------------------------


def phase(title: str, command: "list[str]", log: "Path") -> None:
    """Run one part of the set-up, or raise Problem with the log's tail."""
    output = venv_phase.run(title, command, log, ROOT, clean_environment(os.environ))
    if output:
        raise Problem(venv_checks.failure_text(title, output, log_file()))


def make_venv(log: "Path") -> str:
    """An interpreter with pip in .venv, re-used where it runs; returns its version."""
    version = python_version(venv_python())
    if version is None:
        if (
            venv_dir().exists()
            and any(venv_dir().iterdir())
            and not (venv_dir() / "pyvenv.cfg").exists()
        ):
            raise Problem(
                f"{venv_dir()} is there and is no virtual environment: move it away and call again"
            )
        check_version(sys.version_info[:2])
        venv_checks.check_venv_module()
        phase("making .venv", [sys.executable, "-m", "venv", "--clear", str(venv_dir())], log)
        version = python_version(venv_python())
        if version is None:
            raise Problem(
                f"{venv_dir()} was made and does not run; remove the folder and call again"
            )
    parts = version.split(".")
    check_version(
        (int(parts[0]), int(parts[1])),
        "the Python of .venv (remove that folder to have it made anew)",
    )
    return version


@contextlib.contextmanager
def one_at_a_time() -> "Iterator[None]":
    """Two set-ups of one folder wait for each other (a lock on a file that is there anyway; not on
    Windows)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (ROOT / "pyproject.toml").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("another set-up of this folder is running; waiting for it", flush=True)
            with contextlib.suppress(OSError):  # some network disks know no locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def setup() -> None:
    """Make the environment complete, or raise Problem; nothing is done where it is."""
    word = torch_build.wanted(os.environ)
    if is_ready():
        other = torch_build.differs(word, torch_build.installed(venv_dir()))
        if other:
            print(other, flush=True)
        return
    venv_checks.check_writable(ROOT)
    with one_at_a_time(), tempfile.TemporaryDirectory() as folder:
        if is_ready():  # the other set-up has made it meanwhile
            return
        print(f"setting up {venv_dir()} (once; some minutes)", flush=True)
        log = Path(folder) / "setup.log"  # outside of .venv, which may be cleared
        try:
            fill(log)
        except OSError as error:
            raise Problem(f"{error.filename or venv_dir()}: {error.strerror or error}")
        finally:
            if log.exists() and venv_dir().is_dir():
                shutil.copyfile(str(log), str(log_file()))


def fill(log: "Path") -> None:
    """All phases. The stamp goes first and comes last, so that half a set-up never counts as one."""
    if stamp_file().exists():
        stamp_file().unlink()
    version = make_venv(log)
    python = str(venv_python())
    build = choose_torch(python)
    # pip works on one core, most of the time unpacking: all of them at once
    calls = [] if build.kept else [locked.torch_words(build, ROOT / "ci", log.parent)]
    calls += locked.rest_words(build, ROOT / "ci", log.parent)
    phase(
        "the packages", side_by_side.joined([pip_install(python, *words) for words in calls]), log
    )
    own = ("--no-deps", "--no-build-isolation", "-e", ".")  # setuptools is among the pins
    phase("dsv3-port itself", pip_install(python, *own), log)
    kernel = ["--sys-prefix", "--name", "python3", "--display-name", "Python 3 (ipykernel)"]
    last = [
        *([python, "-c", words] for words in FIRST_IMPORTS),
        [python, "-m", "pip", "check"],
        [python, "-m", "ipykernel", "install"] + kernel,
    ]
    phase("first import, kernel", side_by_side.joined(last), log)
    add_host_npu(python, log)
    new = stamp_file().with_name(stamp_file().name + ".new")
    new.write_text(json.dumps({"python": version, "key": setup_key(version)}), encoding="utf-8")
    os.replace(str(new), str(stamp_file()))


def pip_install(python: str, *words: str) -> "list[str]":
    """Without compiling: Python does that for what it imports, a tenth of what is there."""
    options = ("--no-input", "--disable-pip-version-check", "--no-compile")
    return [python, "-m", "pip", "install", *options, *words]


def choose_torch(python: str) -> "torch_build.Build":
    """The build for this machine: said, and its room looked for."""
    pin, environ = locked.pinned_torch(ROOT / "ci"), clean_environment(os.environ)
    build = torch_build.choose(python, venv_dir(), pin, environ)
    print(f"  {torch_build.sentence(build, pin)}", flush=True)
    other = torch_build.differs(torch_build.wanted(environ), torch_build.installed(venv_dir()))
    if other:
        print(f"  {other}", flush=True)
    installed, wheels = torch_build.need(build)
    venv_checks.check_room(ROOT, installed, wheels, environ)
    return build


def host_npu_is_possible() -> bool:
    compiler = os.environ.get("CC") or any(shutil.which(c) for c in ("cc", "gcc", "clang"))
    return (
        sys.platform.startswith("linux")
        and platform.machine() in ("x86_64", "aarch64")
        and bool(compiler)
    )


def add_host_npu(python: str, log: "Path") -> None:
    """torch_npu into a folder of its own, where it runs; nothing else needs it, so a failure is
    only told."""
    if not host_npu_is_possible():
        return
    try:
        phase("torch_npu, apart", [python, "-m", "dsv3_port", "hostnpu", "install"], log)
    except Problem:
        print(
            "  the host NPU is not there: `dsv3-port hostnpu install` tries again and says why; the rest works"
        )
