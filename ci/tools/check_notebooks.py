"""What of the notebooks' anatomy can be enforced: `python ci/tools/check_notebooks.py [FILE ...]`, exit
code 1 with findings.

`--runs out/runs.json` compares the seconds on the cards with a run of the tutorial on a machine
that nobody else uses.

Each finding is one line, "NAME: [cell ID:] what is wrong". Tags of cells name the parts of the
anatomy; every part's first cell stands in the order of ANATOMY, and cells without a tag may stand
anywhere.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cards
from claims import check_claims
from decks import check_decks
from notebook_cells import (
    Finding,
    check_contents,
    check_format,
    check_size,
    check_slides,
    check_stripped,
    code_cells,
    source,
    tags,
)

ROOT = Path(__file__).resolve().parents[2]
ANATOMY = (
    "title",
    "card",
    "objectives",
    "map",
    "parameters",
    "imports",
    "problem",
    "predict",
    "yours",
    "judge",
    "before-after",
    "equivalence",
    "measure",
    "plot",
    "failure",
    "exercise",
    "solution",
    "recap",
)
FRAME = (
    "title",
    "card",
    "objectives",
    "map",
    "parameters",
    "imports",
    "recap",
)  # enough where no step is taken
SLOT = ("yours", "judge")  # where the learner's function is written and judged; as many each
APPENDIX = tuple(part for part in FRAME if part != "objectives")  # for reference: a1_… to a6_…
EXTRA_TAGS = {"cited", "hide-input", "raises-exception", "slow"}
FIRST, LAST = ("00_start_here",), ("09_many_cards", "10_results", "11_faults")
APPENDICES = (
    *("a1_checkpoint", "a2_routing_and_gating", "a3_torchair", "a4_capture", "a5_rounding"),
    "a6_limits_forecast",
)
# words of Markdown and lines of code of a notebook with a slot, exercises not counted
BUDGET = {
    "00": (600, 45),
    "01": (900, 75),
    "02": (950, 85),
    "03": (950, 90),
    "04": (650, 70),
    "05": (750, 70),
    "06a": (800, 75),
    "06b": (700, 75),
    "07": (950, 90),
    "08": (950, 95),
    "09": (850, 75),
    "10": (500, 45),
    "11": (700, 60),
    "12": (950, 90),
    "13": (950, 90),
    "14": (950, 90),
    "15": (950, 90),
    "16": (950, 90),
}
SLOT_CELLS, SLOT_LINES = 26, 12  # of such a notebook, and of a cell behind its set-up
MORE = {"exercise", "solution"}  # at the end, folded, and not counted
PARAMETERS = {"profile", "device", "results_dir", "seed"}


def expected_names() -> list[str]:
    """All notebooks in order: the frame, and between it one for each notebook that steps.py names."""
    sys.path.insert(0, str(ROOT))
    from dsv3_port.steps import SECOND, STEPS

    parts = (STEPS, SECOND)
    one, two = (dict.fromkeys(s.notebook for s in part if s.notebook) for part in parts)
    return [*FIRST, *one, *LAST, *two, *APPENDICES]


# ---- rules: each yields what is wrong, as (cell or None, sentence) -------------------------------


def in_cells(nb: dict[str, Any], tag: str) -> int:
    return sum(tag in tags(c) for c in code_cells(nb["cells"]))


def has_slot(nb: dict[str, Any]) -> bool:
    return any(in_cells(nb, tag) for tag in SLOT)


def check_slot(nb: dict[str, Any], name: str) -> Iterator[Finding]:
    """A notebook with slots: one cell for each and one judge; one idea, so few cells and words."""
    if not has_slot(nb):
        return
    marks = [t for c in code_cells(nb["cells"]) for t in tags(c) if t in SLOT]
    if marks != list(SLOT) * marks.count("yours"):
        yield (
            None,
            f"code cells tagged {', '.join(marks)}: each slot is one 'yours', then one 'judge'",
        )
    counted = [c for c in nb["cells"] if not MORE & set(tags(c))]
    if len(counted) > SLOT_CELLS:
        yield None, f"{len(counted)} cells without exercises, at most {SLOT_CELLS}"
    words = lines = 0
    for cell in counted:
        text = [line for line in source(cell).splitlines() if line.strip()]
        if cell.get("cell_type") == "markdown":
            words += len(source(cell).split())
            continue
        lines += len(text)
        if len(text) > SLOT_LINES and not {"imports", "yours"} & set(tags(cell)):
            yield (
                cell,
                f"{len(text)} lines, at most {SLOT_LINES}: make it a function of the package",
            )
    most = BUDGET.get(name.partition("_")[0])
    if most and (words > most[0] or lines > most[1]):
        yield None, f"{words} words and {lines} lines of code, at most {most[0]} and {most[1]}"


def assigned_names(text: str) -> set[str]:
    """Names bound to literals at the top level: what papermill can override."""
    found = set()
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {t.id for t in targets if isinstance(t, ast.Name)}
    return found


def check_parameters(nb: dict[str, Any]) -> Iterator[Finding]:
    marked = [c for c in nb["cells"] if "parameters" in tags(c)]
    if len(marked) != 1:
        yield None, f"{len(marked)} cells tagged 'parameters', exactly one is needed"
        return
    try:
        missing = sorted(PARAMETERS - assigned_names(source(marked[0])))
    except SyntaxError:
        missing = sorted(PARAMETERS)
    if missing:
        yield marked[0], f"the parameters cell does not set {', '.join(missing)}"
    imports = [c for c in code_cells(nb["cells"]) if "imports" in tags(c)]
    if len(imports) != 1:
        yield None, f"{len(imports)} code cells tagged 'imports', exactly one is needed"


def check_anatomy(nb: dict[str, Any], required: Sequence[str] = ANATOMY) -> Iterator[Finding]:
    """All required parts are there, and parts come in the order of ANATOMY (exercises and solutions
    alternate)."""
    order: list[str] = []
    for cell in nb["cells"]:
        known = [t for t in tags(cell) if t in ANATOMY]
        unknown = [t for t in tags(cell) if t not in ANATOMY and t not in EXTRA_TAGS]
        if len(known) > 1:
            yield cell, f"tagged as {' and '.join(known)}: one part only"
        if unknown:
            yield cell, f"unknown tag {unknown[0]!r}; parts are {', '.join(ANATOMY)}"
        order += known[:1]
    for part in required:
        if part not in order:
            yield None, f"no cell tagged {part!r}"
    runs = [key for key, _ in groupby(order)]
    for before, after in zip(runs, runs[1:], strict=False):
        if ANATOMY.index(after) < ANATOMY.index(before) and (before, after) not in (
            ("solution", "exercise"),
            ("recap", "exercise"),
            ("judge", "yours"),
        ):
            yield None, f"part {after!r} comes after {before!r}; the order is fixed"
    exercises, solutions = runs.count("exercise"), runs.count("solution")
    if exercises != solutions:
        yield (
            None,
            f"{exercises} exercises and {solutions} solutions: each exercise is followed by its solution",
        )


def check_failures(nb: dict[str, Any]) -> Iterator[Finding]:
    for cell in nb["cells"]:
        if "raises-exception" in tags(cell) and "failure" not in tags(cell):
            yield cell, "may raise, but is not part of 'failure'"


def check_card(nb: dict[str, Any], name: str) -> Iterator[Finding]:
    for text in cards.problems(nb["cells"], name):
        yield next(c for c in nb["cells"] if "card" in tags(c)), text


def check_notebook(nb: dict[str, Any], name: str, folder: Path = ROOT / "notebooks") -> list[str]:
    """Every finding about one notebook, as lines."""
    required: Sequence[str] = FRAME if name in (*FIRST, *LAST) else ANATOMY
    required = APPENDIX if re.match(r"a\d_", name) else required
    if not has_slot(nb):
        required = [part for part in required if part not in SLOT]
    if in_cells(nb, "yours") > 1:  # the second one is its exercise
        required = [part for part in required if part not in MORE]
    found: list[Finding] = [
        *check_format(nb),
        *check_stripped(nb),
        *check_slides(nb),
        *check_size(nb),
        *check_parameters(nb),
        *check_anatomy(nb, required),
        *check_slot(nb, name),
        *check_failures(nb),
        *check_contents(nb, folder),
        *check_card(nb, name),
        *check_claims(nb["cells"]),
    ]
    return [
        f"{name}: " + (f"cell {cell.get('id')}: " if cell is not None else "") + text
        for cell, text in found
    ]


def check_file(file: Path) -> list[str]:
    try:
        nb = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(nb["cells"], list):
            raise ValueError("its cells are not a list")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{file.stem}: not a notebook: {error}"]
    return check_notebook(nb, file.stem, file.parent)


def check_names(found: Sequence[str], expected: Sequence[str]) -> list[str]:
    return [f"{name}: missing from notebooks/" for name in expected if name not in found] + [
        f"{name}: not one of the course's notebooks (steps.py names them)"
        for name in found
        if name not in expected
    ]


def main(argv: Sequence[str]) -> int:
    argv = list(argv)
    lines = []
    if "--runs" in argv:
        at = argv.index("--runs")
        _, runs = argv.pop(at), argv.pop(at)
        lines += cards.against_runs(ROOT / "notebooks", Path(runs))
    files = [Path(word) for word in argv] or sorted((ROOT / "notebooks").glob("*.ipynb"))
    if not argv:
        lines += check_names([f.stem for f in files], expected_names())
        core = [name for name in expected_names() if name not in APPENDICES]
        lines += check_decks(ROOT / "notebooks", core)
    for file in files:
        lines += check_file(file)
    for line in lines:
        print(line)
    print(f"{len(files)} notebooks, {len(lines)} findings")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
