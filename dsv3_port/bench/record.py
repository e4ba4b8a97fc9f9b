"""`dsv3-port record`: one signed measurement of a device, for data/recorded.

A record holds the ladder's samples together with what they need to be believed: device, host,
versions, command, settings, and the equivalence checks that the same run passed before it timed
anything. The host stand-in is refused, and so is a machine that others were using.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..check.greedy import check_greedy
from ..check.peer import peer_model
from ..engine.device import pick_device, pick_dtype
from ..engine.loading import load_model
from ..engine.settings import TABLE, environment
from ..engine.tokenizer import load_tokenizer
from ..errors import PortError
from ..paths import tiny
from ..plan import PortPlan
from ..steps import TOLERANCE
from .cases import check_label
from .ladder import bench_ladder
from .machine import Host, device_info, this_host
from .models import captures, ladder_plans
from .records import PEER, UPSTREAM, Record, Results

PROMPTS = ("Once upon a time", "One windy")
NEW_TOKENS = 48
# what else changes a time or a result on an NPU (engine/settings.py has the rest)
VARIABLES = (
    "TASK_QUEUE_ENABLE",
    "ASCEND_LAUNCH_BLOCKING",
    "ASCEND_RT_VISIBLE_DEVICES",
    "CPU_AFFINITY_CONF",
    "HCCL_BUFFSIZE",
    "PYTORCH_NPU_ALLOC_CONF",
    "OMP_NUM_THREADS",
)


@dataclass(frozen=True)
class SignOff:
    """The checks of the same run. `differences`: of each timed variant's logits from upstream's,
    relative."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    dtype: str
    bound: float
    differences: Annotated[dict[str, float], Field(min_length=1)]
    greedy_models: Annotated[
        list[str], Field(min_length=2)
    ]  # wrote the same tokens with the embedded model, float32
    greedy_tokens: Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Recorded:
    """One file of data/recorded."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: Literal[1]
    tier: Literal["cpu", "cuda", "npu"]
    device_name: str
    date: str
    command: str
    host: Host
    versions: dict[str, str]
    settings: dict[str, str]  # environment variables that were set
    repeats: Annotated[int, Field(ge=1)]
    sign_off: SignOff
    records: Annotated[list[Record], Field(min_length=1)]

    @property
    def results(self) -> Results:
        return Results(list(self.records))


_SCHEMA = TypeAdapter(Recorded)


def make_record(
    device: str = "auto",
    profile: str = "w1",
    *,
    dtype: str | None = None,
    context: int = 1024,
    batch: int = 1,
    prefill: int = 128,
    rounds: int = 9,
    compiled: bool = True,
    busy: bool = False,
    seed: int = 0,
    command: Sequence[str] = (),
) -> Recorded:
    """Check, then measure the ladder. busy: keep the measurement of a machine that others used,
    marked as such.

    PortError where a check fails, on the host stand-in, and on a busy machine.
    """
    where = pick_device(device)
    info = device_info(where)
    if info["tier"] == "host-npu":
        raise PortError(
            "the host stand-in is no NPU: its times are never recorded; run this on a machine with NPUs"
        )
    kind = pick_dtype(dtype, torch.float32 if where.type == "cpu" else torch.bfloat16)
    models, tokens = _same_text(str(where))
    plans = ladder_plans(compiled=compiled)
    if compiled and captures(where, kind):
        plans["aclgraph"] = PortPlan.full().plus("aclgraph")
    results = bench_ladder(
        profile,
        device=str(where),
        dtype=kind,
        context=context,
        batch=batch,
        prefill=prefill,
        rounds=rounds,
        plans=plans,
        seed=seed,
    )
    if not busy:
        _check_quiet(results)
    name = str(kind).removeprefix("torch.")
    made = Recorded(
        format=1,
        tier=info["tier"],
        device_name=info["device_name"],
        date=info["date"],
        command=shlex.join(command),
        host=this_host(),
        versions=info["versions"] | _ascend(info["tier"]),
        settings=_settings(),
        repeats=rounds,
        records=list(results),
        sign_off=SignOff(name, TOLERANCE[name], results.differences, models, tokens),
    )
    return check(made, "this record")


def _check_quiet(results: Results) -> None:
    if results.busy:
        share = max(r.busy_share for r in results)
        raise PortError(
            f"other processes used {share:.0%} of this machine meanwhile: nothing is recorded; try again "
            "when it is quiet, or give --busy to keep the numbers, marked as such"
        )


def _same_text(device: str) -> tuple[list[str], int]:
    """The embedded model writes the same greedy tokens upstream, ported, and in transformers, in
    float32."""
    folder = tiny()
    upstream = load_model(folder, PortPlan.upstream(), device, "float32")
    models = {
        UPSTREAM: upstream,
        "full port": load_model(folder, PortPlan.full(), device, "float32"),
        PEER: peer_model(upstream),
    }
    written = check_greedy(models, load_tokenizer(folder), PROMPTS, NEW_TOKENS)
    return list(models), sum(len(g.token_ids) for g in written)


def _ascend(tier: str) -> dict[str, str]:
    """Versions of CANN and of the driver's tools, on an NPU."""
    if tier != "npu":
        return {}
    from ..doctor import ascend, npu_smi

    home = ascend.cann_home()
    found = {"cann": ascend.cann_version(home) if home else None, "npu_smi": npu_smi.version()}
    return {name: version for name, version in found.items() if version}


def _settings() -> dict[str, str]:
    names = [row.variable for row in TABLE if row.variable.startswith(("HCCL_", "GMM_"))] + list(
        VARIABLES
    )
    return {name: value for name in names if (value := environment(name))}


def check(record: Recorded, what: str) -> Recorded:
    """What the schema cannot say: records are the device's own, and every timed variant was signed
    off in bounds."""
    problem = ""
    if {r.tier for r in record.records} != {record.tier}:
        problem = f"records of tier {', '.join(sorted({r.tier for r in record.records}))} under tier {record.tier}"
    elif missing := sorted({r.name for r in record.records} - record.sign_off.differences.keys()):
        problem = f"{missing[0]!r} was timed and never checked"
    elif bad := [
        n for n, d in record.sign_off.differences.items() if not d <= record.sign_off.bound
    ]:
        problem = f"{bad[0]!r} differs from upstream by {record.sign_off.differences[bad[0]]:.1e}"
    elif any(len(r.samples) != record.repeats for r in record.records):
        problem = f"not every variant has {record.repeats} samples"
    elif record.sign_off.bound > TOLERANCE.get(record.sign_off.dtype, 0.0):
        problem = (
            f"signed off with a bound of {record.sign_off.bound:.0e} for {record.sign_off.dtype}"
        )
    if problem:
        raise PortError(f"{what}: {problem}")
    for r in record.records:
        check_label(r, what)
    return record


def save(record: Recorded, folder: str | Path) -> Path:
    """Write <device>-<date>.json; a second record of a day gets -2, -3."""
    folder = Path(folder)
    name = "-".join(re.findall(r"[a-z0-9]+", f"{record.tier} {record.device_name}".lower()))
    stem, count = f"{name}-{record.date[:10]}", 1
    text = json.dumps(_plain(record), indent=1, ensure_ascii=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            file = folder / (f"{stem}.json" if count == 1 else f"{stem}-{count}.json")
            try:
                with file.open("x", encoding="utf-8") as out:
                    out.write(text)
                return file
            except FileExistsError:
                count += 1
    except OSError as error:
        raise PortError(f"{folder}: cannot be written: {error.strerror or error}") from error


def _plain(record: Recorded) -> dict[str, Any]:
    """As JSON, with median and quartiles beside the samples for those who read the file."""
    rows = [asdict(r) | {"median": r.median, "q1": r.q1, "q3": r.q3} for r in record.records]
    return asdict(record) | {"records": rows}


def load(file: str | Path) -> Recorded:
    """Read and check one file."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        for row in content["records"]:
            for derived in ("median", "q1", "q3"):
                row.pop(derived, None)
        return check(_SCHEMA.validate_python(content), str(file))
    except ValidationError as error:
        first = error.errors()[0]
        raise PortError(f"{file}: {' → '.join(map(str, first['loc']))}: {first['msg']}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PortError(f"{file}: no record of `dsv3-port record`: {error}") from error


def load_all(folder: str | Path) -> dict[str, Recorded]:
    """Every record in a folder, by file name; data/recorded holds other files too, which are left
    out."""
    names = [
        f for tier in ("cpu", "cuda", "npu") for f in sorted(Path(folder).glob(f"{tier}-*.json"))
    ]
    return {f.name: load(f) for f in names}


def rows(found: dict[str, Recorded]) -> list[tuple[str, str, str, str, str, str]]:
    """(file, device, dtype, phase, variant, its factor against upstream) of the full port, eager
    and in graphs."""
    last = list(ladder_plans())[-1]
    return [
        (
            name,
            f"{r.device_name} ({r.tier})",
            r.dtype,
            r.phase,
            f"{r.name}, {r.mode}",
            str(record.results.select(run=r.run).ratio(UPSTREAM, r.name, r.phase)),
        )
        for name, record in found.items()
        for r in record.records
        if r.name == last or r.mode != "eager"
    ]
