"""What pip is given: the pins of `ci/constraints.txt`, held to their hashes.

| file | holds | for |
|---|---|---|
| constraints.txt | every package, with the hashes of all its files on PyPI | `ci/run.py` |
| constraints-cuda.txt | what PyPI's torch for Linux asks for besides | `ci/run.py`, with that build |
| pins.txt | constraints.txt without hashes | `pip install -c`: conda, container, an environment of your own |
| pins-npu.txt | the same with torch and torch_npu of the pair for a card | machines with NPUs |

`.venv/bin/python ci/pins.py` makes all four. pip takes no editable install together with hashes, so
the project itself comes last and alone. Standard library only; nothing newer than Python 3.6.
"""

import re
import sys
from pathlib import Path

from venv_checks import Problem

if False:  # for type checkers only
    from torch_build import Build

PINS, CUDA_PINS, PLAIN = "constraints.txt", "constraints-cuda.txt", "pins.txt"
PYPI_LOCAL = "cu130"  # what PyPI's build of the pinned torch for Linux calls itself


def pinned_torch(ci: "Path") -> str:
    for line in requirement_lines(ci / PINS):
        found = re.match(r"torch==([^\s;]+)", line)
        if found:
            return found.group(1)
    raise Problem(f"{ci / PINS} has no line torch==...")


def requirement_lines(file: "Path") -> "list[str]":
    """Requirements with their hashes, one a line."""
    text = file.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def is_pypis(build: "Build") -> bool:
    return build.requirement.startswith("torch===")


def needs_cuda_packages(build: "Build", pin: str) -> bool:
    """Whether this is PyPI's build for Linux, whose nvidia-* packages are pinned here; a kept one
    counts if its name is that of no other index (PyPI's says +cu130 for itself once it is there)."""
    if not sys.platform.startswith("linux"):
        return False
    return is_pypis(build) or (build.kept and build.requirement == f"torch=={pin}+{PYPI_LOCAL}")


def torch_words(build: "Build", ci: "Path", folder: "Path") -> "list[str]":
    """PyPI's file is held to its hashes, a file of PyTorch's index to those that the index gives."""
    if is_pypis(build):
        line = next(text for text in requirement_lines(ci / PINS) if text.startswith("torch=="))
        file = folder / "torch.txt"
        file.write_text(line.replace("torch==", "torch===", 1) + "\n", encoding="utf-8")
        return ["--require-hashes", "--no-deps", "-r", str(file)]
    if build.kind == "cpu":
        return ["--no-deps"] + build.options + [build.requirement]
    plain = str(ci / PLAIN)  # another CUDA asks for packages that nobody has pinned
    return ["-c", plain] + build.options + [build.requirement]


def rest_words(build: "Build", ci: "Path", folder: "Path", parts: int = 2) -> "list[list[str]]":
    """What is installed beside torch, each package with its hashes: the words of so many calls of
    pip, which may run at once (every package and what it needs is pinned, so none asks for another's)."""
    lines = [text for text in requirement_lines(ci / PINS) if not text.startswith("torch==")]
    if needs_cuda_packages(build, pinned_torch(ci)):
        lines += requirement_lines(ci / CUDA_PINS)
    words = []
    for part in range(parts):
        file = folder / f"rest-{part}.txt"
        file.write_text("\n".join(lines[part::parts]) + "\n", encoding="utf-8")
        words.append(["--no-deps", "--require-hashes", "-r", str(file)])
    return words
