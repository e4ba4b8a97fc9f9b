"""What `ci/bench/speed.py` leaves in data/recorded: one file for each part and device, cases that can be
measured anew one by one.

A case is one comparison at one size: interleaved samples, what was counted beside them, how far
each variant's logits lay from the reference's in the same run, and what could not run, with the
reason.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from ..engine.device import device_kind
from ..engine.graph import CAPTURED
from ..errors import PortError
from ..files import write_atomic
from .machine import Host, device_info, this_host
from .records import Record, Results, iso_date

Part = Literal["graphs", "ladder", "peer", "limit", "scaling", "prompts", "imports"]
FASTEST = 1e14  # bytes a second: no device's memory comes near
FULL = "last_token_head"
GRAPHS = {
    "ge": "ge_graph",
    "aclgraph": "aclgraph",
    "compiled-captured": "compiled and captured",
}  # engine.graph's mode -> name of the full port in it


@dataclass(frozen=True)
class Case:
    """One comparison. `facts`: variant -> what was counted, as operators, kv_bytes, peak_bytes,
    work, fraction."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    key: str  # as in w1-float32-decode-b1-c1024
    date: Annotated[str, AfterValidator(iso_date)]
    command: str
    rounds: Annotated[int, Field(ge=1)]
    records: Annotated[list[Record], Field(min_length=1)]
    bound: float = 0.0  # of the differences; 0: nothing to compare
    # variant -> its own bound, wider: it computes in half precision on float32 weights
    bounds: dict[str, Annotated[float, Field(gt=0, le=0.1)]] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    facts: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # variant -> why it could not run

    @property
    def results(self) -> Results:
        return Results(list(self.records))


@dataclass(frozen=True)
class Bench:
    """One file: bench-<part>-<tier>.json."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: Literal[1]
    part: Part
    tier: Literal["cpu", "cuda", "npu"]
    device_name: str
    host: Host
    cases: list[Case]

    def case(self, key: str) -> Case:
        found = [c for c in self.cases if c.key == key]
        if not found:
            raise PortError(
                f"no case {key!r} in part {self.part}; there are {', '.join(c.key for c in self.cases)}"
            )
        return found[0]


def graph_name(graph: str, device: str) -> str:
    """The name of the compiled full port. PortError where a device cannot make such a graph: on a CPU
    "aclgraph" is inductor's code, and no record says otherwise."""
    if graph != "ge" and device_kind(device) == "cpu":
        raise PortError(f"--graph {graph}: a CPU captures no graph; use --graph ge there")
    return GRAPHS[graph]


def check_label(record: Record, what: str) -> None:
    """PortError where a record is called aclgraph and nothing was captured."""
    captured = record.mode in CAPTURED or record.tier == "npu"
    if record.name == GRAPHS["aclgraph"] and record.mode != "eager" and not captured:
        raise PortError(f"{what}: {record.name!r} was {record.mode}, and never captured")


def case_of(key: str, rounds: int, results: Results, **more: Any) -> Case:
    """What this command measured just now."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    words = sys.argv[1:]
    if "--out" in words:  # where the file lay first says nothing about the numbers in it
        at = words.index("--out")
        del words[at : at + 2]
    command = shlex.join(["ci/bench/speed.py", *words])
    found: dict[str, Any] = {"differences": results.differences, "facts": results.facts}
    return Case(key, now, command, rounds, list(results), **found, **more)


def key_of(profile: str, dtype: str, phase: str, batch: int, size: int) -> str:
    return f"{profile}-{dtype}-{phase}-b{batch}-{'c' if phase == 'decode' else 't'}{size}"


_SCHEMA = TypeAdapter(Bench)


def path_of(folder: str | Path, part: str, tier: str) -> Path:
    return Path(folder) / f"bench-{part}-{tier}.json"


def check(case: Case, what: str) -> Case:
    """What the schema cannot say: every timed variant agreed with the reference, and has all its
    rounds."""
    if bad := [n for n, d in case.differences.items() if not d <= case.bounds.get(n, case.bound)]:
        raise PortError(
            f"{what}: {bad[0]!r} differs from the reference by {case.differences[bad[0]]:.1e}"
        )
    bounds = {name for name, facts in case.facts.items() if "rate" in facts}  # no model's
    timed = {r.name for r in case.records} - bounds
    if case.bound and (missing := timed - case.differences.keys()):
        raise PortError(f"{what}: {sorted(missing)[0]!r} was timed and never checked")
    if any(len(r.samples) != case.rounds for r in case.records):
        raise PortError(f"{what}: not every variant has {case.rounds} samples")
    for r in case.records:
        rate = case.facts.get(r.name, {}).get("kv_bytes", 0.0) / min(r.samples)
        if rate > FASTEST:
            raise PortError(
                f"{what}: {r.name!r} would read its cache with {rate / 1e12:.0f} TB/s, more than any memory"
            )
    for r in case.records:
        check_label(r, what)
    if odd := sorted({r.tier for r in case.records} & {"host-npu"}):
        raise PortError(f"{what}: times of {odd[0]} are never kept")
    return case


def load(file: str | Path) -> Bench:
    """Read and check one file."""
    try:
        found = _SCHEMA.validate_python(json.loads(Path(file).read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        raise PortError(f"{file}: {' → '.join(map(str, first['loc']))}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise PortError(f"{file}: no results of ci/bench/speed.py: {error}") from error
    for case in found.cases:
        check(case, f"{file}: {case.key}")
        if {(r.tier, r.device_name) for r in case.records} != {(found.tier, found.device_name)}:
            raise PortError(
                f"{file}: {case.key}: records of another device than {found.device_name} ({found.tier})"
            )
    return found


def load_all(folder: str | Path) -> list[Bench]:
    return [load(f) for f in sorted(Path(folder).glob("bench-*.json"))]


def save(folder: str | Path, part: Part, device: str, cases: Mapping[str, Case]) -> Path:
    """Put cases in the part's file, in the place of those of the same key."""
    info = device_info(device)
    if info["tier"] == "host-npu":
        raise PortError("the host stand-in is no NPU: its times are never kept")
    file = path_of(folder, part, info["tier"])
    old = (
        load(file)
        if file.is_file()
        else Bench(1, part, info["tier"], info["device_name"], this_host(), [])
    )
    if old.device_name != info["device_name"]:
        raise PortError(
            f"{file} was measured on {old.device_name}, this is {info['device_name']}: give another --out"
        )
    kept = {c.key: c for c in old.cases} | {k: check(c, k) for k, c in cases.items()}
    whole = asdict(old) | {"cases": [asdict(kept[k]) for k in sorted(kept)]}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, _text(whole))
    except OSError as error:
        raise PortError(f"{file}: cannot be written: {error.strerror or error}") from error
    return file


def _text(bench: dict[str, Any]) -> str:
    """JSON with one record a line: a case stays readable, and a diff shows what was measured anew."""
    lines: dict[str, str] = {}
    for case in bench["cases"]:
        for i, record in enumerate(case["records"]):
            mark = f"@{len(lines)}@"
            record["samples"] = [float(f"{s:.5g}") for s in record["samples"]]
            lines[mark] = json.dumps(record, ensure_ascii=False)
            case["records"][i] = mark
    text = json.dumps(bench, indent=1, ensure_ascii=False)
    for mark, line in lines.items():
        text = text.replace(f'"{mark}"', line)
    return text + "\n"
