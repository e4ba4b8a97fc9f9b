"""What must hold before packages are installed, and what a failed installation means.

Standard library only; any Python 3 must be able to read this file (nothing newer than 3.6).
"""

# ruff: noqa: B904
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

if False:  # for type checkers only
    from typing import Mapping  # noqa: UP035

SUPPORTED = ((3, 10), (3, 14))
# what pip's log says -> what to do
HINTS = (
    (
        ("No space left", "Errno 28"),
        "the disk is full: free some space (README says what each build of torch takes; DSV3_TORCH_BUILD=cpu is the "
        "smaller one)",
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
        ("DO NOT MATCH THE HASHES", "Hashes are required"),
        "a package index gave another file than the one that was tested (a damaged download, or a mirror that builds "
        "its own): set PIP_INDEX_URL to another index. Without hashes: .venv/bin/pip install -c ci/pins.txt -e .[dev]",
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


def dotted(version: "tuple[int, int]") -> str:
    return f"{version[0]}.{version[1]}"


def check_version(version: "tuple[int, int]", whose: str = "this Python") -> None:
    low, high = (dotted(v) for v in SUPPORTED)
    if not SUPPORTED[0] <= version <= SUPPORTED[1]:
        raise Problem(
            f"{whose} is {dotted(version)}; Python {low} to {high} is needed, as in "
            "`python3.12 ci/run.py ...`"
        )


def check_venv_module() -> None:
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise Problem(
            "this Python has no working venv module; install it (Debian, Ubuntu: apt install python3-venv) "
            "or use another Python, then call again"
        )


def check_writable(root: "Path") -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=str(root)):
            pass
    except OSError as error:
        raise Problem(
            f"{root} cannot be written ({error.strerror}): clone the repository to a folder of your own"
        )


def check_room(root: "Path", installed: float, wheels: float, environ: "Mapping[str, str]") -> None:
    """Space (GB) for what is installed below `root`, and for the wheels twice: pip unpacks from
    its temporary folder, and keeps each in its cache. Folders on one disk add up."""
    need = {}  # type: dict[int, float]
    where = {}  # type: dict[int, Path]
    places = [(root, installed), (Path(tempfile.gettempdir()), wheels)]
    if not environ.get("PIP_NO_CACHE_DIR"):
        places.append((pip_cache(environ), wheels))
    for folder, size in places:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        disk = os.stat(str(folder)).st_dev
        where.setdefault(disk, folder)
        need[disk] = need.get(disk, 0.0) + size
    for disk, total in need.items():
        free = shutil.disk_usage(str(where[disk])).free / 1e9
        if free < total:
            raise Problem(
                f"{free:.1f} GB are free on the disk of {where[disk]}, about {total:.1f} are needed (packages, and "
                "pip's temporary files and cache; TMPDIR and PIP_CACHE_DIR place these elsewhere)"
            )


def pip_cache(environ: "Mapping[str, str]") -> "Path":
    given = environ.get("PIP_CACHE_DIR")
    if given:
        return Path(given)
    return Path(environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "pip"


def failure_text(title: str, output: str, log: "Path") -> str:
    tail = "\n".join("    | " + line for line in output.rstrip().split("\n")[-15:])
    hint = next(
        (todo for words, todo in HINTS if any(w in output for w in words)),
        "the lines above say why",
    )
    return f"{title} failed: {hint}. Call again afterwards; what is there is re-used. Whole log: {log}\n{tail}"
