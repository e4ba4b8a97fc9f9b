"""What a measurement leaves behind: records with their device, versions and date, and one JSON file
that keeps them.

Statistics are always computed from the samples; the copies in the JSON are for people who read the
file.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import PortError
from ..files import write_atomic
from ..messages import N_
from .paired import Ratio, quartiles, ratio_of
from .results_table import results_table

Tier = Literal["cpu", "cuda", "host-npu", "npu"]
# names of the ladder's variants that are not steps
UPSTREAM = "upstream"
FAIR = N_(
    "upstream, fixed cache"
)  # the growing cache copies itself every step; this baseline does not
PEER = "transformers"
YOURS = "yours"  # a learner's model
# fields that say whether two records are of the same case
_CASE = (
    *("name", "phase", "mode", "tier", "device_name", "dtype"),
    *("profile", "batch", "context", "tokens", "top"),
)
_DERIVED = ("median", "min", "max", "q1", "q3")


def iso_date(text: str) -> str:
    datetime.fromisoformat(text)  # ValueError, which pydantic tells
    return text


# of one call: no clock here tells less than 10 ns, and no call takes a year
_Seconds = Annotated[float, Field(ge=1e-8, le=3e7, allow_inf_nan=False)]


@dataclass(frozen=True)
class Record:
    """One variant of one run. `samples` hold seconds per call, one for each interleaved round."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    samples: Annotated[list[_Seconds], Field(min_length=1)]
    device: str  # "cpu", "cuda:0", "npu:0"
    device_name: str
    tier: Tier
    date: Annotated[str, AfterValidator(iso_date)]  # UTC, ISO 8601
    versions: dict[str, str]
    run: str  # records of one run were interleaved and may be paired round by round
    unit: Literal["s"] = "s"
    step_ids: tuple[str, ...] = ()
    phase: str = ""  # "prefill", "decode", or what else was timed
    mode: str = "eager"  # or "compiled", "captured", "compiled-captured", "replayed"
    first_call_seconds: _Seconds | None = None  # the first call, compilation included; in no sample
    inner: Annotated[int, Field(ge=1)] = 1  # calls in each sample
    again: list[_Seconds] = field(default_factory=list)  # the same code once more in each round
    dtype: str = ""
    threads: Annotated[int, Field(ge=0, le=1 << 16)] = 0
    profile: str = ""  # model size
    batch: Annotated[int, Field(ge=0)] = 0
    context: Annotated[int, Field(ge=0)] = 0  # cached positions at a decode step
    tokens: Annotated[int, Field(ge=0)] = 0  # prompt length of a prefill
    top: int = 0  # experts chosen for each token, where that was varied
    label: str = ""  # what was run: a command, a notebook
    busy: bool = False  # other processes used the CPU meanwhile
    busy_share: Annotated[float, Field(ge=0, le=1.1, allow_inf_nan=False)] = (
        0.0  # share of all cores that they used
    )

    # whose clock: the host's around a device that has finished, or events on the device
    clock: Literal["host", "device"] = "host"
    gpu: dict[str, str] = field(default_factory=dict)  # clocks and power meanwhile, by nvidia-smi

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def min(self) -> float:
        return min(self.samples)

    @property
    def max(self) -> float:
        return max(self.samples)

    @property
    def same_code(self) -> Ratio | None:
        """How far the same code timed twice lies apart; None where it was timed once."""
        return ratio_of(self.samples, self.again) if self.again else None

    @property
    def q1(self) -> float:
        return quartiles(self.samples)[0]

    @property
    def q3(self) -> float:
        return quartiles(self.samples)[1]


@dataclass
class Results:
    """Records in the order they were measured, and what the same run found out beside the times;
    the file keeps the records only."""

    records: list[Record] = field(default_factory=list)
    # variant -> of its logits from the reference's, relative: the largest of what was checked
    differences: dict[str, float] = field(default_factory=dict)
    facts: dict[str, dict[str, float]] = field(default_factory=dict)  # variant -> what was counted

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __add__(self, other: Results) -> Results:
        more = {n: max(d, self.differences.get(n, 0.0)) for n, d in other.differences.items()}
        return Results(
            self.records + other.records, self.differences | more, self.facts | other.facts
        )

    @property
    def busy(self) -> bool:
        return any(r.busy for r in self.records)

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(r.name for r in self.records))

    def select(self, keep: Callable[[Record], bool] | None = None, **equal: object) -> Results:
        """The records whose fields have these values, as in `select(phase="decode", name=["a",
        "b"])`."""
        known = {f.name for f in fields(Record)}
        if unknown := sorted(equal.keys() - known):
            raise PortError(
                f"records have no {', '.join(unknown)}; their fields are {', '.join(sorted(known))}"
            )

        def fits(record: Record) -> bool:
            if keep is not None and not keep(record):
                return False
            return all(
                getattr(record, k) in v if isinstance(v, list) else getattr(record, k) == v
                for k, v in equal.items()
            )

        return Results([r for r in self.records if fits(r)])

    def get(self, name: str, phase: str | None = None) -> Record:
        """The newest record of this variant; `phase` is needed where it was timed in several."""
        found = [r for r in self.records if r.name == name and phase in (None, r.phase)]
        if not found:
            known = ", ".join(
                repr(r.name) + (f" ({r.phase})" if r.phase else "") for r in self.latest()
            )
            raise PortError(
                f"no record of {name!r}"
                + (f" in phase {phase!r}" if phase else "")
                + f"; there are {known or 'none'}"
            )
        if len(phases := dict.fromkeys(r.phase for r in found)) > 1:
            raise PortError(
                f"{name!r} was timed in several phases: add phase= one of {', '.join(phases)}"
            )
        return found[-1]

    def latest(self) -> Results:
        """The newest record of every case, where the same case was measured again."""
        newest: dict[tuple[object, ...], Record] = {}
        for r in self.records:
            key = tuple(getattr(r, field) for field in _CASE)
            newest.pop(key, None)
            newest[key] = r
        return Results(list(newest.values()))

    def pair(self, a: str, b: str, phase: str | None = None) -> tuple[Record, Record]:
        """The two records of the newest interleaved run that has both; times of different runs are
        never divided."""
        phase = self.get(a, phase).phase
        self.get(b, phase)
        pairs = [
            (x, y)
            for x in self.records
            for y in self.records
            if (x.name, y.name) == (a, b) and x.run == y.run and x.phase == y.phase == phase
        ]
        if not pairs:
            raise PortError(
                f"{a!r} and {b!r} were not measured in one run, so their times cannot be paired: give both "
                "to the same measure() call"
            )
        return pairs[-1]

    def ratio(self, a: str, b: str, phase: str | None = None) -> Ratio:
        """How many times faster b is than a: the median over rounds of time(a) / time(b), with its
        quartiles. bench.outcome says whether that is a difference."""
        first, second = self.pair(a, b, phase)
        return ratio_of(first.samples, second.samples)

    def table(self, baseline: str | None = None) -> str:
        """Markdown: median, spread, first call, and the factor against `baseline` (default: the
        run's first record)."""
        return results_table(self, baseline)

    def _repr_markdown_(self) -> str:
        return self.table()


_SCHEMA = TypeAdapter(list[Record])


def load(path: str | Path) -> Results:
    """Read a results file and check every record against the schema."""
    file = Path(path)
    if not file.is_file():
        raise PortError(f"{file}: no such results file; run a notebook or `dsv3-port bench` first")
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise PortError(
                f"{file}: not a results file: it holds a {type(rows).__name__}, not a list of records"
            )
        rows = [
            {k: v for k, v in row.items() if k not in _DERIVED} if isinstance(row, dict) else row
            for row in rows
        ]
        return Results(_SCHEMA.validate_python(rows))
    except ValidationError as error:
        first = error.errors()[0]
        where = " → ".join(str(p) for p in first["loc"])
        raise PortError(
            f"{file}: record {where}: {first['msg']}; move the file away to start a new one"
        ) from error
    except (OSError, ValueError) as error:
        raise PortError(
            f"{file}: not readable as JSON: {error}; move the file away to start a new one"
        ) from error


def save(results: Results, path: str | Path) -> Path:
    """Append to a results file. A lock keeps parallel notebooks apart, a rename keeps readers from
    half a file."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{file}.lock", timeout=60):
            old = load(file).records if file.exists() else []
            rows = [
                asdict(r) | {name: getattr(r, name) for name in _DERIVED}
                for r in old + results.records
            ]
            write_atomic(file, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise PortError(f"{file}: cannot be written: {error}") from error
    return file
