"""The slot of 08_aclgraph: a decode step that is recorded once and replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...count.tape import Tape, replayed
from ...engine.loading import with_plan
from ...messages import N_, tr
from ...model.decoder import DeepseekV3
from ...plan import PortPlan
from ..written import load_function
from . import Function, Slot, Wrong, changed

STUB = '''
def replayed(step, capture):
    """step(ids [B, S], pad [B], cache, first) -> logits [B, 1, V], eager. capture(f, ids) -> tape:
    computes f(copy of ids) once, recorded. tape.inputs[0] is that copy, tape.run() launches all of
    it again, tape.output is where the logits land. -> run_step(ids, pad, cache, first)"""
    ...
'''

SOLUTION = STUB.replace(
    "    ...\n",
    """\
    tapes = {}

    def run_step(ids, pad, cache, first):
        if cache is None or first:
            return step(ids, pad, cache, first)           # a prompt: every length is another shape
        if id(cache) not in tapes:                        # other buffers, other addresses
            tapes[id(cache)] = capture(lambda x: step(x, pad, cache, first), ids)
        else:
            tapes[id(cache)].inputs[0].copy_(ids)
            tapes[id(cache)].run()
        return tapes[id(cache)].output.clone()            # the next replay writes there

    return run_step
""",
)
COPY = "tapes[id(cache)].inputs[0].copy_(ids)"

# a prompt (True) or a cached step, of the first or the second cache
CALLS = (("a", True), ("a", False), ("a", False), ("b", True), ("b", False), ("b", False)) + (
    ("a", False),
) * 2
ROWS, WIDTH, PROMPT = 2, 7, 5


@dataclass(eq=False)
class Seen:
    """A cache of the toy; hashable, as a cache is."""

    seen: Tensor


@dataclass
class Outcome:
    """What eight calls gave: values when they came back, values of the same tensors at the end, how
    often something was recorded, and whether a tape's input is another tensor than at the capture."""

    came: list[Tensor]
    kept: list[Tensor]
    recorded: int
    rebound: bool

    def same(self, other: Outcome) -> bool:
        if (self.recorded, self.rebound) != (other.recorded, other.rebound):
            return False
        pairs = zip([*self.came, *self.kept], [*other.came, *other.kept], strict=True)
        return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


def outcome_of(function: Function) -> Outcome:
    """On a step over a vocabulary of 7, whose logits depend on the ids, on what its cache has seen, and
    on pad."""
    generator = torch.Generator().manual_seed(8)
    table = torch.randn(WIDTH, WIDTH, generator=generator)
    tapes: list[tuple[Tape, Tensor]] = []

    def step(ids: Tensor, pad: Tensor, cache: Any, first: bool) -> Tensor:
        cache.seen.mul_(0.5).add_(table[ids].sum(1) + pad.unsqueeze(1))
        return (cache.seen * 2 - cache.seen.mean(-1, keepdim=True)).unsqueeze(1)

    def capture(f: Function, *inputs: Tensor) -> Tape:
        tape = Tape.capture(f, *inputs)
        tapes.append((tape, tape.inputs[0]))
        return tape

    run_step = function(step, capture)
    if not callable(run_step):
        raise TypeError(f"replayed returned a {type(run_step).__name__}, not a function run_step")
    caches = {n: Seen(torch.zeros(ROWS, WIDTH)) for n in "ab"}
    pad = torch.tensor([0, 1])
    kept, came = [], []
    for name, first in CALLS:
        ids = torch.randint(0, WIDTH, (ROWS, PROMPT if first else 1), generator=generator)
        with torch.no_grad():
            kept.append(run_step(ids, pad, caches[name], first))
        if not isinstance(kept[-1], Tensor):
            raise TypeError(f"run_step returned a {type(kept[-1]).__name__}, not logits [B, 1, V]")
        came.append(kept[-1].clone())
    rebound = any(tape.inputs[0] is not place for tape, place in tapes)
    return Outcome(came, [k.clone() for k in kept], len(tapes), rebound)


def toy(function: Function, slot: Slot) -> str | None:
    got, want = outcome_of(function), outcome_of(load_function(slot.solution, slot.name))
    if got.same(want):
        return None
    for name, wrong in slot.wrong.items():
        try:
            if got.same(outcome_of(load_function(wrong.source, slot.name))):
                return name
        except Exception:  # this answer raises, the one that is judged did not
            continue
    for k, (name, first) in enumerate(CALLS):
        x, y = got.came[k], want.came[k]
        what = tr("prompt") if first else tr("cached step")
        if x.shape != y.shape:
            said = tr("the {what} of cache {name} gave {got}, [B, 1, V] is {due}")
            return said.format(what=what, name=name, got=[*x.shape], due=[*y.shape])
        if not torch.equal(x, y):
            said = tr("call {k} of {n}, a {what} of cache {name}, is the first that differs")
            return said.format(k=k + 1, n=len(CALLS), what=what, name=name)
    if got.recorded == 0:
        return tr("nothing was recorded: every step ran eagerly, and no launch was saved")
    if got.recorded < want.recorded:
        said = tr("{n} recordings for {caches} caches, and yet the right numbers")
        return said.format(n=got.recorded, caches=want.recorded)
    if got.recorded == want.recorded:
        return tr(
            "the numbers were right when they came back; a later step changed tensors that you gave out"
        )
    return None  # more recordings than are needed: the model's count tells


def attach(twin: DeepseekV3, function: Function) -> None:
    recorded = twin.__dict__.setdefault("recorded", [])

    def capture(f: Function, *inputs: Tensor) -> Tape:
        recorded.append(Tape.capture(f, *inputs))
        return recorded[-1]

    twin.run_step = function(twin.forward_step, capture)


def finish(twin: DeepseekV3) -> None:
    attach(twin, replayed)


STEPS = 5


def count(twin: DeepseekV3) -> Mapping[str, int]:
    """Recordings in a prompt and STEPS cached steps; of the finished code, one."""
    if "recorded" not in twin.__dict__:  # the finished code, which nobody attached
        twin = with_plan(twin, twin.plan)
        finish(twin)
    recorded = twin.__dict__["recorded"]
    before, ids = len(recorded), torch.arange(3, 3 + 8 + STEPS, device=twin.device).unsqueeze(0)
    cache = twin.new_cache(1, 8 + STEPS)
    for part in ids.split([8] + [1] * STEPS, dim=1):
        twin(part, cache=cache)
    return {N_("recordings in five cached steps"): len(recorded) - before}


SLOTS = (
    Slot(
        id="08.replayed",
        notebook="08_aclgraph",
        title="Record a step once, replay it",
        minutes=25,
        difficulty=3,
        stub=STUB,
        solution=SOLUTION,
        finished="count.tape:replayed",
        hints=(
            "Three questions for every call: is it a prompt? has this cache a recording yet? if so, what "
            "of this step is new, and where does the recording look for it?",
            "ids is [B, S] in a prompt and [B, 1] in a cached step: a recording fits one shape. It also "
            "fits one cache, whose buffers' addresses it holds: keep a dict id(cache) -> tape. "
            "tape.inputs[0] is [B, 1], tape.output [B, 1, V].",
            "For a cache with a recording: tape.inputs[0].copy_(ids), tape.run(), and "
            "tape.output.clone() as the result.",
        ),
        wrong={
            "ids not copied": Wrong(
                changed(SOLUTION, (f"            {COPY}\n", "")),
                "The second replayed step already goes wrong: which ids did it read? A recording reads its "
                "own copy, at an address; nothing put the new ids there.",
            ),
            "another tensor in the list": Wrong(
                changed(SOLUTION, (COPY, "tapes[id(cache)].inputs[0] = ids")),
                "You changed the list, not the mailbox: the recorded operators hold the address of the old "
                "tensor. Write into it.",
            ),
            "one tape for all caches": Wrong(
                SOLUTION.replace("id(cache)", "0"),
                "Second text, first cache: a recording holds the addresses of the cache that it was made "
                "with, and writes there.",
            ),
            "output not cloned": Wrong(
                changed(SOLUTION, (".output.clone()", ".output")),
                "Right when they come back, yet the logits of all steps are one tensor: each replay writes "
                "there again. Hand out a clone.",
            ),
            "prompt recorded too": Wrong(
                changed(SOLUTION, ("cache is None or first", "cache is None")),
                "Which shape does a recording fit? You recorded the prompt, [B, S], and replayed it for "
                "a step of one token.",
            ),
            "run after the capture": Wrong(
                changed(
                    SOLUTION,
                    ("        else:\n            " + COPY, "        if True:\n            " + COPY),
                ),
                "The first cached step ran twice, and its row stands in the cache twice: this capture has "
                "computed already.",
            ),
            "recorded at each step": Wrong(
                changed(SOLUTION, ("if id(cache) not in tapes:", "if True:")),
                "Right, and nothing is saved: every step is recorded anew, which costs more than running "
                "it.",
                seen_by="count",
            ),
        },
        accepted={
            "one dict of pairs": STUB.replace(
                "    ...\n",
                """\
    known = {}
    def run_step(ids, pad, cache, first):
        if first or cache is None:
            return step(ids, pad, cache, first)
        if cache in known:
            tape = known[cache]
            tape.inputs[0][:] = ids
            return torch.clone(tape.run())
        known[cache] = capture(lambda x: step(x, pad, cache, False), ids)
        return known[cache].output.clone()
    return run_step
""",
            ),
            "replay": changed(
                SOLUTION,
                (
                    f"            {COPY}\n            tapes[id(cache)].run()\n",
                    "            tapes[id(cache)].replay(ids)\n",
                ),
            ),
        },
        plan=PortPlan.full(),
        needs={"cache": "fixed"},
        toy=toy,
        attach=attach,
        moment="for the model's run_step",
        finish=finish,
        count=count,
    ),
)
