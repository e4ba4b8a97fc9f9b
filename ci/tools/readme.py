"""Write the tables of README, docs/ and the instructor guide from the code that they describe, and
those of their Chinese twins.

`--check` only compares (exit code 1 if they differ).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from page_tables import TABLES
from table_words import in_language
from twin_files import relinked, twin_of

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "README.md": ("steps", "production"),
    "docs/architecture.md": ("layers",),
    "docs/ascend.md": ("operator-documents",),
    "docs/settings.md": ("settings",),
    "docs/production.md": ("w8a8",),
    "docs/host-npu.md": ("hostnpu-refused", "hostnpu-vendor", "hostnpu-rules"),
    "docs/operator-checks.md": ("operator-checks",),
    "docs/speed.md": ("rungs", "speed"),
    "docs/versions.md": ("versions", "signatures"),
    "notebooks/workshop/instructor.md": ("slots", "exercises"),
    "docs/npu-kernels.md": ("npu-points", "npu-gaps", "npu-fits", "npu-decode", "npu-prefill"),
}


def filled(text: str, file: str) -> str:
    """The text of a file, or of its twin, with every marked table as the code has it now."""
    from dsv3_port.messages import using

    original = next((f for f in FILES if file == _twin(f)), file)
    for name in FILES[original]:
        pattern = rf"(<!-- {name}:begin[^>]*-->\n).*?(<!-- {name}:end -->)"
        found = re.search(pattern, text, flags=re.DOTALL)
        if found is None:
            raise SystemExit(f"{file}: the marks {name}:begin and {name}:end are missing")
        with using("zh" if file != original else "en"):
            table = in_language(name, TABLES[name]())
        if file != original:
            table = relinked(table, (ROOT / original).parent, ROOT / file, ROOT)
        text = f"{text[: found.start()]}{found[1]}{table}\n{found[2]}{text[found.end() :]}"
    return text


def _twin(file: str) -> str:
    return twin_of(ROOT / file).relative_to(ROOT).as_posix()


def main(argv: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    code = 0
    for name in [*FILES, *(t for f in FILES if (ROOT / (t := _twin(f))).is_file())]:
        file = ROOT / name
        text = file.read_text(encoding="utf-8")
        new = filled(text, name)
        if "--check" not in argv:
            file.write_text(new, encoding="utf-8")
        elif new != text:
            print(
                f"{name}: its tables differ from the code; run `python ci/tools/readme.py`",
                file=sys.stderr,
            )
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
