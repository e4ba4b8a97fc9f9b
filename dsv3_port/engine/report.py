"""What an inference job says at its end: texts, times, and what each rank held."""

from __future__ import annotations

import os
import socket
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..messages import tr, trn
from ..model.decoder import DeepseekV3
from .generate import Generation
from .sampler import Sampling


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank. `peak_process` is the largest resident size of its process (on a CPU the
    weights are in it, and so are mapped pages of the files they came from), `peak_device` what the
    device's allocator handed out at most (0 on a CPU)."""

    rank: int
    host: str
    process: int
    device: str
    parameters: int
    cache: int  # of a batch at its full length
    peak_process: int
    peak_device: int


def rank_memory(model: DeepseekV3, batch: int, length: int) -> RankMemory:
    """This rank's, after a run with `batch` sequences of at most `length` positions."""
    kind = model.device.type
    device = 0 if kind == "cpu" else torch.get_device_module(kind).max_memory_allocated()
    return RankMemory(
        model.parallel.rank,
        socket.gethostname(),
        os.getpid(),
        str(model.device),
        sum(p.nbytes for p in model.parameters()),
        model.new_cache(1, 1).nbytes_for(batch, length),
        peak_process(),
        device,
    )


def peak_process() -> int:
    """Largest resident size of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def headline(
    model: str, ranks: int, together: str, mode: str, dtype: str, sampling: Sampling
) -> str:
    """What ran, as a summary begins. together: how sequences are decoded, `batch 4`."""
    said = tr("{model}: {ranks}, {together}, {mode}, {dtype}, {sampling}")
    of = trn("{n} rank", "{n} ranks", ranks).format(n=ranks)
    what = {"model": model, "mode": mode, "dtype": dtype, "sampling": sampling}
    return said.format(ranks=of, together=together, **what)


@dataclass(frozen=True)
class JobReport:
    """The whole job, as rank 0 saw it."""

    model_name: str
    world_size: int
    batch_size: int
    mode: str  # what ran: eager, ge (compiled), or aclgraph where a graph was captured
    dtype: str
    generations: list[Generation]
    ranks: list[RankMemory]
    seconds_load: float
    seconds_warm_up: float  # compiling and capturing, before the first batch; 0 in eager mode
    seconds_generate: float  # all batches
    timed: bool = True  # False on the host NPU, whose times mean nothing and are shown nowhere
    sampling: Sampling = Sampling()

    @property
    def new_tokens(self) -> int:
        return sum(len(g.token_ids) for g in self.generations)

    @property
    def seconds_first(self) -> float:
        """Median time to the first token."""
        return statistics.median(g.seconds_first for g in self.generations)

    @property
    def seconds_per_token(self) -> float:
        """Median time per output token after the first; 0 where there was none."""
        found = [g.seconds_per_token for g in self.generations if g.seconds_per_token]
        return statistics.median(found) if found else 0.0

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all sequences over the time of all batches, prefill included."""
        return self.new_tokens / self.seconds_generate

    @property
    def drafted(self) -> int:
        """Drafts that decode steps verified, over all sequences; 0 without an MTP layer."""
        return sum(len(g.accepted) for g in self.generations)

    @property
    def accepted(self) -> int:
        return sum(sum(g.accepted) for g in self.generations)

    @property
    def tokens_per_step(self) -> float:
        """New tokens that a decode step gave a sequence, its first one left out, which prefill
        gives; 0 where no step verified a draft."""
        if not self.drafted:
            return 0.0
        return sum(len(g.token_ids) - 1 for g in self.generations) / self.drafted

    def to_dict(self) -> dict[str, Any]:
        names: tuple[str, ...] = (
            "new_tokens",
            "seconds_first",
            "seconds_per_token",
            "tokens_per_second",
        )
        names += ("drafted", "accepted", "tokens_per_step") if self.drafted else ()
        values = asdict(self) | {name: getattr(self, name) for name in names}
        return values if self.timed else _without_times(values)

    def summary(self) -> str:
        """A few lines for a terminal."""
        from tabulate import tabulate

        prompt = sum(g.prompt_tokens for g in self.generations)
        batch = tr("batch {batch}").format(batch=self.batch_size)
        tokens = tr("{prompt} prompt tokens, {new} new; {times}")
        lines = [
            headline(self.model_name, self.world_size, batch, self.mode, self.dtype, self.sampling),
            tokens.format(prompt=prompt, new=self.new_tokens, times=self._times()),
            *([self._drafts()] if self.drafted else []),
            tabulate(
                [(r.rank, r.host, r.process, r.device, *_mib(r)) for r in self.ranks],
                (
                    "rank",
                    "host",
                    tr("process"),
                    tr("device"),
                    tr("weights, MiB"),
                    "KV cache",
                    tr("peak process"),
                    tr("peak device"),
                ),
                disable_numparse=True,
                stralign="right",
            ),
        ]
        return "\n".join(lines)

    def _drafts(self) -> str:
        said = tr(
            "drafts (MTP): {accepted} of {drafted} accepted ({share:.0%}), {rate:.2f} tokens a decode step"
        )
        return said.format(
            accepted=self.accepted,
            drafted=self.drafted,
            share=self.accepted / self.drafted,
            rate=self.tokens_per_step,
        )

    def _times(self) -> str:
        if not self.timed:
            return tr("the device is a stand-in, and its times are not shown")
        pace, compiled = tr("no further token"), ""
        if self.seconds_per_token:
            pace = tr("{ms:.2f} ms per output token").format(ms=self.seconds_per_token * 1e3)
        if self.seconds_warm_up:
            compiled = tr(", compiled in {seconds:.1f} s").format(seconds=self.seconds_warm_up)
        said = tr(
            "first token after {first:.1f} ms; {pace}; {rate:.1f} tokens/s; loaded in {load:.1f} s{compiled}"
        )
        return said.format(
            first=self.seconds_first * 1e3,
            pace=pace,
            rate=self.tokens_per_second,
            load=self.seconds_load,
            compiled=compiled,
        )


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if "second" not in k}
    return [_without_times(v) for v in value] if isinstance(value, (list, tuple)) else value


def _mib(r: RankMemory) -> Sequence[str]:
    return [f"{n / 2**20:.2f}" for n in (r.parameters, r.cache, r.peak_process)] + [
        f"{r.peak_device / 2**20:.2f}" if r.peak_device else "–"
    ]
