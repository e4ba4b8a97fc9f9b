"""The strict gate: is a model the same as another, everywhere that a wrong form was seen to hide?

One batch of three prompts of different lengths, padded, in a cache with spare room; looked at after
the prompt, after one cached step and after four. Every row of a real token must agree, not most of
them, and every token's experts must be the same set. A wrong absorbed attention shows in the cached
steps only, a slot that stands still after the first of them, a position that counts padding in the
short prompts, a forgotten bias in a few tokens' experts.
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.graph import eagerly, is_compiled
from ..engine.loading import with_plan
from ..messages import N_, told, tr
from ..model.decoder import DeepseekV3
from ..steps import TOLERANCE
from .compare import compare_stages
from .report import Report, Row
from .stages import EXPERTS, LOGITS, columns, feed, peer_logits, record_stages

LENGTHS = (19, 7, 13)  # tokens of the three prompts; the shorter ones are padded
CACHED = 4
MOMENTS = {
    N_("prompt"): 0,
    N_("1 cached"): 1,
    N_("4 cached"): CACHED,
}  # name -> cached steps before it
STRESS = -3.0  # added to every correction bias: scores plus bias are then negative


@dataclass(frozen=True)
class Recorded:
    """What one model computed: moment -> stage -> output on the CPU. Plain tensors, so a rank can
    send it."""

    moments: dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class GateVerdict:
    """What was looked at, and what it showed: a report for each moment. True if all agree."""

    reports: Mapping[str, Report]
    names: tuple[str, str]

    @property
    def ok(self) -> bool:
        return all(report.ok for report in self.reports.values())

    def __bool__(self) -> bool:
        return self.ok

    @property
    def first(self) -> tuple[str, Row] | None:
        """The first moment that differs, and its first stage that does."""
        for moment, report in self.reports.items():
            if report.first_divergence is not None:
                return moment, report.first_divergence
        return None

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that were compared, at every moment."""
        return tuple(row.stage for row in next(iter(self.reports.values())).rows)

    @property
    def largest(self) -> float:
        """The largest relative difference of any real row at any stage but the gates."""
        rows = [r for report in self.reports.values() for r in report.rows]
        return max((r.max_rel or 0.0 for r in rows if not r.stage.endswith(EXPERTS)), default=0.0)

    @property
    def looked_at(self) -> str:
        gates = sum(stage.endswith(EXPERTS) for stage in self.stages)
        return tr(
            "{n} stages, {gates} of them choices of experts, of {prompts} padded prompts at {moments}"
        ).format(
            n=len(self.stages),
            gates=gates,
            prompts=len(LENGTHS),
            moments=tr(", ").join(map(told, self.reports)),
        )

    def summary(self) -> str:
        if self.first is None:
            bound = next(iter(self.reports.values())).rtol
            return tr(
                "{b} equals {a} at {looked_at}: every row within {bound:.0e} (largest {largest:.1e})"
            ).format(
                a=told(self.names[0]),
                b=told(self.names[1]),
                looked_at=self.looked_at,
                bound=bound,
                largest=self.largest,
            )
        moment, row = self.first
        off = tr("{share:.1e} of the largest value")
        return tr(
            "{b} parts from {a} at {moment}, stage {stage}: {what} (looked at {looked_at})"
        ).format(
            a=told(self.names[0]),
            b=told(self.names[1]),
            moment=told(moment),
            stage=row.stage,
            what=row.detail or off.format(share=row.max_rel),
            looked_at=self.looked_at,
        )

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        ink, mark = ("#009E73", "✔") if self.ok else ("#D55E00", "✘")
        return (
            f'<div role="status" style="border-left:4px solid {ink};padding:4px 10px"><b style="color:'
            f'{ink}">{mark}</b> {html.escape(self.summary())}</div>'
        )


def gate_batch(vocab_size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """ids [3, S] and mask [3, S] of the gate: prompts of LENGTHS, left-padded, then CACHED tokens."""
    longest = max(LENGTHS)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab_size, (len(LENGTHS), longest + CACHED), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(LENGTHS):
        mask[row, : longest - length] = 0
    return ids, mask


def record_gate(model: Any, seed: int = 0, room: int | None = None) -> Recorded:
    """Run the gate's batch through a model; on a rank, the stages that all ranks share.

    A model whose step was compiled or replaced runs twice: as it is, for its logits, and operator
    by operator, for its stages. Of a transformers model one pass over all tokens is taken apart.
    """
    ids, mask = gate_batch(model.config.vocab_size, seed)
    if not isinstance(model, DeepseekV3):
        return _record_peer(model, ids, mask)
    replaced = is_compiled(model)
    kept: list[Tensor] = []  # uncopied, as a caller keeps them: a reused output tensor shows
    moments: dict[str, dict[str, Tensor]] = {}
    names = {at: name for name, at in MOMENTS.items()}
    if replaced:
        kept = [call() for call in feed(model, ids, mask, CACHED, room)]
    with eagerly(model):
        for at, call in enumerate(feed(model, ids, mask, CACHED, room)):
            logits, seen = record_stages(model, call)
            if not replaced:
                kept.append(logits)
            if at in names:
                moments[names[at]] = seen
    for name, at in MOMENTS.items():
        moments[name][LOGITS] = kept[at][:, -1:].float().cpu()
    return Recorded(moments)


def _record_peer(model: Any, ids: Tensor, mask: Tensor) -> Recorded:
    logits, seen = record_stages(model, lambda: peer_logits(model, ids, mask))
    prompt = ids.shape[1] - CACHED
    moments = {}
    for name, at in MOMENTS.items():
        start, stop = (0, prompt) if not at else (prompt + at - 1, prompt + at)
        moments[name] = {
            stage: columns(value, tuple(ids.shape), start, stop) for stage, value in seen.items()
        } | {LOGITS: logits[:, stop - 1 : stop].float().cpu()}
    return Recorded(moments)


def compare_recorded(
    reference: Recorded,
    candidate: Recorded,
    rtol: float = TOLERANCE["float32"],
    names: tuple[str, str] = ("reference", "candidate"),
) -> GateVerdict:
    """The verdict on two recordings of `record_gate` with the same seed, made wherever."""
    prompt = (len(LENGTHS), max(LENGTHS))
    _, mask = gate_batch(4)
    reports = {}
    for moment, at in MOMENTS.items():
        shape = (len(LENGTHS), 1) if at else prompt
        left, right = reference.moments[moment], candidate.moments[moment]
        reports[moment] = compare_stages(
            left, right, None if at else mask[:, : prompt[1]], shape, rtol, names
        )
    return GateVerdict(reports, names)


def strict_gate(
    reference: Any,
    candidate: Any,
    *,
    stress: bool = False,
    seed: int = 0,
    room: int | None = None,
    names: tuple[str, str] = ("reference", "candidate"),
) -> GateVerdict:
    """Is `candidate` the same as `reference`: every real row of every stage and of the logits
    within float32's TOLERANCE, and the same experts, after the prompt and one and four cached
    steps?

    Both are float32 models of ours or of transformers, with the same weights. stress: with STRESS
    added to every correction bias, where a group mask of 0.0 and one of -inf choose differently;
    for a model that was compiled or captured make `stressed` twins first. room: the cache's
    length, at least the default.
    """
    with contextlib.ExitStack() as both:
        if stress:
            for model in dict.fromkeys((reference, candidate)):
                both.enter_context(_shifted_biases(model, STRESS))
        return compare_recorded(
            record_gate(reference, seed, room), record_gate(candidate, seed, room), names=names
        )


def stressed(model: DeepseekV3, shift: float = STRESS) -> DeepseekV3:
    """A twin with `shift` added to every correction bias; it shares all other weights. Functions
    that were attached to `model` must be attached to it again."""
    twin = with_plan(model, model.plan)
    for gate, bias in _biases(twin):
        gate.e_score_correction_bias = nn.Parameter(bias + shift, requires_grad=False)
    return twin


def _biases(model: nn.Module) -> list[tuple[nn.Module, Tensor]]:
    """Each gate, ours or transformers', and its bias."""
    named = [(m, getattr(m, "e_score_correction_bias", None)) for m in model.modules()]
    return [(m, bias) for m, bias in named if isinstance(bias, Tensor)]


@contextlib.contextmanager
def _shifted_biases(model: nn.Module, shift: float) -> Iterator[None]:
    """Within it the biases of this model alone are other tensors: twins share the old ones."""
    old = _biases(model)
    for gate, bias in old:
        other = bias.detach() + shift
        kept = isinstance(bias, nn.Parameter)
        gate.e_score_correction_bias = nn.Parameter(other, requires_grad=False) if kept else other
    try:
        yield
    finally:
        for gate, bias in old:
            gate.e_score_correction_bias = bias
