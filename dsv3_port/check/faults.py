"""Five faulty models, a warm-up, a decoy and three spares, to be hunted with the tools of this room.

`symptom(k)` says what a user saw, `model(k)` is the ill twin, `accuse(k, layer=, part=, why=)` takes
words of closed lists and answers a wrong one with the next tool to try, `prove(k, repair)` judges a
repair by the strict gate and by counts. `seen(k)` tries every tool.
"""

from __future__ import annotations

import dataclasses
import functools
import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..count.syncs import host_syncs
from ..engine.generate import generate
from ..engine.loading import load_model, with_plan
from ..engine.tokenizer import encode, load_tokenizer, pad_left
from ..errors import PortError
from ..messages import sentences, told, tr
from ..model.decoder import DeepseekV3
from ..paths import tiny
from ..plan import PortPlan
from ..steps import TOLERANCE
from .compare import compare_models
from .equivalence import difference, run
from .fault_cases import DECOY, HUNT, LAYERS, PARTS, WHYS, Case
from .fault_spares import SPARES
from .gate import gate_batch, strict_gate
from .stages import EXPERTS, feed

PROMPTS = (  # three lengths
    "7 plus 5 is",
    "Once upon a time Mira lived near the river.",
    "Wei had 4 apples. Lena gave Wei 3 more, so now he had",
)
TOKENS = 24
CASES: dict[int, Case] = HUNT | SPARES


@dataclass(frozen=True)
class Said:
    """A sentence. ok is None where nothing was answered yet."""

    ok: bool | None
    text: str
    head: str = ""  # in place of mark and word

    def __bool__(self) -> bool:
        return bool(self.ok)

    @property
    def _mark(self) -> tuple[str, str, str]:
        return {
            True: ("✔", tr("holds"), "#009E73"),
            False: ("✘", tr("does not hold"), "#D55E00"),
            None: ("…", tr("open"), "#767676"),
        }[self.ok]

    def __str__(self) -> str:
        mark, word, _ = self._mark
        head = self.head or f"{mark} {word}"
        return f"{head}: {self.text}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        mark, word, ink = self._mark
        head = html.escape(self.head or f"{mark} {word}")
        return (
            f'<div role="status" style="border-left:4px solid {ink};padding:4px 10px;margin:.4em 0"><b '
            f'style="color:{ink}">{head}:</b> {html.escape(self.text)}</div>'
        )


@functools.cache
def right_model() -> DeepseekV3:
    """The embedded model, fully ported, in float32 on the CPU."""
    return load_model(tiny(), PortPlan.full(), "cpu", "float32")


def case(k: int) -> Case:
    if k not in CASES:
        raise PortError(f"there is no faulty model {k!r}; there are {', '.join(map(str, CASES))}")
    return CASES[k]


def symptom(k: int) -> Said:
    """What was seen of model k: 0 is the warm-up, 1 to 6 the hunt, 7 to 9 spares."""
    return Said(None, told(case(k).symptom), tr("Model {k}").format(k=k))


def model(k: int, right: DeepseekV3 | None = None) -> DeepseekV3:
    """Model k: a twin of `right` (default: the embedded model), whose weights it shares but where
    they are at fault."""
    right = right or right_model()
    twin = with_plan(right, right.plan)
    case(k).spoil(twin)
    return twin


def accuse(
    k: int, *, layer: int | str | None = None, part: str | None = None, why: str | None = None
) -> Said:
    """Is that what ails model k? layer, part and why are words of LAYERS, PARTS and WHYS.

    The first that is wrong gets the next tool to try; an open one gets none, as choosing the first
    tool is part of the answer. PortError for a word that is in none of the lists.
    """
    truth = case(k)
    given = {"layer": layer, "part": part, "why": why}
    for name, word, known in zip(given, given.values(), (LAYERS, PARTS, WHYS), strict=True):
        if word is not None and word not in known:
            raise PortError(
                f"{name}={word!r} is no word of the list; it can be {', '.join(map(repr, known))}"
            )
    if k == DECOY and why == "padding counted":
        return Said(False, told(truth.confirmed[0]))
    sure = [n for n, word in given.items() if word is not None and word == getattr(truth, n)]
    may = tr("The {words} may stand.")
    head = may.format(words=tr(" and the ").join(map(told, sure))) if sure else ""
    for name, word in given.items():
        if word is not None and name not in sure:
            to_try = tr("Next, the {word}: {advice}")
            advice = to_try.format(word=told(name), advice=told(truth.tools[name]))
            return Said(False, sentences(head, advice))
    if missing := [name for name, word in given.items() if word is None]:
        open_ones = tr("Not accused yet: {words}.").format(words=", ".join(map(told, missing)))
        return Said(None, sentences(head, open_ones))
    return Said(True, told(truth.confirmed[-1]))


@functools.lru_cache(maxsize=1)
def _written(right: DeepseekV3) -> list[list[int]]:
    """What the right model writes, asked for each other model."""
    return _tokens(right)


def _tokens(model: DeepseekV3) -> list[list[int]]:
    return [g.token_ids for g in generate(model, load_tokenizer(tiny()), PROMPTS, TOKENS)]


def batch(right: DeepseekV3 | None = None) -> tuple[Tensor, Tensor]:
    """ids, mask [3, S]: PROMPTS with what the right model writes, left-padded, on its device."""
    right = right or right_model()
    tokenizer = load_tokenizer(tiny())
    prompts = encode(tokenizer, PROMPTS)
    rows = [a + b for a, b in zip(prompts, _written(right), strict=True)]
    return pad_left(rows, tokenizer.pad_token_id or 0, device=right.device)


def reads(model: DeepseekV3) -> int:
    """Values that the host reads in one cached step of a padded batch."""
    ids, mask = gate_batch(model.config.vocab_size)
    prompt, step = feed(model, ids[:, :-3], mask[:, :-3], 1)
    prompt()
    return sum(host_syncs(step).values())


def seen(k: int, right: DeepseekV3 | None = None) -> dict[str, bool]:
    """Tool -> does it see that model k is ill. Tools that feed one prompt feed the longest."""
    right = right or right_model()
    ill = model(k, right)
    ids, mask = batch(right)
    one = ids[mask.sum(1).argmax() :][:1]

    def differs(ids: Tensor, mask: Tensor | None, cached: int = 0) -> bool:
        return not compare_models(right, ill, ids, mask, cached=cached).ok

    def median() -> float:
        return difference(*(dataclasses.replace(run(m, one), exact=False) for m in (right, ill)))

    gates = compare_models(right, ill, ids, mask).rows
    return {
        "greedy text": _tokens(ill) != _written(right),
        "median of logits": median() > TOLERANCE["float32"],
        "one prompt": differs(one, None),
        "one prompt, 1 cached": differs(one, None, 1),
        "one prompt, 4 cached": differs(one, None, 4),
        "padded prompts": differs(ids, mask),
        "padded, 1 cached": differs(ids, mask, 1),
        "padded, 4 cached": differs(ids, mask, 4),
        "sets of experts": any(r.status != "OK" for r in gates if r.stage.endswith(EXPERTS)),
        "strict gate": not strict_gate(right, ill),
        "host reads": reads(ill) > reads(right),
    }


def prove(
    k: int, repair: Callable[[DeepseekV3], Any] | None, right: DeepseekV3 | None = None
) -> Said:
    """Run repair(model) on a fresh model k, which it changes in place, and judge that model: the
    strict gate, then the host's reads. Raises nothing for whatever the repair does."""
    case(k)  # an unknown one is refused before anything is asked
    right = right or right_model()
    if repair is None or repair is ...:
        return Said(None, tr("Write repair(model): it changes the model in place."))
    ill = model(k, right)
    try:
        repair(ill)
        verdict, more = strict_gate(right, ill, names=("right", "yours")), reads(ill) - reads(right)
    except Exception as error:  # the learner's code may raise anything
        said = str(error).splitlines() or [""]
        raised = tr("Your repair raised {error}")
        return Said(False, raised.format(error=f"{type(error).__name__}: {said[0]}"))
    if not verdict:
        return Said(False, verdict.summary())
    if more > 0:
        still = tr(
            "All numbers agree, and the host still reads {n} values more in each cached step."
        )
        return Said(False, still.format(n=more))
    if k == DECOY:
        return Said(True, sentences(tr("There was nothing to repair."), verdict.summary()))
    healed = tr("{proof}; the host reads no more than it should.")
    return Said(True, healed.format(proof=verdict.summary()))
