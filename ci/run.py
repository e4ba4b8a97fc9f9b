"""Set up and run: `python3 ci/run.py {tutorial,test,lab,check,setup,matrix} [arguments passed on]`.

tutorial  executes every notebook and builds the pages (arguments of `dsv3-port tutorial`)
test      passes the tests (arguments of pytest)
lab       opens JupyterLab on the notebooks (arguments of jupyter lab)
check     lint, types, spelling, rules of the notebooks, Chinese twins, tables of the README
setup     only makes the environment
matrix    both commands in a clean clone for each Python and build of torch, as a table (`matrix --help`)

Needs Python 3.10 to 3.14 and nothing else: makes .venv beside the README with the tested versions
of ci/constraints.txt, or re-uses it. Exit code 2 and a sentence where that is not possible.
"""

# Any Python 3 must be able to read this file, to say that it is too old: annotations in quotes,
# nothing newer than 3.6.
import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import matrix
import setup_venv
from venv_checks import Problem, check_version
from venv_phase import Terminated

COMMANDS = ("tutorial", "test", "lab", "check", "setup", "matrix")


def call(command: "list[str]") -> int:
    """Run in the venv with this terminal; an interrupt reaches the child too, which then has time
    to end."""
    child = subprocess.Popen(
        command, cwd=str(setup_venv.ROOT), env=setup_venv.clean_environment(os.environ)
    )
    while True:
        try:
            code = child.wait()
            return code if code >= 0 else 128 - code
        except KeyboardInterrupt:
            continue
        except Terminated:
            child.terminate()


def run_checks(python: str) -> int:
    """Every check, also after one that failed; 1 if any did."""
    todo = (
        ("lint", ["-m", "ruff", "check", "."]),
        ("format", ["-m", "ruff", "format", "--check", "."]),
        ("types", ["-m", "mypy"]),
        ("spelling", ["-m", "codespell_lib"]),
        ("notebooks", ["ci/tools/check_notebooks.py"]),
        ("twins", ["ci/tools/twins.py"]),
        ("messages", ["ci/tools/messages.py"]),
        ("README tables", ["ci/tools/readme.py", "--check"]),
    )
    failed = []
    for name, words in todo:
        start = time.time()
        code = call([python] + words)
        print(
            f"{name:<14} {'ok' if code == 0 else 'FAILED'}  {time.time() - start:.1f} s", flush=True
        )
        failed += [name] if code != 0 else []
    return 1 if failed else 0


def stop(number: int, frame: object) -> None:
    raise Terminated


def main(argv: "list[str]") -> int:
    parser = argparse.ArgumentParser(
        prog="ci/run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="passed on")
    args = parser.parse_args(argv)
    rest = args.rest[1:] if args.rest[:1] == ["--"] else args.rest
    python = str(setup_venv.venv_python())
    signal.signal(signal.SIGTERM, stop)
    try:
        check_version(sys.version_info[:2])
        if args.command == "matrix":
            return matrix.main(setup_venv.ROOT, args.rest)
        setup_venv.setup()
        if args.command == "setup":
            print(f"ready: {python}")
            return 0
        if args.command == "check":
            return run_checks(python)
        module = {
            "tutorial": ["dsv3_port", "tutorial"],
            "test": ["pytest"],
            "lab": ["jupyterlab", "notebooks"],
        }
        if args.command == "lab" and hasattr(os, "geteuid") and os.geteuid() == 0:
            module["lab"].append("--allow-root")  # in a container; token and loopback stay
        return call([python, "-m"] + module[args.command] + rest)
    except Problem as problem:
        print(f"ci/run.py: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nci/run.py: interrupted; call again to go on", file=sys.stderr)
        return 130
    except Terminated:
        return 143


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
