"""Draw the pictures of README and of its Chinese twin, each for a wide window and for a phone.

`--check` only compares what they say with what the code says (exit code 1 if they differ).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from PIL import Image

from dsv3_port.bench.records import load
from dsv3_port.config import DeepseekV3Config
from dsv3_port.messages import using
from dsv3_port.plots.bars import ladder
from dsv3_port.plots.fonts import chinese_font
from dsv3_port.plots.npu_ladder import npu_ladder
from dsv3_port.plots.style import LabFigure

FOLDER = Path(__file__).resolve().parents[2] / "data" / "recorded"
PICTURES: dict[str, Callable[[], LabFigure]] = {
    "ladder-npu-composed": lambda: npu_ladder(DeepseekV3Config.preset("v3-671b"), (32,), (1, 8)),
    "ladder-cpu": lambda: ladder(load(FOLDER / "ladder-cpu.json")),
}


def files(name: str, language: str) -> tuple[Path, Path]:
    """Where the picture lies, and the same for a phone."""
    end = f"{name}.png" if language == "en" else f"{name}.{language}.png"
    return FOLDER / end, FOLDER / f"phone-{end}"


def drawn() -> Iterator[tuple[tuple[Path, Path], LabFigure]]:
    """Chinese ones only where a font for them is."""
    for language in ("en", "zh") if chinese_font() else ("en",):
        for name, draw in PICTURES.items():
            with using(language):
                yield files(name, language), draw()


def says(file: Path) -> str:
    """The text alternative that a picture carries; "" of one that is not there."""
    if not file.is_file():
        return ""
    with Image.open(file) as picture:
        return str(picture.info.get("Description", ""))


def main(argv: list[str]) -> int:
    code = 0
    for kept, figure in drawn():
        if all(says(file) == figure.alt_text for file in kept):
            continue
        if "--check" in argv:
            print(f"{kept[0].name}: run `python ci/tools/readme_pictures.py`", file=sys.stderr)
            code = 1
        elif figure.narrow:
            kept[0].write_bytes(figure.png())
            kept[1].write_bytes(figure.narrow().png())
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
