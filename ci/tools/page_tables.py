"""The tables of README, docs/ and the instructor guide, from the code that they describe: TABLES, in the
language that is in force. ci/tools/readme.py writes them into the pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def steps_table() -> str:
    from dsv3_port.steps import STEPS

    return step_rows(STEPS)


def production_table() -> str:
    from dsv3_port.steps import SECOND

    return step_rows(SECOND)


def linked(notebook: str) -> str:
    return f"[{notebook}](notebooks/{notebook}.ipynb)" if notebook else "–"


def step_rows(steps: Sequence[Any]) -> str:
    from dsv3_port.messages import told

    heads = ("", "step", "notebook", "before → after", "stays equal", "saves on an NPU")
    rows = [f"| {' | '.join(map(told, heads))} |", "|---|---|---|---|---|---|"]
    for s in steps:
        forms = f"`{s.before.split(':')[1]}` → `{s.after.split(':')[1]}`"
        rows.append(
            f"| {s.number} | `{s.id}`: {told(s.title)} | {linked(s.notebook)} | {forms} | {told(s.stays_equal)} | "
            f"{told(s.saves)} |"
        )
    return "\n".join(rows)


def settings_table() -> str:
    from dsv3_port.cli.settings import markdown

    return markdown()


def signatures_table() -> str:
    import json

    import signatures  # beside this file

    return signatures.table(json.loads(signatures.RESULT.read_text(encoding="utf-8")))


def versions_table() -> str:
    from dsv3_port.doctor.versions import markdown

    return markdown()


def operator_documents_table() -> str:
    import operator_documents  # beside this file

    from dsv3_port.ops import OPERATORS

    return operator_documents.table(sorted(OPERATORS))


def exercises_table() -> str:
    from dsv3_port.course.judge import EXERCISES
    from dsv3_port.messages import told

    heads = ("exercise", "title", "●○○", "minutes", "usual wrong answers")
    rows = [f"| {' | '.join(map(told, heads))} |", "|---|---|---|---|---|"]
    for e in EXERCISES.values():
        rows.append(
            f"| {e.id} | {told(e.title)} | {'●' * e.difficulty}{'○' * (3 - e.difficulty)} | {e.minutes} | "
            f"{', '.join(map(told, e.wrong))} |"
        )
    return "\n".join(rows)


def slots_table() -> str:
    from dsv3_port.course.yours import slots
    from dsv3_port.messages import told

    heads = ("slot", "they write", "seen by", "the question that helps")
    rows = [f"| {' | '.join(map(told, heads))} |", "|---|---|---|---|"]
    for s in slots().values():
        for k, (name, wrong) in enumerate(s.wrong.items()):
            slot = f"`{s.id}`, {s.minutes} min: {told(s.title)}" if k == 0 else ""
            texts = (slot, told(name), told(wrong.seen_by), told(wrong.hint))
            cells = [x.replace("|", "\\|") for x in texts]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def speed_tables() -> str:
    from dsv3_port.bench import cases as bench
    from dsv3_port.bench import speed_tables as bench_tables

    return bench_tables.markdown(bench.load_all(ROOT / "data" / "recorded"))


def rungs_table() -> str:
    from dsv3_port.bench import cases as bench
    from dsv3_port.bench import rungs

    folder = ROOT / "data" / "recorded"
    return rungs.markdown(rungs.recorded_rungs(folder, bench.load_all(folder)))


def layers_table() -> str:
    """The floors of the house as its test has them, each room with its own first sentence."""
    import ast

    tree = ast.parse((ROOT / "tests" / "house" / "test_imports.py").read_text(encoding="utf-8"))
    (layers,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS"
    )

    def about(room: str) -> str:
        package = ROOT / "dsv3_port" / room
        file = package / "__init__.py" if package.is_dir() else package.with_suffix(".py")
        if not file.is_file():
            return ""
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")

    rows = ["| floor | room | what lives there |", "|---|---|---|"]
    for number, rooms in enumerate(layers):
        rows += [f"| {len(layers) - number} | `{room}` | {about(room)} |" for room in rooms]
    return "\n".join(rows)


def npu_points() -> str:
    from dsv3_port.forecast import kernel_tables

    return kernel_tables.markdown(kernel_tables.point_rows())


def npu_gaps() -> str:
    from dsv3_port.forecast import kernel_tables

    return kernel_tables.markdown(kernel_tables.gap_rows())


def npu_fits() -> str:
    from dsv3_port.forecast import kernel_tables

    return kernel_tables.markdown(kernel_tables.fit_rows())


def npu_decode() -> str:
    from dsv3_port.forecast import kernel_tables

    return kernel_tables.markdown(kernel_tables.heldout_rows("decode"))


def npu_prefill() -> str:
    from dsv3_port.forecast import kernel_tables

    return kernel_tables.markdown(kernel_tables.heldout_rows("prefill"))


def hostnpu_rules() -> str:
    from dsv3_port.hostnpu import rules

    return rules.rules_table()


def hostnpu_vendor() -> str:
    from dsv3_port.hostnpu import vendor_counts

    return vendor_counts.table()


def operator_checks() -> str:
    import contracts  # beside this file

    return contracts.table()


def hostnpu_refused() -> str:
    from dsv3_port.hostnpu import rules

    return rules.refused_table()


def w8a8_table() -> str:
    """What ci/tools/w8a8.py measured, and how far each stage is off behind the layers before it."""
    import json

    from dsv3_port.messages import tr

    found = json.loads((ROOT / "data/recorded/w8a8.json").read_text(encoding="utf-8"))
    heads = ("form", "perplexity", "same likeliest token", "logits off", "other experts")
    rows = [f"| {' | '.join(map(tr, heads))} |", "|---|---|---|---|---|"]
    before = next(iter(found.values()))["perplexity"][0]
    rows.append(f"| FP8, float32 | {before:.4f} | – | – | – |")
    for name, q in found.items():
        cells = f"{q['perplexity'][1]:.4f} | {q['same_top1']:.2%} | {q['logit_rms']:.2%}"
        rows.append(f"| {name} | {cells} | {max(q['experts'].values()):.1%} |")
    stages = [s for s in found["W8A8"]["stages"] if s != "model.embed_tokens"]
    rows += ["", f"| | {' | '.join(f'`{s}`' for s in stages)} |", "|---" * (len(stages) + 1) + "|"]
    for name, q in found.items():
        cells = " | ".join(f"{q['stages'][s]:.2%}" for s in stages)
        rows.append(f"| {name} | {cells} |")
    return "\n".join(rows)


TABLES = {
    "operator-documents": operator_documents_table,
    "w8a8": w8a8_table,
    "hostnpu-rules": hostnpu_rules,
    "hostnpu-refused": hostnpu_refused,
    "hostnpu-vendor": hostnpu_vendor,
    "operator-checks": operator_checks,
    "npu-points": npu_points,
    "npu-gaps": npu_gaps,
    "npu-fits": npu_fits,
    "npu-decode": npu_decode,
    "npu-prefill": npu_prefill,
    "steps": steps_table,
    "production": production_table,
    "settings": settings_table,
    "versions": versions_table,
    "signatures": signatures_table,
    "layers": layers_table,
    "exercises": exercises_table,
    "slots": slots_table,
    "speed": speed_tables,
    "rungs": rungs_table,
}
