"""Do torch_npu's operators still have the signatures that this package calls? Read from the wheels,
nothing imported.

    python ci/tools/signatures.py  download the wheels of VERSIONS, write data/recorded/signatures.json
    python ci/tools/signatures.py --wheels DIR  read the torch_npu wheels in DIR, download nothing
    python ci/tools/readme.py  then writes the table of README from that file

A wheel is a zip file: the operators' schemas are C strings in libtorch_npu.so, torchair's
converters and the shape functions are Python. A schema "fits" where every argument that the package
passes is there, with the same type and place, and what is new has a default. MindSpeed has no wheel
and is not looked at.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from operator_schema import Call, judge

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "data" / "recorded" / "signatures.json"
VERSIONS = (
    "2.1.0.post8",
    "2.9.0",
    "2.9.0.post9",
    "2.10.0.post7",
    "2.11.0",
    "2.12.0",
    "2.13.0",
    "2.14.0",
)
HISTORY = ("2.1.0.post8",)  # of the time of Ascend's sample: shown, not counted as a failure
PLATFORMS = ("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64")
MINDSPEED = ("npu_gmm", "npu_gmm_v2")  # in ops/ beside torch_npu's
LIBRARY = re.compile(r"torch_npu/lib/lib(torch_npu|op_plugin_atb)\.so")
CONVERTER = re.compile(r"register_fx_node_ge_converter\(\s*torch\.ops\.npu\.(\w+)")
SHAPES = re.compile(r"@impl\(\w+, \"(\w+?)(?:\.\w+)?\"")


# ---- reading -------------------------------------------------------------------------------------


def read_wheel(file: Path, names: Iterable[str]) -> dict[str, Any]:
    """Version, torch's version it asks for, and of each operator its schema, GE converter and shape
    function."""
    wanted = set(names)
    schemas: dict[str, str] = {}
    converters: set[str] = set()
    shapes: set[str] = set()
    with zipfile.ZipFile(file) as wheel:
        for name in wheel.namelist():
            if LIBRARY.fullmatch(name):
                library = wheel.read(name)
                schemas.update(
                    {n: text for n in wanted - schemas.keys() if (text := find_schema(library, n))}
                )
            elif "/ge_converter/" in name and name.endswith(".py"):
                converters.update(CONVERTER.findall(wheel.read(name).decode("utf-8")))
            elif name.endswith("_meta_registrations.py"):
                shapes.update(SHAPES.findall(wheel.read(name).decode("utf-8")))
            elif name.endswith(".dist-info/METADATA"):
                metadata = wheel.read(name).decode("utf-8")
            elif name == "torch_npu/version.py":
                source = re.search(r"git_version = '(\w+)'", wheel.read(name).decode("utf-8"))
    found = {
        "torch": _field(metadata, r"Requires-Dist: torch ?\(?(==[\d.]*\d)"),
        "source": source[1][:8] if source else "",
        "operators": {
            n: {"schema": schemas.get(n), "ge": n in converters, "shapes": n in shapes}
            for n in sorted(wanted)
        },
    }
    return {"version": _field(metadata, r"\nVersion: (\S+)"), **found}


def find_schema(library: bytes, operator: str) -> str | None:
    """The C string `operator(...) -> ...` in a library; overloads (`operator.List(...)`) are not
    looked for."""
    start = f"{operator}(".encode()
    at = library.find(start)
    while at >= 0:
        text = library[at : library.index(b"\0", at)]
        if library[at - 1 : at] in (b"\0", b":") and b") -> " in text:
            return text.decode("ascii")
        at = library.find(start, at + 1)
    return None


def _field(metadata: str, pattern: str) -> str:
    found = re.search(pattern, metadata)
    return found[1] if found else ""


def operators() -> list[str]:
    """The torch_npu operators of ops/, what `@operator(...)` stands above, by reading it."""
    found = {
        node.name
        for file in (ROOT / "dsv3_port" / "ops").glob("*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Name)
        and decorator.func.id == "operator"
    }
    return sorted(found - set(MINDSPEED))


def calls(package: Path = ROOT / "dsv3_port") -> dict[str, list[Call]]:
    """Every call `ops.<operator>(...)` in the model, and in the products that it is handed; and of an
    operator that a function was handed under its own name."""
    found: dict[str, list[Call]] = {}
    for file in [*sorted((package / "model").rglob("*.py")), package / "ops" / "providers.py"]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (name := _operator(node.func)):
                names = frozenset(k.arg for k in node.keywords if k.arg)
                found.setdefault(name, []).append(Call(len(node.args), names))
    return found


def _operator(called: ast.expr) -> str:
    if isinstance(called, ast.BoolOp):  # what a model was given, or the operator
        called = called.values[-1]
    if isinstance(called, ast.Name):
        return called.id if called.id.startswith("npu_") else ""
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
        return called.attr if called.value.id == "ops" else ""
    return ""


# ---- result --------------------------------------------------------------------------------------


def compare(wheels: list[dict[str, Any]], ours: dict[str, str]) -> dict[str, Any]:
    """The result file: per version what was found and how each operator was judged."""
    made = calls()
    for wheel in wheels:
        for name, found in wheel["operators"].items():
            found["fit"], found["note"] = judge(ours[name], found["schema"], made.get(name, []))
    return {"called_by_model": sorted(set(made) & set(ours)), "versions": wheels}


def table(result: dict[str, Any]) -> str:
    """README's table: a row for each operator, a column for each version."""
    from dsv3_port.messages import told

    versions = result["versions"]
    rows = [
        "| operator | " + " | ".join(v["version"] for v in versions) + " | GE converter |",
        "|---" * (len(versions) + 2) + "|",
    ]
    words = {"same": "same", "fits": "fits the call", "differs": "**differs**", "absent": "absent"}
    used = result["called_by_model"]
    names = sorted(versions[0]["operators"], key=lambda n: (n not in used, n))
    notes = []
    for name in names:
        cells = []
        for version in versions:
            found = version["operators"][name]
            mark = ""
            if found["note"]:
                note = f"`{name}`: {found['note']}"
                notes += [note] if note not in notes else []
                mark = f" [{notes.index(note) + 1}]"
            cells.append(told(words[found["fit"]]) + mark)
        graph = [v["version"] for v in versions if v["operators"][name]["ge"]]
        shown = (
            "all" if len(graph) == len(versions) else "none" if not graph else f"from {graph[0]}"
        )
        bold = f"**`{name}`**" if name in used else f"`{name}`"
        rows.append(f"| {bold} | " + " | ".join(cells) + f" | {shown} |")
    return (
        "\n".join(rows) + "\n\n" + "\n".join(f"[{i}] {note}  " for i, note in enumerate(notes, 1))
    )


def download(versions: Iterable[str], folder: Path) -> None:
    """Any Linux wheel of each version will do, it is only read: schemas are the same for every
    Python and machine."""
    folder.mkdir(parents=True, exist_ok=True)
    for version in versions:
        if not list(folder.glob(f"torch_npu-{version}-*.whl")):
            print(f"downloading torch_npu {version} (43 MB) to {folder}", flush=True)
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--no-deps",
                    "--only-binary",
                    ":all:",
                    "--python-version",
                    "3.10",
                    *PLATFORMS,
                    "--dest",
                    str(folder),
                    f"torch-npu=={version}",
                ],
                check=True,
            )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="read these, download nothing")
    parser.add_argument(
        "--versions", default=",".join(VERSIONS), help="which to download (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    folder = args.wheels
    if folder is None:
        from platformdirs import user_cache_path

        folder = user_cache_path("dsv3-port") / "wheels"
        try:
            download(args.versions.split(","), folder)
        except subprocess.CalledProcessError:
            print(
                "ci/tools/signatures.py: pip could not download torch_npu: check the network, or give --wheels",
                file=sys.stderr,
            )
            return 2
    files = [f for v in args.versions.split(",") for f in folder.glob(f"torch_npu-{v}-*.whl")]
    missing = [v for v in args.versions.split(",") if not list(folder.glob(f"torch_npu-{v}-*.whl"))]
    if missing:
        print(
            f"ci/tools/signatures.py: no wheel of torch_npu {', '.join(missing)} in {folder}; --versions names others",
            file=sys.stderr,
        )
        return 2
    ours = json.loads((ROOT / "tests/ops/schemas.json").read_text(encoding="utf-8"))
    names = operators()
    result = compare([read_wheel(f, names) for f in files], {n: ours[n] for n in names})
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    bad = [
        f"{v['version']}: {n}"
        for v in result["versions"]
        if v["version"] not in HISTORY
        for n in result["called_by_model"]
        if v["operators"][n]["fit"] in ("differs", "absent")
    ]
    print(
        f"{len(files)} wheels, {len(names)} operators, {len(result['called_by_model'])} of them called by the model; "
        + (f"not as called: {'; '.join(bad)}" if bad else "all calls fit")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
