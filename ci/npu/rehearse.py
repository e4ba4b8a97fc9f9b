"""Run what the container file and the conda files would run, on a machine without docker or conda.

    python ci/npu/rehearse.py container --root DIR [--arg NAME=VALUE] [--skip WORD]
    python ci/npu/rehearse.py conda environment-npu.yml --root DIR

`container`: the steps of ci/npu/Dockerfile in their order, in a clean folder: a new virtual environment
stands for the image's Python, the files that git knows for the context, DIR/opt and DIR/dsv3-port for /opt
and /dsv3-port. `conda`: the words of the file's pip section, in a new virtual environment. What has no
stand-in is printed as not tried: the image itself, packages of apt and of conda-forge, and steps that
contain a word of --skip. Exit code 1 where a step fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
Step = tuple[str, str]  # instruction, what follows it


def steps(dockerfile: str) -> Iterator[Step]:
    """Instructions of a container file, comments out, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.MULTILINE).replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word.upper(), " ".join(rest.split())


def clean(root: Path) -> dict[str, str]:
    """A new virtual environment in `root`, and the environment of a shell in it."""
    venv.create(root / "python", with_pip=True)
    keep = ("HOME", "LANG", "PIP_CERT", "PIP_CONFIG_FILE", "PIP_FIND_LINKS", "PIP_CACHE_DIR")
    env = {k: os.environ[k] for k in keep if k in os.environ}
    return {**env, "PATH": f"{root / 'python' / 'bin'}:{os.environ['PATH']}"}


def context(folder: Path) -> None:
    """What `COPY . .` copies: the files that git knows."""
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    words = ["tar", "-c", "--null", "-T", "-"]
    packed = subprocess.run(words, cwd=ROOT, input=archive.stdout, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)


def run(command: str, folder: Path, env: dict[str, str]) -> bool:
    print(f"run        {command}", flush=True)
    code = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=env
    ).returncode
    print(f"{'ok' if code == 0 else 'FAILED'}", flush=True)
    return code == 0


def container(dockerfile: str, root: Path, given: dict[str, str], skip: list[str]) -> bool:
    """Whether every step that has a stand-in passed."""
    env, folder = clean(root), root
    (root / "opt").mkdir()
    for word, rest in steps(dockerfile):
        here = re.sub(r"(?<![\w.])/(opt|dsv3-port)(?=/|$)", lambda m: f"{root}/{m[1]}", rest)
        if word == "ARG":
            name, _, value = rest.partition("=")
            env[name] = given.get(name, value)
        elif word == "WORKDIR":
            folder = Path(here)
        elif word == "COPY" and rest == ". .":
            context(folder)
        elif word == "ENV":
            name, _, value = here.partition("=")
            env[name] = value
        elif word != "RUN" or any(s in rest for s in ["apt-get", *skip]):
            print(f"not tried  {word} {rest}")
        elif not run(here, folder, env):
            return False
    return run("dsv3-port --help > /dev/null && pip check", folder, env)


def conda(file: Path, root: Path) -> bool:
    """Whether pip's part of a conda file installs."""
    import yaml

    packages = yaml.safe_load(file.read_text(encoding="utf-8"))["dependencies"]
    names = [p for p in packages if isinstance(p, str)]
    words = [
        w for p in packages if isinstance(p, dict) for line in p["pip"] for w in shlex.split(line)
    ]
    print(f"not tried  conda-forge: {', '.join(names)}")
    env = clean(root)
    context(root / "clone")
    done = run(f"pip install {shlex.join(words)}", root / "clone", env)
    return done and run("dsv3-port --help > /dev/null && pip check", root / "clone", env)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("container", "conda"))
    parser.add_argument(
        "file", nargs="?", help="conda file (conda), container file (ci/npu/Dockerfile)"
    )
    parser.add_argument("--root", required=True, help="a folder that does not exist yet")
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--skip", action="append", default=[], metavar="WORD")
    args = parser.parse_args(argv)
    root = Path(args.root).resolve()
    if root.exists():
        parser.error(f"{root} exists: the rehearsal needs a clean folder")
    root.mkdir(parents=True)
    if args.what == "conda":
        return 0 if conda(Path(args.file or "environment.yml"), root) else 1
    text = Path(args.file or ROOT / "ci" / "npu" / "Dockerfile").read_text(encoding="utf-8")
    given = dict(a.split("=", 1) for a in args.arg)
    return 0 if container(text, root, given, args.skip) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
