"""Write README's tables from the code that they describe; `--check` only compares (exit code 1 if they differ)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def steps_table() -> str:
    from dsv3_port.steps import STEPS

    rows = ["| | step | 步骤 | notebook | before → after | stays equal | saves on an NPU |",
            "|---|---|---|---|---|---|---|"]
    for s in STEPS:
        forms = f"`{s.before.split(':')[1]}` → `{s.after.split(':')[1]}`"
        link = f"[{s.notebook}](notebooks/{s.notebook}.ipynb)"
        rows.append(f"| {s.number} | `{s.id}`: {s.title} | {s.title_zh} | {link} | "
                    f"{forms} | {s.stays_equal} | {s.saves} |")
    return "\n".join(rows)


def settings_table() -> str:
    from dsv3_port.engine.settings import TABLE

    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for row in TABLE:
        choices = " (" + ", ".join(f"`{c}`" if c != "" else "unset" for c in row.choices) + ")" if row.choices else ""
        rows.append(f"| `{row.variable}` | {row.default if row.default != '' else '–'} | {row.meaning}{choices} |")
    return "\n".join(rows)


def signatures_table() -> str:
    import json

    import signatures  # beside this file

    return signatures.table(json.loads(signatures.RESULT.read_text(encoding="utf-8")))


def versions_table() -> str:
    from dsv3_port.lab.versions import markdown

    return markdown()


TABLES = {"steps": steps_table, "settings": settings_table, "versions": versions_table,
          "signatures": signatures_table}


def filled(text: str) -> str:
    """README with every marked table as the code has it now."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- {name}:begin[^>]*-->\n).*?(<!-- {name}:end -->)"
        found = re.search(pattern, text, flags=re.DOTALL)
        if found is None:
            raise SystemExit(f"README.md: the marks {name}:begin and {name}:end are missing")
        text = f"{text[: found.start()]}{found[1]}{make()}\n{found[2]}{text[found.end() :]}"
    return text


def main(argv: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = filled(text)
    if "--check" in argv:
        if new != text:
            print("README.md: its tables differ from the code; run `python ci/readme.py`", file=sys.stderr)
            return 1
        return 0
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
