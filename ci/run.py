"""Set up and run: `python3 ci/run.py {tutorial,test,lab,check,setup} [arguments passed on]`.

tutorial  executes every notebook and builds the pages (arguments of `dsv3-port tutorial`)
test      passes the tests (arguments of pytest)
lab       opens JupyterLab on the notebooks (arguments of jupyter lab)
check     lint, types, spelling, rules of the notebooks, tables of the README
setup     only makes the environment

Needs Python 3.10 to 3.13 and nothing else: makes .venv beside the README with the tested versions of
ci/constraints.txt, or re-uses it. Exit code 2 and a sentence where that is not possible.
"""

# Read by any Python 3, so that an old one can say what is missing: no newer syntax here, annotations in quotes.
import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUPPORTED = ((3, 10), (3, 13))
NEED_GIB = 2.5  # packages with a CPU build of torch, and pip's own temporary files
COMMANDS = ("tutorial", "test", "lab", "check", "setup")
# what pip's log says -> what to do
HINTS = (
    (("No space left", "Errno 28"), "the disk is full: free some space (a CUDA build of torch takes 7 GB; README says "
                                    "how to use the CPU build)"),
    (("name resolution", "Failed to establish", "Connection refused", "ProxyError", "Network is unreachable",
      "NewConnectionError", "Read timed out", "ConnectTimeout", "SSLError", "CERTIFICATE_VERIFY_FAILED"),
     "no package index was reached: check the network and proxy, or set PIP_INDEX_URL to a mirror"),
    (("No matching distribution", "Could not find a version"),
     "the package index has no build of that package for this Python or machine: try Python 3.11 or 3.12"),
    (("ResolutionImpossible", "conflicting dependencies"),
     "versions collide: a constraint of your pip configuration may be in the way (`pip config list`)"),
    (("Failed to build", "Failed building wheel", "error: command 'gcc'"),
     "a package had to be compiled and was not: install a C compiler and Python's headers"),
    (("Permission denied",), "a file cannot be written: check who owns the folder"),
)


class Problem(Exception):
    """What stands in the way, in a sentence with what to do."""


# ---- the environment ------------------------------------------------------------------------------------------------

def venv_dir() -> "Path":
    return ROOT / ".venv"


def venv_python() -> "Path":
    return venv_dir() / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def stamp_file() -> "Path":
    return venv_dir() / "dsv3-port-setup.json"


def check_version(version: "tuple[int, int]", whose: str = "this Python") -> None:
    low, high = ("%d.%d" % v for v in SUPPORTED)
    if not SUPPORTED[0] <= version <= SUPPORTED[1]:
        raise Problem("%s is %d.%d; Python %s to %s is needed, as in `python3.12 ci/run.py ...`"
                      % ((whose,) + tuple(version) + (low, high)))


def setup_key(version: str) -> str:
    """Changes with whatever the environment depends on: requirements, pins, its Python, and where it stands."""
    digest = hashlib.sha256()
    for part in (ROOT / "pyproject.toml", ROOT / "ci" / "constraints.txt"):
        digest.update(part.read_bytes())
    digest.update(("%s %s %s" % (version, sys.platform, ROOT)).encode())
    return digest.hexdigest()


def python_version(python: "Path") -> "str | None":
    """`3.11.7` if this interpreter runs and has pip, else None."""
    code = "import pip, platform; print(platform.python_version())"
    try:
        done = subprocess.run([str(python), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              env=clean_environment(os.environ), timeout=60)
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


def clean_environment(inherited: "dict[str, str]") -> "dict[str, str]":
    """What children see: the venv first, nothing that leads Python, pip or Jupyter elsewhere, no model hub."""
    drop = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__", "PIP_USER", "PIP_TARGET", "PIP_PREFIX",
            "JUPYTER_PATH", "JUPYTER_CONFIG_PATH")
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
        raise Problem("%s cannot be written (%s): clone the repository to a folder of your own"
                      % (ROOT, error.strerror))
    free = shutil.disk_usage(str(ROOT)).free / 2.0**30
    if free < NEED_GIB:
        raise Problem("%.1f GiB are free on the disk of %s, about %.1f are needed" % (free, ROOT, NEED_GIB))


def check_venv_module() -> None:
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise Problem("this Python has no working venv module; install it (Debian, Ubuntu: apt install python3-venv) "
                      "or use another Python, then call again")


# ---- set-up ---------------------------------------------------------------------------------------------------------

def last_line(log: "Path") -> str:
    """The last thing that was logged, short enough for a line that is overwritten."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 2000))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:70] for line in reversed(lines) if line.strip()), "")


def phase(title: str, command: "list[str]", log: "Path") -> None:
    """Run a command with its output in `log` and one line on the screen; Problem with the log's tail if it fails."""
    print("  %-34s" % title, end="", flush=True)
    terminal, start, shown = sys.stdout.isatty(), time.time(), 0.0
    begin = log.stat().st_size if log.exists() else 0
    with log.open("ab") as file:
        file.write(("$ %s\n" % " ".join(command)).encode())
        file.flush()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                                 cwd=str(ROOT), env=clean_environment(os.environ))
        try:
            while child.poll() is None:
                time.sleep(0.1)
                seconds = time.time() - start
                if terminal and seconds - shown > 1:
                    shown = seconds
                    print("\r  %-34s%4.0f s  %-70s" % (title, seconds, last_line(log)), end="", flush=True)
                elif not terminal and seconds - shown > 30:
                    shown = seconds
                    print(" ... %.0f s" % seconds, end="", flush=True)
        except BaseException:
            child.kill()
            child.wait()
            raise
    seconds = time.time() - start
    if terminal:
        print("\r  %-34s%4.0f s  %-70s" % (title, seconds, "" if child.returncode == 0 else "failed"))
    else:
        print(" %.0f s%s" % (seconds, "" if child.returncode == 0 else " failed"), flush=True)
    if child.returncode != 0:
        with log.open("rb") as file:
            file.seek(begin)
            raise Problem(failure_text(title, file.read().decode("utf-8", "replace"), log))


def failure_text(title: str, output: str, log: "Path") -> str:
    tail = "\n".join("    | " + line for line in output.rstrip().split("\n")[-15:])
    hint = next((todo for words, todo in HINTS if any(w in output for w in words)), "the lines above say why")
    return "%s failed: %s. Call again afterwards: what is there is re-used. Whole log: %s\n%s" % (title, hint, log, tail)


def make_venv(log: "Path") -> str:
    """An interpreter with pip in .venv, re-used where it runs; returns its version."""
    version = python_version(venv_python())
    if version is None:
        if venv_dir().exists() and any(venv_dir().iterdir()) and not (venv_dir() / "pyvenv.cfg").exists():
            raise Problem("%s is there and is no virtual environment: move it away and call again" % venv_dir())
        check_version(sys.version_info[:2])
        check_venv_module()
        phase("making .venv", [sys.executable, "-m", "venv", "--clear", str(venv_dir())], log)
        version = python_version(venv_python())
        if version is None:
            raise Problem("%s was made and does not run; remove the folder and call again" % venv_dir())
    parts = version.split(".")
    check_version((int(parts[0]), int(parts[1])), "the Python of .venv (remove that folder to have it made anew)")
    return version


def setup() -> None:
    """Make the environment complete, or raise Problem; the stamp is written last, so half a set-up never counts."""
    if is_ready():
        return
    check_room()
    print("setting up %s (once; some minutes)" % venv_dir(), flush=True)
    python = str(venv_python())
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "setup.log"  # not inside .venv, which making it clears
        try:
            if stamp_file().exists():
                stamp_file().unlink()
            version = make_venv(log)
            pins = str(ROOT / "ci" / "constraints.txt")
            phase("installing packages", [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check",
                                          "-c", pins, "-e", ".[dev]"], log)
            phase("registering the kernel", [python, "-m", "ipykernel", "install", "--sys-prefix", "--name", "python3",
                                             "--display-name", "Python 3 (ipykernel)"], log)
            phase("first import", [python, "-c", "import torch, transformers, papermill, nbconvert, dsv3_port.model.decoder"],
                  log)
        except OSError as error:
            raise Problem("%s: %s" % (error.filename or venv_dir(), error.strerror or error))
        finally:
            if log.exists() and venv_dir().is_dir():
                shutil.copyfile(str(log), str(venv_dir() / "setup.log"))
    new = stamp_file().with_name(stamp_file().name + ".new")
    new.write_text(json.dumps({"python": version, "key": setup_key(version)}), encoding="utf-8")
    os.replace(str(new), str(stamp_file()))


# ---- commands -------------------------------------------------------------------------------------------------------

def call(command: "list[str]") -> int:
    """Run in the venv with this terminal; an interrupt reaches the child too, which then has time to end."""
    child = subprocess.Popen(command, cwd=str(ROOT), env=clean_environment(os.environ))
    while True:
        try:
            code = child.wait()
            return code if code >= 0 else 128 - code
        except KeyboardInterrupt:
            continue


def run_checks(python: str) -> int:
    """Every check, also after one that failed; 1 if any did."""
    todo = (("lint", ["-m", "ruff", "check", "."]), ("types", ["-m", "mypy"]), ("spelling", ["-m", "codespell_lib"]),
            ("notebooks", ["ci/check_notebooks.py"]), ("README tables", ["ci/readme.py", "--check"]))
    failed = []
    for name, words in todo:
        start = time.time()
        code = call([python] + words)
        print("%-14s %s  %.1f s" % (name, "ok" if code == 0 else "FAILED", time.time() - start), flush=True)
        failed += [name] if code != 0 else []
    return 1 if failed else 0


def main(argv: "list[str]") -> int:
    parser = argparse.ArgumentParser(prog="ci/run.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="passed on")
    args = parser.parse_args(argv)
    rest = args.rest[1:] if args.rest[:1] == ["--"] else args.rest
    python = str(venv_python())
    try:
        check_version(sys.version_info[:2])
        setup()
        if args.command == "setup":
            print("ready: %s" % python)
            return 0
        if args.command == "check":
            return run_checks(python)
        module = {"tutorial": ["dsv3_port", "tutorial"], "test": ["pytest"], "lab": ["jupyterlab", "notebooks"]}
        return call([python, "-m"] + module[args.command] + rest)
    except Problem as problem:
        print("ci/run.py: %s" % problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nci/run.py: interrupted; call again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
