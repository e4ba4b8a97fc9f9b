"""What stands between kernels: waits behind the kernel before, and bytes on links. Waits are
measured rows of gaps.csv; links are cited rows of published.csv; the latency of a collective is in
no source and is counted, not timed.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import PortError
from .kernels import gaps, published

MODES = ("eager", "aclgraph", "ge")
# exports that hold kernels of all steps in one mode; the eager ones with waits of 0.5 ms and more
# are where the stream had run dry, and HcPre follows its own other half without a wait
_EAGER = ("swiglu.csv",)
_GRAPH = ("qbmm_dsv4_multi_batch.csv", "dequant_swiglu_quant.csv", "rotary_position_embedding.csv")


@dataclass(frozen=True)
class Wait:
    """Microseconds that a kernel waits behind the one before it: p10, median and p90 of samples."""

    mode: str
    low: float
    us: float
    high: float
    rows: tuple[str, ...]
    note: str = ""


def wait(mode: str) -> Wait:
    """The wait of an eager launch, of a captured graph's replay (aclgraph) or of a GE graph. No
    export says that it is a GE graph: it takes a captured graph's wait, with its own kernels."""
    if mode not in MODES:
        raise PortError(f"waits: mode {mode!r}; there are {', '.join(MODES)}")
    names = _EAGER if mode == "eager" else _GRAPH
    found = [g for g in gaps() if g.file.rsplit("/", 1)[-1] in names]
    medians = sorted(g.wait for g in found)
    return Wait(
        mode,
        min(g.wait_p10 for g in found),
        medians[len(medians) // 2],
        max(g.wait_p90 for g in found),
        tuple(g.id for g in found),
        "no export says GE graph; a captured graph's wait" if mode == "ge" else "",
    )


@dataclass(frozen=True)
class Sent:
    """Collectives of a step: how many, and the time of their bytes on the fastest and the slowest
    cited link. Latency is not in it."""

    calls: int
    low: float  # µs
    high: float
    rows: tuple[str, ...]


def sent(nbytes: int, calls: int) -> Sent:
    """`nbytes`: what one rank sends by ring algorithms."""
    links = [p for p in published() if p.quantity == "link in a node"]
    rates = sorted(p.value for p in links)
    times = [nbytes / (rate * 1e9) * 1e6 for rate in rates]
    return Sent(calls, times[-1], times[0], tuple(p.id for p in links))
