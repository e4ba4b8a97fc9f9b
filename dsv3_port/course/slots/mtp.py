"""The slot of 13_mtp: which drafts are accepted, and which token is the newest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...check.gate import LENGTHS, gate_batch
from ...count.speculation import speculation
from ...count.syncs import host_syncs
from ...messages import N_, tr
from ...model.decoder import DeepseekV3
from ...model.paged_cache import Paging
from ...plan import PortPlan
from ..toys import Toy
from ..trial import PROMPTS, tokens_of
from . import Function, Slot, Wrong, changed

STUB = '''
def accept(logits, drafted):
    """logits [B, 2, V] behind the last token and behind its draft; drafted [B] int64 -> [B, 3]
    int64: the token behind the last one; the newest token, which the next step computes; 1 where
    the draft is accepted, else 0"""
    ...
'''

BEST = "first, second = logits.argmax(-1).unbind(1)"
SAME, NEWEST = "first == drafted", "torch.where(accepted, second, first)"
RETURN = "(first, newest, accepted.long())"
SOLUTION = STUB.replace(
    "    ...\n",
    f"""\
    {BEST}    # behind the last token; behind the draft
    accepted = {SAME}
    newest = {NEWEST}
    return torch.stack({RETURN}, 1)
""",
)
TOKENS = 24


def body(text: str) -> str:
    """Another way to write the function."""
    return STUB.replace("    ...\n", text)


def inputs(generator: torch.Generator, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Drafts of five kinds: right; what the second logits choose; right once more; any other token; the
    second likeliest. No row's two choices are the same token."""
    b, v = sizes["B"], sizes["V"]
    logits = torch.randn(b, 2, v, generator=generator)
    token = torch.randperm(v, generator=generator)
    first, second, (other, likely) = token[:b], token[b : 2 * b], token[2 * b : 2 * b + 2]
    rows = torch.arange(b)
    logits[rows, 0, first], logits[rows, 1, second] = 9.0, 9.0
    drafted = torch.stack((first[0], second[1], first[2], other, likely))
    logits[4, 0, likely] = 8.0
    return {"logits": logits, "drafted": drafted}


def attach(twin: DeepseekV3, function: Function) -> None:
    """In small blocks, which pairs cross; without poison, so that a wrong function has a text to look
    at."""
    twin.accept = function
    twin.paging = Paging(16)


def other_token(finished: DeepseekV3, judged: DeepseekV3) -> str:
    """The first greedy token that differs, as a sentence; only the loop that makes text calls the
    function."""
    right, yours = tokens_of(finished), tokens_of(judged)
    for prompt, a, b in zip(PROMPTS, right or (), yours or (), strict=False):
        if a != b:
            pairs = enumerate(zip(a, b, strict=False))
            at = next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
            return tr("Token {at} after {prompt!r} is another one").format(at=at, prompt=prompt)
    return ""


def count(twin: DeepseekV3) -> dict[str, int]:
    """Decode steps of the gate's prompts as one batch, each row's own; reads of one call."""
    ids, _ = gate_batch(twin.config.vocab_size)
    prompts = [row[-n:].tolist() for row, n in zip(ids[:, : max(LENGTHS)], LENGTHS, strict=True)]
    steps = sum(found.steps for found in speculation(twin, prompts, TOKENS))
    logits = torch.zeros(2, 2, 5, device=twin.device)
    drafted = torch.tensor([0, 3], device=twin.device)
    asked = host_syncs(lambda: twin.accept(logits, drafted))
    return {
        N_("decode steps of three texts"): steps,
        N_("reads on the host in a step"): sum(asked.values()),
    }


SLOTS = (
    Slot(
        id="13.accept",
        notebook="13_mtp",
        title="Which drafts are accepted",
        minutes=15,
        difficulty=2,
        stub=STUB,
        solution=SOLUTION,
        finished="model.mtp:accept",
        hints=(
            "Each row of logits says what the model itself puts behind one of the two tokens. The first "
            "one's choice is sure. When is the second one's worth anything?",
            "logits.argmax(-1) is [B, 2]: the model's choice behind the last token, and behind the draft. "
            "drafted is [B]; compared with the first column it gives accepted [B]. The newest token is [B] "
            "too. Stack the three along dim 1: [B, 3], int64.",
            "The newest token is torch.where(accepted, second, first).",
        ),
        wrong={
            "never verified": Wrong(
                changed(
                    SOLUTION,
                    (SAME, "torch.ones_like(drafted, dtype=torch.bool)"),
                    (RETURN, "(drafted, newest, accepted.long())"),
                ),
                "Every draft is believed, so the MTP layer writes the text, and the model only comments. "
                "What does the model choose behind the last token?",
            ),
            "the second row always believed": Wrong(
                changed(SOLUTION, (NEWEST, "second")),
                "The second row was computed behind the draft. Where the draft is refused, it continues a "
                "text that nobody reads.",
            ),
            "the draft in any case": Wrong(
                changed(SOLUTION, (RETURN, "(drafted, newest, accepted.long())")),
                "Where the draft is refused, you emit it all the same. The token behind the last one is the "
                "model's choice in any case.",
            ),
            "the newest is the first": Wrong(
                changed(SOLUTION, (NEWEST, "first")),
                "An accepted draft stands in the cache already, and your next step computes it once more. "
                "Which token is not computed yet?",
            ),
            "compared with the second row": Wrong(
                changed(SOLUTION, (SAME, "second == drafted")),
                "The draft is a guess at what follows the last token. Which of the two rows of logits says "
                "what follows that one?",
                "toy",
            ),
            "likely is enough": Wrong(
                changed(
                    SOLUTION,
                    (SAME, "(logits[:, 0].topk(2).indices == drafted.unsqueeze(1)).any(1)"),
                    (RETURN, "(torch.where(accepted, drafted, first), newest, accepted.long())"),
                ),
                "You accept the second likeliest token as well: more drafts pass, and the text is no longer "
                "the one that the model chooses.",
            ),
            "all rows or none": Wrong(
                changed(SOLUTION, (SAME, "(first == drafted).all().expand_as(drafted)")),
                "Right, and the batch waits for its unluckiest row: one refused draft refuses all of them. "
                "Each row has a length of its own.",
                "count",
            ),
            "nothing accepted": Wrong(
                changed(SOLUTION, (SAME, "torch.zeros_like(drafted, dtype=torch.bool)")),
                "Right, and every step computes two positions for one token: you refuse drafts that the "
                "model would have chosen.",
                "count",
            ),
            "read on the host": Wrong(
                body(
                    "    rows = []\n"
                    "    for (first, second), draft in zip(logits.argmax(-1).tolist(), drafted.tolist()):\n"
                    "        same = int(first == draft)\n"
                    "        rows.append([first, second if same else first, same])\n"
                    "    return torch.tensor(rows, device=logits.device)\n"
                ),
                "Right, and the host waits for the device before the MTP layer can begin. The step reads its "
                "tokens once, at its end.",
                "count",
            ),
        },
        accepted={
            "gathered": body(
                "    best = logits.argmax(-1)\n"
                "    accepted = (best[:, 0] == drafted).long()\n"
                "    newest = best.gather(1, accepted.unsqueeze(1)).squeeze(1)\n"
                "    return torch.stack((best[:, 0], newest, accepted), dim=1)\n"
            ),
            "by arithmetic": body(
                "    best = logits.max(-1).indices\n"
                "    right = best[:, :1].eq(drafted[:, None]).to(best.dtype)\n"
                "    return torch.cat((best[:, :1], best[:, :1] + right * (best[:, 1:] - best[:, :1]), right), 1)\n"
            ),
            "a row at a time": body(
                "    rows = []\n"
                "    for two, draft in zip(logits, drafted):\n"
                "        best = two.argmax(-1)\n"
                "        same = (best[0] == draft).long()\n"
                "        rows.append(torch.stack((best[0], best[0] + same * (best[1] - best[0]), same)))\n"
                "    return torch.stack(rows)\n"
            ),
        },
        plan=PortPlan.upto("mtp"),
        needs={"mtp": True},
        toy=Toy({"B": 5, "V": 13}, inputs, ("B", "3"), exact=True),
        attach=attach,
        moment="while the texts were made",
        use=other_token,
        looked="; the same greedy tokens of three prompts as with the finished code",
        count=count,
    ),
)
