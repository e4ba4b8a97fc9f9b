"""A function of the learner's on real ranks: two processes load the embedded model with it, and what they
compute is held against the whole model in one process.

The processes are started once for all that is asked of them, and the same question is answered from the
first time: a judge and the proof below it are one run.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

import torch

from ..check.gate import GateVerdict, Recorded, compare_recorded, record_gate
from ..check.rank_calls import own_device
from ..config import DeepseekV3Config
from ..engine.generate import generate
from ..engine.launch import run_ranks
from ..engine.loading import load_model
from ..engine.tokenizer import load_tokenizer
from ..errors import PortError
from ..messages import tr
from ..model.decoder import DeepseekV3
from ..parallel import TensorParallel
from ..paths import tiny
from ..plan import PortPlan
from .trial import PROMPTS, TOKENS
from .written import Place, Sent, place_of

if TYPE_CHECKING:
    from .yours import Fitted

WORLD = 2
PATIENCE = 60.0  # seconds that a rank waits for the other one
Hook = Literal["cut", "arrange"]


@dataclass(frozen=True)
class RankTrial:
    """What one rank computed with a function: the gate's stages, and greedy tokens after PROMPTS where
    they were asked for. place: where the function stopped. other: the first parameter that it loads
    otherwise than the loader's own cut."""

    recorded: Recorded | None = None
    tokens: list[list[int]] = field(default_factory=list)
    place: Place | None = None
    other: str = ""


def trial_of_rank(
    parallel: TensorParallel, hook: Hook, sent: Sent | None, plan: PortPlan, device: str, text: bool
) -> RankTrial:
    """In one rank; without a function the finished code runs."""
    where = own_device(parallel, device)
    place, cut = parallel, None
    if hook == "cut":
        cut = sent
    elif sent is not None:
        place = TensorParallel(parallel.rank, parallel.world_size, parallel.group, sent)
    try:
        model = load_model(tiny(), plan, where, "float32", place, cut=cut)
        other = _other(model, plan, where, parallel) if cut else ""
        tokens = []
        if text:
            made = generate(model, load_tokenizer(tiny()), PROMPTS, TOKENS)
            tokens = [g.token_ids for g in made]
        return RankTrial(record_gate(model), tokens, other=other)
    except Exception as error:  # the learner's code may raise anything
        if sent is None:
            raise
        return RankTrial(place=place_of(error, sent.file, sent.text))


def _other(model: DeepseekV3, plan: PortPlan, where: str, parallel: TensorParallel) -> str:
    right = dict(load_model(tiny(), plan, where, "float32", parallel).named_parameters())
    named = model.named_parameters()
    return next((n for n, value in named if not torch.equal(value, right[n])), "")


def trials_of_rank(
    parallel: TensorParallel, hook: Hook, sent: Sequence[Sent | None], plan: PortPlan, device: str
) -> list[RankTrial]:
    """Several functions one after the other. Text of the first only: behind a wrong gather ranks may
    end their texts at different tokens, and one would wait for the other."""
    return [
        trial_of_rank(parallel, hook, one, plan, device, text=k == 0) for k, one in enumerate(sent)
    ]


@functools.lru_cache(maxsize=4)
def _asked(
    hook: Hook, sent: tuple[Sent | None, ...], plan: PortPlan, device: str
) -> list[list[RankTrial]]:
    """Rank -> its trials."""
    return run_ranks(
        trials_of_rank, WORLD, hook, sent, plan, device, device=device, timeout_seconds=PATIENCE
    )


def only_embedded(base: DeepseekV3, slot_id: str) -> None:
    """PortError where `base` is of another model: ranks load the embedded one."""
    config = DeepseekV3Config.from_pretrained(tiny())
    if config.replace(eos_token_id=base.config.eos_token_id) != base.config:
        raise PortError(f"{slot_id} is judged on the embedded model: give fit one of lab.tiny")


def objection(hook: Hook, finished: DeepseekV3, sent: Sent) -> str | None:
    """What two real ranks with the function show, as a sentence; None if they are the whole model."""
    try:
        ranks = [trials[0] for trials in _asked(hook, (sent,), finished.plan, "cpu")]
    except PortError as error:
        return tr("two processes with your function: {error}").format(error=error)
    for rank, found in enumerate(ranks):
        if found.place is not None:
            said = tr("rank {rank} of {world} stopped, {place}")
            return said.format(rank=rank, world=WORLD, place=found.place)
        if found.other:
            said = tr("rank {rank} of {world} loads another {what} with your function")
            return said.format(rank=rank, world=WORLD, what=found.other)
    said = OverRanks.of(finished, ranks)
    return None if said else said.summary()


@dataclass(frozen=True)
class OverRanks:
    """Two processes against the whole model: the gate's verdict on rank 0, and whether both ranks hold
    the same logits and give the whole model's tokens. `wrong`: what other functions gave there, name
    -> rank 0's stages; `whole`: the whole model's."""

    verdict: GateVerdict
    same: bool
    tokens: bool
    whole: Recorded
    wrong: Mapping[str, list[Recorded]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        finished: DeepseekV3,
        ranks: Sequence[RankTrial],
        code: str = "your code",
        wrong: Mapping[str, list[Recorded]] | None = None,
    ) -> OverRanks:
        whole = record_gate(finished)
        found = [r.recorded for r in ranks if r.recorded is not None]
        names = ("one process", f"{WORLD} processes with {code}")
        texts = generate(finished, load_tokenizer(tiny()), PROMPTS, TOKENS)
        return cls(
            compare_recorded(whole, found[0], names=names),
            all(
                torch.equal(a, b)
                for moment, stages in found[0].moments.items()
                for stage, a in stages.items()
                for b in (other.moments[moment][stage] for other in found)
            ),
            all(r.tokens == [g.token_ids for g in texts] for r in ranks),
            whole,
            wrong or {},
        )

    def __bool__(self) -> bool:
        return bool(self.verdict) and self.same and self.tokens

    def summary(self) -> str:
        if not self.verdict:
            return self.verdict.summary()
        if not self.same:
            said = tr("the {n} ranks hold different logits after the same tokens")
            return said.format(n=WORLD)
        if not self.tokens:
            said = tr("all stages agree, and {n} ranks write another text than one process")
            return said.format(n=WORLD)
        return tr(
            "{proof}; all ranks bit for bit the same, and the same {n} greedy tokens after {prompts} "
            "prompts"
        ).format(proof=self.verdict.summary(), n=TOKENS, prompts=len(PROMPTS))

    __str__ = __repr__ = summary

    def _repr_html_(self) -> str:
        ink, mark = ("#009E73", "✔") if self else ("#D55E00", "✘")
        return (
            f'<div role="status" style="border-left:4px solid {ink};padding:4px 10px"><b style="color:'
            f'{ink}">{mark}</b> {html.escape(self.summary())}</div>'
        )


def over_ranks(built: Fitted, wrong: Sequence[str] = (), device: str = "cpu") -> OverRanks:
    """The embedded model in two real processes, with the learner's function for the slot 01.cut or
    09.arrange where it is right, else with the finished code. `wrong`: answers of the slot's catalogue
    that the same processes run behind it."""
    slot, hook = built.slot, cast(Hook, built.slot.name)
    more = {n: Sent(slot.wrong[n].source, slot.name, f"<{slot.id}: {n}>") for n in wrong}
    sent = (built.sent, *more.values())
    found = _asked(hook, sent, built.finished.plan, device)
    for trials in found:
        if trials[0].place is not None:
            raise PortError(f"a rank stopped, {trials[0].place}")
    others = {
        name: [t.recorded for trials in found if (t := trials[k]).recorded is not None]
        for k, name in enumerate(more, 1)
    }
    code = built.filled or "your code" if built else "finished code"
    return OverRanks.of(built.finished, [t[0] for t in found], code, others)
