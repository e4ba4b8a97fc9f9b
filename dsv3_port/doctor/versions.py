"""Which torch, torch_npu, CANN and Python belong together: the table of docs/versions.md, and what
the doctor compares with.

"cited" rows are Ascend/pytorch COMPATIBILITY.md of 2026-08-21, those of release 26.1.1 a copy of a
later one in a fork; history is the version table of Ascend's own sample.
"""

from __future__ import annotations

from dataclasses import dataclass

CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyPI's torch for Linux is a CUDA build
TORCH = "2.13.0"  # pinned and tested: on cpu, cuda and the host NPU
TORCH_NPU = "2.13.0"  # the host NPU's


@dataclass(frozen=True)
class Pair:
    """One row. cann "": no pairing was published when this was written. image: tag of
    quay.io/ascend/cann. python: of the wheels. ran: what was run with this pair, and where."""

    torch_npu: str
    torch: str
    cann: str
    python: str
    source: str
    release: str = ""  # of TorchNPU / TorchAir
    image: str = ""
    ran: str = ""


# What a machine with cards gets: recommended in the release notes of TorchNPU 26.1.0.
CARD = Pair(
    "2.12.0",
    "2.12.0",
    "9.1.0",
    "3.10–3.13 (image: 3.12)",
    "cited",
    "26.1.0",
    "9.1.0-910b-ubuntu22.04-py3.12; A3: 9.1.0-a3-…",
    "**the pair for a card.** Wheel signature check; installed by the container file's steps (Python 3.12, x86_64, "
    "PyPI's build of torch)",
)
_HOST = (
    "**the host NPU's pair.** No card: all notebooks and tests on Linux x86_64, CPU build with Python 3.11, CUDA "
    "build (5.8 GB) with Python 3.12 and 3.13; Python 3.14 was resolved and not run; wheel signature check"
)
_NEXT = (
    "no card: host NPU, once (2026-11-27, Python 3.11, CUDA build): 594 tests of model, ops, weights and engine, and "
    "523 of 529 of the host NPU's, pass; wheel signature check"
)
_WHEEL = "wheel signature check"
_COPY = "cited from a copy of a later COMPATIBILITY.md"
_SAMPLE = "cited from Ascend's sample; history: this package does not run there"

PAIRS: tuple[Pair, ...] = (
    Pair("2.14.0", "2.14.0", "", "3.10–3.14", "", ran=_NEXT),
    Pair("2.13.0", "2.13.0", "", "3.10–3.14", "", "26.2.0", ran=_HOST),
    Pair("2.12.0.post2", "2.12.0", "9.1.X", "3.10–3.13", _COPY, "26.1.1"),
    CARD,
    Pair("2.11.0.post2", "2.11.0", "9.1.X", "3.10–3.13", _COPY, "26.1.1"),
    Pair("2.11.0", "2.11.0", "9.1.0", "3.10–3.13", "cited", "26.1.0", ran=_WHEEL),
    Pair("2.10.0.post7", "2.10.0", "", "3.10–3.14", "", ran=_WHEEL),
    Pair("2.10.0.post6", "2.10.0", "9.1.X", "3.10–3.12", _COPY, "26.1.1"),
    Pair("2.10.0.post4", "2.10.0", "9.1.0", "3.10–3.13", "cited", "26.1.0"),
    Pair("2.10.0", "2.10.0", "9.0.0", "3.10–3.13", "cited", "26.0.0"),
    Pair("2.9.0.post9", "2.9.0", "", "3.10–3.14", "", ran=_WHEEL),
    Pair("2.9.0.post8", "2.9.0", "9.1.X", "3.10–3.13", _COPY, "26.1.1"),
    Pair("2.9.0.post6", "2.9.0", "9.1.0", "3.10–3.13", "cited", "26.1.0"),
    Pair("2.9.0.post2", "2.9.0", "9.0.0", "3.10–3.13", "cited", "26.0.0"),
    Pair("2.9.0", "2.9.0", "8.5.0", "3.10–3.12", "cited", "7.3.0", ran=_WHEEL),
    Pair("6.0.rc3", "2.1.0", "8.0.rc3", "3.8–3.10", _SAMPLE, "6.0.rc3"),
    Pair("6.0.rc2", "2.1.0", "8.0.rc2", "3.8–3.10", _SAMPLE, "6.0.rc2"),
    Pair("6.0.rc1", "2.1.0", "8.0.rc1", "3.8–3.10", _SAMPLE, "6.0.rc1"),
)


def pair_of(torch_npu: str) -> Pair | None:
    """The row of exactly this torch_npu."""
    return next((p for p in PAIRS if p.torch_npu == torch_npu), None)


def newest_for_cann(cann: tuple[int, ...]) -> Pair | None:
    """The pair for this CANN (major, minor): the recommended one, else the newest published."""
    return next(
        (
            p
            for p in (CARD, *PAIRS)
            if p.cann and tuple(int(n) for n in p.cann.split(".")[:2]) == cann[:2]
        ),
        None,
    )


def install_command(pair: Pair = CARD) -> str:
    """pip's words for a pair: by default the documented one, as they are for machines with cards."""
    index = f"--extra-index-url {CPU_INDEX}"
    return f"pip install {index} torch=={pair.torch} torch-npu=={pair.torch_npu}"


def markdown() -> str:
    """The table of docs/versions.md."""
    head = ("torch", "torch_npu", "CANN", "Python", "image (quay.io/ascend/cann)", "release")
    rows = [f"| {' | '.join(head)} | pairing from | what was run, where |", "|---" * 8 + "|"]
    for p in PAIRS:
        cells = (
            p.torch,
            p.torch_npu,
            p.cann or "not published",
            p.python or "–",
            p.image or "–",
            p.release or "–",
            p.source or "the wheel's own metadata",
            p.ran or "not run",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
