"""Make the pins anew from pyproject.toml: `python ci/pins.py` (needs `uv`; says what changed).

Versions stay as they are in ci/constraints.txt unless pyproject.toml forbids one or `--upgrade NAME`
lets it go; torch is in no list of upgrades, as torch_npu belongs to exactly one. Written are
constraints.txt and constraints-cuda.txt with the hashes of every file on PyPI, whatever its Python
and platform, pins.txt without, and pins-npu.txt: the same with the pair for a card, and with another
version only where that pair's torch forbids ours. See ci/locked.py.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CI = Path(__file__).resolve().parent
CUDA = re.compile(r"(?:nvidia|cuda|triton)\b")
NAME = re.compile(r"[=\s]")  # what ends a name
HASHES = re.compile(r"\s*\\?\n?\s*--hash=\S+")
MADE = "ci/pins.py makes this file, never edit it.\n"
FILES = {
    "constraints.txt": "# What ci/run.py installs: every package with the hashes of its files on PyPI. Python 3.10 "
    f"gets the last\n# releases that still support it. For `pip install -c`: ci/pins.txt. {MADE}",
    "constraints-cuda.txt": "# What PyPI's build of torch for Linux asks for besides ci/constraints.txt.\n"
    f"# {MADE}",
    "pins.txt": "# ci/constraints.txt without hashes, for `pip install -c ci/pins.txt -e .[dev]`: pip takes no "
    f"editable install\n# together with hashes. {MADE}",
    "pins-npu.txt": "# For a machine with NPUs: ci/pins.txt with the documented pair of torch and torch_npu "
    f"(docs/versions.md).\n# {MADE}",
}


def without_hashes(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in HASHES.sub("", text).splitlines())


def compiled(uv: str, pins: list[str], *extras: str) -> str:
    """Pins for every Python and platform of the project, as far as `pins` leaves them free."""
    words = [uv, "pip", "compile", "pyproject.toml", "--universal", "--python-version", "3.10"]
    words += ["--no-config", "--quiet", "--no-header", "--no-annotate"]
    words += ["--default-index", "https://pypi.org/simple"]
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder, "old.txt"), Path(folder, "new.txt")
        old.write_text("\n".join(pins), encoding="utf-8")
        subprocess.run([*words, *extras, "-c", str(old), "-o", str(new)], cwd=CI.parent, check=True)
        return new.read_text(encoding="utf-8")


def without_cuda(text: str, keep: bool = False) -> str:
    """The blocks of packages that only a CUDA build of torch asks for left out, or (`keep`) alone."""
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)
    return "".join(b for b in blocks if bool(CUDA.match(b)) == keep)


def make(uv: str, upgrade: list[str]) -> dict[str, str]:
    """File name -> content."""
    lines = (CI / "pins.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if NAME.split(line)[0] not in upgrade]
    text = compiled(uv, kept, "--extra", "dev", "--generate-hashes")
    pins = without_hashes(without_cuda(text))
    # torch of this pair wants an older setuptools, and pip would rather take another torch
    free = [
        line for line in pins.splitlines() if NAME.split(line)[0] not in ("torch", "setuptools")
    ]
    npu = compiled(uv, free, "--extra", "dev", "--extra", "npu")
    bodies = {
        "constraints.txt": without_cuda(text),
        "constraints-cuda.txt": without_cuda(text, keep=True),
        "pins.txt": pins,
        "pins-npu.txt": without_cuda(npu),
    }
    return {name: FILES[name] + body for name, body in bodies.items()}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uv", default="uv", help="the program (default: the one on PATH)")
    parser.add_argument("--upgrade", action="append", default=[], metavar="NAME")
    args = parser.parse_args(argv)
    try:
        files = make(args.uv, args.upgrade)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"ci/pins.py: {error}", file=sys.stderr)
        return 2
    before = set((CI / "pins.txt").read_text(encoding="utf-8").splitlines())
    for name, content in files.items():
        (CI / name).write_text(content, encoding="utf-8")
    after = set(files["pins.txt"].splitlines())
    for line in sorted((before | after) - (before & after)):
        print(("- " if line in before else "+ ") + line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
