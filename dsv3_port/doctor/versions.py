"""Which torch, torch_npu, CANN and Python belong together, and what doctor
compares with (the table of docs/versions.md).

"cited" rows are Ascend/pytorch COMPATIBILITY.md of 2026-08-21; history is the version table of
Ascend's own sample.
"""

from __future__ import annotations

from dataclasses import dataclass

TORCH = "2.13.0"  # tested
TORCH_NPU = "2.13.0"


@dataclass(frozen=True)
class Pair:
    """One row. cann "": no pairing was published when this was written."""

    torch_npu: str
    torch: str
    cann: str
    python: str
    verified: str
    release: str = ""  # of TorchNPU / TorchAir


_TESTS = "tests on the host NPU and on cpu; wheel signature check"
_WHEEL = "wheel signature check"
_CITED = "cited"
_SAMPLE = "cited from Ascend's sample; history: this package does not run there"

PAIRS: tuple[Pair, ...] = (
    Pair("2.14.0", "2.14.0", "", "", _WHEEL),
    Pair("2.13.0", "2.13.0", "", "3.11 (wheels: 3.10–3.14)", _TESTS, "26.2.0"),
    Pair("2.12.0", "2.12.0", "9.1.0", "3.10–3.14", f"{_CITED}; {_WHEEL}", "26.1.0"),
    Pair("2.11.0", "2.11.0", "9.1.0", "", f"{_CITED}; {_WHEEL}", "26.1.0"),
    Pair("2.10.0.post7", "2.10.0", "", "", _WHEEL),
    Pair("2.10.0.post4", "2.10.0", "9.1.0", "", _CITED, "26.1.0"),
    Pair("2.9.0.post9", "2.9.0", "", "", _WHEEL),
    Pair("2.9.0.post6", "2.9.0", "9.1.0", "", _CITED, "26.1.0"),
    Pair("2.9.0.post2", "2.9.0", "9.0.0", "", _CITED, "26.0.0"),
    Pair("2.9.0", "2.9.0", "8.5.0", "3.9–3.12", f"{_CITED}; {_WHEEL}", "7.3.0"),
    Pair("6.0.rc3", "2.1.0", "8.0.rc3", "3.8–3.10", _SAMPLE, "6.0.rc3"),
    Pair("6.0.rc2", "2.1.0", "8.0.rc2", "3.8–3.10", _SAMPLE, "6.0.rc2"),
    Pair("6.0.rc1", "2.1.0", "8.0.rc1", "3.8–3.10", _SAMPLE, "6.0.rc1"),
)


def pair_of(torch_npu: str) -> Pair | None:
    """The row of exactly this torch_npu."""
    return next((p for p in PAIRS if p.torch_npu == torch_npu), None)


def newest_for_cann(cann: tuple[int, ...]) -> Pair | None:
    """The newest pair published for this CANN (major, minor)."""
    return next(
        (p for p in PAIRS if p.cann and tuple(int(n) for n in p.cann.split(".")[:2]) == cann[:2]),
        None,
    )


def install_command(pair: Pair | None = None) -> str:
    """pip's words for a pair; without one, the tested pair."""
    torch, npu = (pair.torch, pair.torch_npu) if pair else (TORCH, TORCH_NPU)
    return f"pip install torch=={torch} torch-npu=={npu}"


def markdown() -> str:
    """The table of docs/versions.md."""
    rows = [
        "| torch_npu | torch | CANN | Python | TorchNPU / TorchAir release | how verified |",
        "|---" * 6 + "|",
    ]
    for p in PAIRS:
        cells = (
            p.torch_npu,
            p.torch,
            p.cann or "not published",
            p.python or "–",
            p.release or "–",
            p.verified,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
