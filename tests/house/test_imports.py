"""The house's contracts: which room may import which, who may import what from outside, and how
long a file, a function and a room may be. docs/architecture.md draws LAYERS."""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import dsv3_port

ROOT = Path(dsv3_port.__file__).parent
# highest first; rooms of one floor may not import each other; a floor may be skipped downwards
LAYERS = (
    ("__init__", "__main__"),
    ("cli",),
    ("lab",),
    ("course",),
    ("plots",),
    ("bench", "forecast"),
    ("ge", "doctor", "check"),
    ("count",),
    ("engine",),
    ("hostnpu", "weights"),
    ("model",),
    ("ops", "parallel"),
    ("plan",),
    ("steps", "config"),
    ("presets", "published", "typed", "files", "markdown", "messages", "paths", "version"),
    ("errors",),
)
FLOOR = {room: floor for floor, rooms in enumerate(reversed(LAYERS)) for room in rooms}
# arrows that break this today, file -> room; a commit may only shorten this
KNOWN: set[tuple[str, str]] = set()
# packages that only these places import; a trailing slash names a room
ONLY = {
    "torch_npu": {"ops/table.py", "hostnpu/"},
    "mindspeed": {"ops/mindspeed.py"},
    "triton": {"ops/triton_decode.py"},
    "torchair": {"engine/torchair.py", "hostnpu/"},
    "matplotlib": {"plots/"},
    "PIL": {"plots/"},
    "gguf": {"bench/gguf_file.py"},
    "llama_cpp": {"bench/llamacpp.py"},
    "nbformat": {"course/"},
    "nbconvert": {"course/"},
    "nbclient": {"course/"},
    "papermill": {"course/"},
    "jupyter_client": {"course/", "doctor/classroom.py"},
    "jinja2": {"course/"},
    "pygments": {"course/"},
    "pydantic": {
        "bench/",
        "weights/",
        "config.py",
        "course/kept.py",
        "typed.py",
        "engine/generation_config.py",
    },
}
# state of a process below the engine, each with its reason; hostnpu is such state by nature
GLOBALS = {
    "ops/table.py:_torch_npu",  # imported late; Dynamo must see a module's attribute
    "ops/mindspeed.py:_module",  # the same
    "ops/cpu.py:_plain",  # set by a context manager only
    "messages.py:_language",  # whoever meets the reader sets it once: cli/main, lab
}
MAX_FILE = 300
MAX_FUNCTION = 60
MAX_SHARE = 0.25  # of the package's lines, a room


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def room(path: str) -> str:
    """`model/gate.py` -> `model`, `steps.py` -> `steps`."""
    return path.partition("/")[0].removesuffix(".py")


def imported(file: Path) -> Iterator[str]:
    """Absolute names of what a file imports, inside functions too: `dsv3_port.model.gate`."""
    package = ("dsv3_port", *file.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def arrows() -> Iterator[tuple[str, str]]:
    """(file, room that it imports from), within the package."""
    for file in files():
        for target in imported(file):
            first, _, rest = target.partition(".")
            if first == "dsv3_port":
                to = rest.partition(".")[0]
                yield name(file), to if to in FLOOR else "__init__"


def test_every_room_stands_on_a_floor():
    assert {room(name(file)) for file in files()} <= set(FLOOR)


def test_imports_lead_downwards():
    up = {
        (file, to) for file, to in arrows() if room(file) != to and FLOOR[room(file)] <= FLOOR[to]
    }
    assert up == KNOWN, f"new: {sorted(up - KNOWN)}, gone: {sorted(KNOWN - up)}"


def test_the_rule_sees_an_arrow_upwards():
    assert FLOOR["model"] > FLOOR["ops"] and FLOOR["bench"] == FLOOR["forecast"]
    assert ("course/show.py", "steps") in set(arrows())


@pytest.mark.parametrize("package", ONLY)
def test_a_package_is_imported_where_it_belongs(package):
    users = {name(f) for f in files() if any(t.partition(".")[0] == package for t in imported(f))}
    strays = {u for u in users if u not in ONLY[package] and f"{room(u)}/" not in ONLY[package]}
    assert not strays, f"{package} is imported in {sorted(strays)}"


def test_the_environment_is_read_in_one_place():
    """Settings are handed in: `os.environ` only in engine/settings.py, and in hostnpu."""
    readers = {
        name(file)
        for file in files()
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv")
    }
    assert {r for r in readers if room(r) != "hostnpu"} == {"engine/settings.py"}


def test_below_the_engine_a_global_has_a_reason():
    found = {
        f"{name(file)}:{one}"
        for file in files()
        if FLOOR[room(name(file))] < FLOOR["engine"] and room(name(file)) != "hostnpu"
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Global)
        for one in node.names
    }
    assert found == GLOBALS, f"new: {sorted(found - GLOBALS)}, gone: {sorted(GLOBALS - found)}"


def test_no_file_is_too_long():
    long = {name(f): n for f in files() if (n := len(f.read_text("utf-8").splitlines())) > MAX_FILE}
    assert set(long) <= LONG_FILES, {k: v for k, v in long.items() if k not in LONG_FILES}


def test_no_function_is_too_long():
    long = {
        f"{name(file)}:{node.name}"
        for file in files()
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION
    }
    assert long <= LONG_FUNCTIONS, f"new: {sorted(long - LONG_FUNCTIONS)}"


def test_no_room_is_too_large():
    lines: Counter[str] = Counter()
    for file in ROOT.rglob("*"):
        if file.suffix in {".py", ".c", ".html", ".j2", ".css", ".js"}:
            lines[room(name(file))] += len(file.read_text(encoding="utf-8").splitlines())
    largest, most = lines.most_common(1)[0]
    assert most <= MAX_SHARE * lines.total(), f"{largest}: {most / lines.total():.0%}"


# only shrink
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = {
    "engine/torchair.py:export_graph",
    "ops/cache.py:check_scatter_update_",
    "ops/fused_attention.py:npu_fused_infer_attention_score",
    "ops/grouped_matmul.py:npu_grouped_matmul",
    "ops/moe_combine.py:check_moe_finalize_routing",
    "ops/moe_dispatch.py:npu_moe_init_routing_v2",
    "weights/sharding/split.py:shard_checkpoint",
}
