"""Tables of what ci/bench/speed.py measured, as README and notebook 10 show them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ..errors import PortError
from ..markdown import cell, table
from ..messages import told, tr
from .cases import FULL, GRAPHS, Bench, Case
from .prompt_table import PROMPT_HEADS, prompt_rows
from .records import FAIR, UPSTREAM, Results
from .results_table import seconds_text

PEERS = "transformers, "  # how the names of peer_forms begin
AS_LOADED = "transformers, as loaded"
LLAMA = "llama.cpp, "  # and those of llamacpp
BUFFER = re.compile(r"-buffer(\d+)$")  # of a key: how long the cache is beside what is filled
Row = tuple[str, ...]


def best_peer(case: Case, of: str = PEERS) -> str:
    """The fastest of transformers' forms in this run, or of llama.cpp's."""
    names = [r.name for r in case.records if r.name.startswith(of)]
    if not names:
        raise PortError(f"{case.key}: {of.rstrip(', ')} was not measured in this run")
    return min(names, key=lambda n: case.results.get(n).median)


def what_of(case: Case, device: bool = True) -> str:
    """Profile, dtype, phase and sizes in words; and which device, where it is no CPU."""
    r = case.records[0]
    size = f"{r.context} cached" if r.phase == "decode" else f"{r.tokens} tokens"
    between = ", C++ between kernels" if case.key.endswith("-cpp") else ""
    if times := BUFFER.search(case.key):
        between = f", buffer {times[1]} times as long"
    at, dtype, _ = case.key.partition(
        f"-{r.dtype}-"
    )  # a single layer's key says which, its folder's name does not
    on = f", {r.device_name}" if device and r.tier != "cpu" else ""
    return f"{at if dtype else r.profile} {r.dtype} {r.phase}, batch {r.batch}, {size}{between}{on}"


def _cases(found: Sequence[Bench], part: str) -> list[Case]:
    return [case for bench in found if bench.part == part for case in bench.cases]


def _beside(found: Sequence[Bench], peer: str) -> list[Case]:
    """Cases of part peer in which this one was timed."""
    cases = _cases(found, "peer")
    return [c for c in cases if any(name.startswith(peer) for name in c.results.names)]


def _ours(case: Case) -> str:
    """The full port as the case compiled it."""
    return next((n for n in GRAPHS.values() if n in case.results.names), FULL)


LLAMA_HEADS = (
    "beside llama.cpp",
    "full port, compiled",
    "its fastest form",
    "full port is faster by",
    "which form is that",
    "logits differ by",
)


def llama_rows(found: Sequence[Bench]) -> list[Row]:
    """Of each case of part peer with llama.cpp: what, time of the compiled full port and of
    llama.cpp's fastest form, how many times faster ours is, that form's name, and the difference of
    the logits with float32 throughout, or of the nearest form."""
    rows: list[Row] = []
    for case in _beside(found, LLAMA):
        results, ours, best = case.results, _ours(case), best_peer(case, LLAMA)
        nearest = min(d for name, d in case.differences.items() if name.startswith(LLAMA))
        times = [seconds_text(results.get(name).median) for name in (ours, best)]
        factor = str(results.ratio(best, ours))
        rows.append((what_of(case), *times, factor, best.removeprefix(LLAMA), f"{nearest:.1e}"))
    return rows


def speed_rows(found: Sequence[Bench]) -> list[Row]:
    """Of each case of part peer with transformers: what, time of the compiled full port, and how many times faster it
    is than upstream with a growing and with a fixed cache, transformers as loaded, its fastest form
    here, and that form's name."""
    rows: list[Row] = []
    for case in _beside(found, PEERS):
        results, ours, best = case.results, _ours(case), best_peer(case)
        factors = [str(results.ratio(name, ours)) for name in (UPSTREAM, FAIR, AS_LOADED, best)]
        rows.append(
            (
                what_of(case),
                seconds_text(results.get(ours).median),
                *factors,
                best.removeprefix(PEERS),
            )
        )
    return rows


RUNGS = (
    FAIR,
    "mla_low_rank",
    FULL,
)  # of ci/bench/speed.py --part ladder --main, beside upstream and the compiled full port


def ladder_rows(found: Sequence[Bench]) -> list[Row]:
    """Of each case of part ladder: what, upstream's time, how many times faster the main rungs are,
    eager and compiled, KV cache and operators of upstream and of the full port."""
    rows: list[Row] = []
    for case in _cases(found, "ladder"):
        results, names = case.results, case.results.names
        graph = next((n for n in GRAPHS.values() if n in names), "")
        factors = [str(results.ratio(UPSTREAM, n)) if n in names else "–" for n in (*RUNGS, graph)]
        pair = case.facts[UPSTREAM], case.facts[FULL]
        cache = (
            " → ".join(f"{f['kv_bytes'] / 1e6:.1f}" for f in pair) + " MB"
            if pair[0]["kv_bytes"]
            else "–"
        )
        rows.append(
            (
                what_of(case),
                seconds_text(results.get(UPSTREAM).median),
                *factors,
                cache,
                " → ".join(f"{f['operators']:.0f}" for f in pair),
            )
        )
    return rows


def limit_rows(found: Sequence[Bench]) -> list[Row]:
    """Of each case of part limit: what, time, bytes or FLOP of the step, the rate measured beside
    it, and the fraction of that rate which the step reached."""
    rows: list[Row] = []
    for case in _cases(found, "limit"):
        decode = case.records[0].phase == "decode"
        step, bound = case.facts["step"], case.facts["read" if decode else "gemm"]
        work = f"{step['work'] / 1e6:.0f} MB" if decode else f"{step['work'] / 1e9:.1f} GFLOP"
        rate = f"{bound['rate'] / 1e9:.1f} " + ("GB/s" if decode else "GFLOP/s")
        rows.append(
            (
                what_of(case),
                seconds_text(case.results.get("step").median),
                work,
                rate,
                f"{step['fraction']:.0%} [{step['fraction_low']:.0%}–{step['fraction_high']:.0%}]",
            )
        )
    return rows


def curve(case: Case) -> tuple[str, Results]:
    """What a case of part scaling varies (a field of its records), and its records in that order."""
    x = next(
        f
        for f in ("context", "batch", "top", "tokens")
        if len({getattr(r, f) for r in case.records}) > 1
    )
    return x, Results(sorted(case.records, key=lambda r: int(getattr(r, x))))


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """p of the best y = c x^p (least squares of the logarithms): 1 is linear, 0 is independent of
    x."""
    if len(x) != len(y) or len(set(x)) < 2 or min(*x, *y) <= 0:
        raise PortError(
            "fit_exponent needs two different positive x at least, and as many positive y"
        )
    u, v = [math.log(a) for a in x], [math.log(b) for b in y]
    mu, mv = sum(u) / len(u), sum(v) / len(v)
    return sum((a - mu) * (b - mv) for a, b in zip(u, v, strict=True)) / sum(
        (a - mu) ** 2 for a in u
    )


def exponent_rows(found: Sequence[Bench]) -> list[Row]:
    """Of each curve of part scaling: what, the range, and p of time = c x^p for each variant."""
    rows: list[Row] = []
    for case in _cases(found, "scaling"):
        x, results = curve(case)
        xs = sorted({int(getattr(r, x)) for r in results})
        fits = []
        for name in results.names:
            line = [r for r in results if r.name == name]
            fits.append(
                f"{name} {fit_exponent([getattr(r, x) for r in line], [r.median for r in line]):.2f}"
            )
        r = case.records[0]
        rows.append(
            (f"{r.profile} {r.dtype} {r.phase} over {x}", f"{xs[0]}–{xs[-1]}", ", ".join(fits))
        )
    return rows


def start_rows(found: Sequence[Bench]) -> list[Row]:
    """Of part imports: what was started, its time, and what it takes beyond torch alone, paired by
    round."""
    rows: list[Row] = []
    for case in _cases(found, "imports"):
        torch_alone = case.results.get("torch").samples
        for r in case.records:
            beyond = sorted(a - b for a, b in zip(r.samples, torch_alone, strict=True))[
                len(torch_alone) // 2
            ]
            rows.append(
                (
                    r.name,
                    seconds_text(r.median),
                    f"{beyond:+.2f} s" if r.name.startswith("torch,") else "–",
                )
            )
    return rows


def markdown(found: Sequence[Bench]) -> str:
    """The tables of README, with where and when they were measured."""
    parts = []
    for heads, rows in (
        (
            (
                "measured",
                "full port, compiled",
                "× upstream",
                "× upstream, fixed cache",
                "× transformers as loaded",
                "× its fastest form",
                "which is",
            ),
            speed_rows(found),
        ),
        (LLAMA_HEADS, llama_rows(found)),
        (
            (
                "ladder",
                "upstream",
                "× fixed cache",
                "× MLA low rank",
                "× full port, eager",
                "× full port, compiled",
                "KV cache",
                "operators a step",
            ),
            ladder_rows(found),
        ),
        (
            ("against the machine's limit", "time", "work", "rate in the same run", "reached"),
            limit_rows(found),
        ),
        (PROMPT_HEADS, prompt_rows(found)),
        (("cost against work", "range", "fitted exponents of time"), exponent_rows(found)),
        (("start of a process", "time", "beyond torch"), start_rows(found)),
    ):
        if rows:
            parts.append(table(list(map(told, heads)), ([told(c) for c in row] for row in rows)))
    where = sorted(
        {
            f"{b.device_name} ({b.tier}), {b.host.memory_gib:.0f} GiB, torch "
            f"{c.records[0].versions['torch']}, {c.date[:10]}"
            for b in found
            for c in b.cases
        }
    )
    note = tr("*{where}; medians of paired ratios, quartiles in brackets.*")
    return "\n\n".join([*parts, *(note.format(where=cell(line)) for line in where)])
