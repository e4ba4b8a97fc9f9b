"""Make or re-use .venv beside the README: for ci/run.py, standard library only.

A stamp with a hash of everything that the environment depends on says whether it is complete; it is
removed before anything is changed and written last.
"""

# Any Python 3 must be able to read this file, to say that it is too old: annotations in quotes,
# nothing newer than 3.6.
# ruff: noqa: B904
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if False:  # for type checkers only
    from typing import Iterator, Mapping  # noqa: UP035

ROOT = Path(__file__).resolve().parents[1]
SUPPORTED = ((3, 10), (3, 13))
NEED_GIB = 3.0  # packages with a CPU build of torch, and pip's own temporary files
# what pip's log says -> what to do
HINTS = (
    (
        ("No space left", "Errno 28"),
        "the disk is full: free some space (a CUDA build of torch takes 7 GB; README says "
        "how to use the CPU build)",
    ),
    (
        (
            "name resolution",
            "Failed to establish",
            "Connection refused",
            "ProxyError",
            "Network is unreachable",
            "NewConnectionError",
            "Read timed out",
            "ConnectTimeout",
            "SSLError",
            "CERTIFICATE_VERIFY_FAILED",
        ),
        "no package index was reached: check the network and proxy, or set PIP_INDEX_URL to a mirror",
    ),
    (
        ("(from versions: none)",),
        "no package index answered, or it has nothing for this Python or machine: check the network, the proxy and "
        "PIP_INDEX_URL",
    ),
    (
        ("No matching distribution", "Could not find a version"),
        "the package index has no build of that package for this Python or machine: try Python 3.11 or 3.12",
    ),
    (
        ("ResolutionImpossible", "conflicting dependencies"),
        "versions collide: a constraint of your pip configuration may be in the way (`pip config list`)",
    ),
    (
        ("Failed to build", "Failed building wheel", "error: command 'gcc'"),
        "a package had to be compiled and was not: install a C compiler and Python's headers",
    ),
    (("Permission denied",), "a file cannot be written: check who owns the folder"),
)


class Problem(Exception):
    """What stands in the way, in a sentence with what to do."""


class Terminated(BaseException):
    """A SIGTERM came; by default it would leave pip running behind us."""


# ---- where things are ----------------------------------------------------------------------------


def venv_dir() -> "Path":
    return ROOT / ".venv"


def venv_python() -> "Path":
    return venv_dir() / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def stamp_file() -> "Path":
    return venv_dir() / "dsv3-port-setup.json"


def dotted(version: "tuple[int, int]") -> str:
    return f"{version[0]}.{version[1]}"


def log_file() -> "Path":
    return venv_dir() / "setup.log"


def check_version(version: "tuple[int, int]", whose: str = "this Python") -> None:
    low, high = (dotted(v) for v in SUPPORTED)
    if not SUPPORTED[0] <= version <= SUPPORTED[1]:
        raise Problem(
            f"{whose} is {dotted(version)}; Python {low} to {high} is needed, as in "
            "`python3.12 ci/run.py ...`"
        )


def setup_key(version: str) -> str:
    """Changes with whatever the environment depends on: requirements, pins, its Python, and where
    it stands."""
    digest = hashlib.sha256()
    for part in (ROOT / "pyproject.toml", ROOT / "ci" / "constraints.txt"):
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
    model hub."""
    drop = (
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


def check_room() -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=str(ROOT)):
            pass
    except OSError as error:
        raise Problem(
            f"{ROOT} cannot be written ({error.strerror}): clone the repository to a folder of your own"
        )
    free = shutil.disk_usage(str(ROOT)).free / 2.0**30
    if free < NEED_GIB:
        raise Problem(
            f"{free:.1f} GiB are free on the disk of {ROOT}, about {NEED_GIB:.1f} are needed"
        )


def check_venv_module() -> None:
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise Problem(
            "this Python has no working venv module; install it (Debian, Ubuntu: apt install python3-venv) "
            "or use another Python, then call again"
        )


# ---- set-up --------------------------------------------------------------------------------------


def last_line(log: "Path") -> str:
    """The last thing that was logged, short enough for a line that is overwritten."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 2000))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:70] for line in reversed(lines) if line.strip()), "")


def end(child: "subprocess.Popen[bytes]") -> None:
    """End a child and the processes it started: pip runs others."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()


def phase(title: str, command: "list[str]", log: "Path") -> None:
    """Run a command with its output in `log` and one line on the screen; Problem with the log's
    tail if it fails."""
    print(f"  {title:<24}", end="", flush=True)
    terminal, start, shown = sys.stdout.isatty(), time.time(), 0.0
    begin = log.stat().st_size if log.exists() else 0
    with log.open("ab") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=str(ROOT),
            env=clean_environment(os.environ),
            start_new_session=True,
        )
        try:
            while child.poll() is None:
                time.sleep(0.1)
                seconds = time.time() - start
                if terminal and seconds - shown > 1:
                    shown = seconds
                    print(
                        f"\r  {title:<24}{seconds:4.0f} s  {last_line(log):<70}", end="", flush=True
                    )
                elif not terminal and seconds - shown > 30:
                    shown = seconds
                    print(f" ... {seconds:.0f} s", end="", flush=True)
        except BaseException:
            end(child)
            raise
    seconds, word = time.time() - start, "" if child.returncode == 0 else "failed"
    print(
        f"\r  {title:<24}{seconds:4.0f} s  {word:<70}" if terminal else f" {seconds:.0f} s {word}",
        flush=True,
    )
    if child.returncode != 0:
        with log.open("rb") as file:
            file.seek(begin)
            raise Problem(failure_text(title, file.read().decode("utf-8", "replace")))


def failure_text(title: str, output: str) -> str:
    tail = "\n".join("    | " + line for line in output.rstrip().split("\n")[-15:])
    hint = next(
        (todo for words, todo in HINTS if any(w in output for w in words)),
        "the lines above say why",
    )
    return f"{title} failed: {hint}. Call again afterwards; what is there is re-used. Whole log: {log_file()}\n{tail}"


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
        check_venv_module()
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
    if is_ready():
        return
    check_room()
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
    pins = str(ROOT / "ci" / "constraints.txt")
    phase(
        "installing packages",
        [
            python,
            "-m",
            "pip",
            "install",
            "--no-input",
            "--disable-pip-version-check",
            "-c",
            pins,
            "-e",
            ".[dev]",
        ],
        log,
    )
    phase(
        "registering the kernel",
        [
            python,
            "-m",
            "ipykernel",
            "install",
            "--sys-prefix",
            "--name",
            "python3",
            "--display-name",
            "Python 3 (ipykernel)",
        ],
        log,
    )
    wanted = "import torch, transformers, papermill, nbconvert, dsv3_port.course.session"
    phase("first import", [python, "-c", wanted], log)
    add_host_npu(python, log)
    new = stamp_file().with_name(stamp_file().name + ".new")
    new.write_text(json.dumps({"python": version, "key": setup_key(version)}), encoding="utf-8")
    os.replace(str(new), str(stamp_file()))


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
