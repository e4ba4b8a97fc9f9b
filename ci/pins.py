"""Make the pins anew from pyproject.toml: `python ci/pins.py` (needs `uv`; says what changed).

Versions stay as they are in ci/constraints.txt unless pyproject.toml forbids one or `--upgrade NAME`
lets it go; torch is in no list of upgrades, as torch_npu belongs to exactly one. Written are
constraints.txt and constraints-cuda.txt with the hashes of every file on PyPI, whatever its Python
and platform, and pins.txt without. See ci/locked.py.
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
HASHES = re.compile(r"\s*\\?\n?\s*--hash=\S+")
MADE = "ci/pins.py makes this file, never edit it.\n"
FILES = {
    "constraints.txt": "# What ci/run.py installs: every package with the hashes of its files on PyPI. Python 3.10 "
    f"gets the last\n# releases that still support it. For `pip install -c`: ci/pins.txt. {MADE}",
    "constraints-cuda.txt": "# What PyPI's build of torch for Linux asks for besides ci/constraints.txt.\n"
    f"# {MADE}",
    "pins.txt": "# ci/constraints.txt without hashes, for `pip install -c ci/pins.txt -e .[dev]`: pip takes no "
    f"editable install\n# together with hashes. {MADE}",
}


def without_hashes(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in HASHES.sub("", text).splitlines())


def compiled(uv: str, upgrade: list[str]) -> str:
    """All pins with hashes, for every Python and platform of the project."""
    lines = (CI / "pins.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if re.split(r"[=\s]", line)[0] not in upgrade]
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder, "old.txt"), Path(folder, "new.txt")
        old.write_text("\n".join(kept), encoding="utf-8")
        words = ["pip", "compile", "pyproject.toml", "--extra", "dev", "--universal"]
        words += ["--python-version", "3.10", "--generate-hashes", "--no-config", "--quiet"]
        words += ["--default-index", "https://pypi.org/simple", "--no-header", "--no-annotate"]
        subprocess.run([uv, *words, "-c", str(old), "-o", str(new)], cwd=CI.parent, check=True)
        return new.read_text(encoding="utf-8")


def split(text: str) -> dict[str, str]:
    """File name -> content."""
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)
    cuda = "".join(b for b in blocks if CUDA.match(b))
    rest = "".join(b for b in blocks if not CUDA.match(b))
    bodies = {
        "constraints.txt": rest,
        "constraints-cuda.txt": cuda,
        "pins.txt": without_hashes(rest),
    }
    return {name: FILES[name] + body for name, body in bodies.items()}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uv", default="uv", help="the program (default: the one on PATH)")
    parser.add_argument("--upgrade", action="append", default=[], metavar="NAME")
    args = parser.parse_args(argv)
    try:
        files = split(compiled(args.uv, args.upgrade))
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
