"""`ci/run.py matrix`: the commands in a clean clone and environment for each Python and build of torch.

Every cell is a clone of what is committed, with a .venv, a pip cache and program caches of its own, in a
folder that is removed afterwards. Logs, reports of the commands and `matrix.json` stay in `--out`.
Nothing of it runs by itself: it takes half an hour and 2 to 12 GB of disk a cell.
"""

# Standard library only; any Python 3 must be able to read this file (nothing newer than 3.6).
import argparse
import collections
import glob
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch_build
from venv_checks import SUPPORTED, Problem, dotted

if False:  # for type checkers only
    from typing import Mapping  # noqa: UP035

COMMANDS = ("tutorial", "test")
KEPT = ("out/runs.json", "out/tutorial.json", ".venv/setup.log", ".venv/dsv3-port-setup.json")
# what a command says of itself at its end
SUMMARY = re.compile(
    r"^=+ .*\b(?:passed|failed|error).* =+$|^\d+ (?:passed|failed).*|^.*notebooks ran through.*$",
    re.MULTILINE,
)
Cell = collections.namedtuple("Cell", "python build")


def every_python() -> "list[str]":
    return [dotted((SUPPORTED[0][0], m)) for m in range(SUPPORTED[0][1], SUPPORTED[1][1] + 1)]


def version_of(program: str) -> str:
    """`3.12.1`, or "" of what does not run (pyenv's shims of versions that are switched off)."""
    try:
        done = subprocess.run(
            [program, "-c", "import platform, venv, ensurepip; print(platform.python_version())"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode().strip() if done.returncode == 0 else ""


def find_python(version: str) -> str:
    """A program that is this Python (`3.12`), from PATH or pyenv's folder; "" if there is none."""
    name = "python" + version
    found = [os.path.join(d, name) for d in os.environ.get("PATH", os.defpath).split(os.pathsep)]
    root = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    found += sorted(glob.glob(os.path.join(root, "versions", version + ".*", "bin", "python")))
    for program in found:
        if os.access(program, os.X_OK) and version_of(program).startswith(version + "."):
            return program
    return ""


def cell_environment(
    inherited: "Mapping[str, str]", caches: "Path", build: str, pip_cache: str
) -> "dict[str, str]":
    """The caller's, with every cache in the cell's folder; pip's settings stay, they say where
    packages come from."""
    env = {k: v for k, v in inherited.items() if k != "VIRTUAL_ENV"}
    env[torch_build.VARIABLE] = build
    env["PIP_CACHE_DIR"] = pip_cache or str(caches / "pip")
    env["XDG_CACHE_HOME"] = str(caches / "xdg")
    env["XDG_DATA_HOME"] = str(caches / "data")
    env["TORCHINDUCTOR_CACHE_DIR"] = str(caches / "inductor")
    env["TRITON_CACHE_DIR"] = str(caches / "triton")
    env["DSV3_HOSTNPU_CACHE"] = str(caches / "hostnpu")
    env["MPLCONFIGDIR"] = str(caches / "matplotlib")
    env["DSV3_LANG"] = (
        "en"  # what the commands say at their end is read here, and stands in one table
    )
    return env


def step(
    words: "list[str]", folder: "Path", env: "dict[str, str]", log: "Path"
) -> "dict[str, object]":
    """Run a command with its output in `log`: exit code, minutes, what it says at its end."""
    start = time.time()
    with log.open("wb") as file:
        done = subprocess.run(
            words,
            cwd=str(folder),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    text = log.read_text(encoding="utf-8", errors="replace")
    said = SUMMARY.findall(text) or [line for line in text.splitlines() if line.strip()][-1:]
    return {
        "code": done.returncode,
        "minutes": round((time.time() - start) / 60, 1),
        "says": said[-1].strip("= ").strip() if said else "",
        "log": log.name,
    }


def gigabytes(folder: "Path") -> float:
    total, seen = 0, set()
    for file in folder.rglob("*"):
        info = file.lstat()
        if (info.st_dev, info.st_ino) not in seen:
            seen.add((info.st_dev, info.st_ino))
            total += info.st_size
    return round(total / 1e9, 1)


def run_cell(
    root: "Path", cell: "Cell", options: "argparse.Namespace", rest: "list[str]"
) -> "dict[str, object]":
    """One row: set-up, then the commands, in a clone that nothing else sees."""
    name = f"python{cell.python}-{cell.build}"
    out = Path(options.out).resolve() / name
    shutil.rmtree(str(out), ignore_errors=True)
    out.mkdir(parents=True)
    row = {"python": cell.python, "build": cell.build}  # type: dict[str, object]
    program = find_python(cell.python)
    if not program:
        row["missing"] = "no such Python here"
        return row
    row["python"] = version_of(program)
    if options.work:
        os.makedirs(options.work, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=options.work))
    try:
        clone, env = (
            work / "clone",
            cell_environment(os.environ, work, cell.build, options.pip_cache),
        )
        subprocess.run(
            ["git", "clone", "--quiet", "--no-hardlinks", str(root), str(clone)], check=True
        )
        row["setup"] = step([program, "ci/run.py", "setup"], clone, env, out / "setup.log")
        row["torch"] = torch_build.installed(clone / ".venv") or ""
        row["gb"] = gigabytes(clone / ".venv") if (clone / ".venv").is_dir() else 0
        for command in options.command if row["setup"]["code"] == 0 else []:  # type: ignore[index]
            words = [program, "ci/run.py", command] + (["--"] + rest if rest else [])
            row[command] = step(words, clone, env, out / f"{command}.log")
        for file in (clone / kept for kept in KEPT):
            if file.is_file():
                shutil.copyfile(str(file), str(out / file.name))
    finally:
        if not options.keep:
            shutil.rmtree(str(work), ignore_errors=True)
        else:
            row["clone"] = str(work)
    return row


def passed(row: "dict[str, object]", commands: "list[str]") -> bool:
    steps = [row.get(name) for name in ["setup"] + commands]
    return all(isinstance(s, dict) and s["code"] == 0 for s in steps)


def table(rows: "list[dict[str, object]]", commands: "list[str]") -> str:
    """Markdown: one row a cell."""
    head = ["Python", "asked for", "torch", ".venv, GB", "setup"] + commands
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [str(row["python"]), str(row["build"])]
        if "missing" in row:
            cells += [str(row["missing"])] + ["–"] * (len(head) - 3)
        else:
            cells += [str(row.get("torch") or "–"), str(row.get("gb", "–"))]
            cells += [said(row.get(name)) for name in ["setup"] + commands]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def said(result: "object") -> str:
    if not isinstance(result, dict):
        return "not run"
    word = "ok" if result["code"] == 0 else f"**exit code {result['code']}**"
    text = str(result["says"]).replace("|", "/")
    return (
        f"{word}, {result['minutes']} min: {text}" if text else f"{word}, {result['minutes']} min"
    )


def comma(allowed: "tuple[str, ...]"):
    def words(text: str) -> "list[str]":
        wrong = [w for w in text.split(",") if w not in allowed]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]} is none of {', '.join(allowed)}")
        return text.split(",")

    return words


def make_parser() -> "argparse.ArgumentParser":
    parser = argparse.ArgumentParser(
        prog="ci/run.py matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--python",
        type=comma(tuple(every_python())),
        help="3.10,3.12 (default: every one that is here)",
    )
    parser.add_argument(
        "--build",
        type=comma(torch_build.WORDS),
        default=["auto"],
        help=f"{','.join(torch_build.WORDS)}: {torch_build.VARIABLE} of the cell (default: auto)",
    )
    parser.add_argument(
        "--command",
        type=comma(COMMANDS),
        default=list(COMMANDS),
        help="tutorial,test (default: both)",
    )
    parser.add_argument(
        "--out", default="out/matrix", help="logs and matrix.json (default: %(default)s)"
    )
    parser.add_argument("--work", help="where clones are made (default: the temporary folder)")
    parser.add_argument(
        "--pip-cache", default="", help="a pip cache that all cells share (default: each its own)"
    )
    parser.add_argument("--keep", action="store_true", help="leave clones and environments")
    return parser


def main(root: "Path", argv: "list[str]") -> int:
    """0 where every cell passed. Words behind `--` go to each command."""
    parser = make_parser()
    cut = argv.index("--") if "--" in argv else len(argv)
    options, rest = parser.parse_args(argv[:cut]), argv[cut + 1 :]
    if shutil.which("git") is None or not (root / ".git").exists():
        raise Problem(f"{root} is no clone of git, or git is not installed: cells are clones")
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"],
        cwd=str(root),
        stdout=subprocess.PIPE,
    ).stdout
    if changed.strip():
        print("uncommitted changes are in no cell: clones hold what is committed", flush=True)
    pythons = options.python or [v for v in every_python() if find_python(v)]
    rows = []
    for cell in [Cell(p, b) for p in pythons for b in options.build]:
        print(f"Python {cell.python}, {cell.build} ...", flush=True)
        rows.append(run_cell(root, cell, options, rest))
        out = Path(options.out).resolve() / "matrix.json"
        out.write_text(
            json.dumps({"arguments": rest, "cells": rows}, indent=1) + "\n", encoding="utf-8"
        )
    print(table(rows, options.command))
    return 0 if all(passed(row, options.command) for row in rows) else 1
