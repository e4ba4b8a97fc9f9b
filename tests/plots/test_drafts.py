"""The pictures of 13 say what they draw."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.colors import to_rgb

from dsv3_port.bench.drafts import ONE, PAIR, WHOLE
from dsv3_port.bench.records import Results
from dsv3_port.engine.generate import Generation
from dsv3_port.errors import PortError
from dsv3_port.plots.colours import BLUE, GREY, LIGHT, ORANGE, SKY
from dsv3_port.plots.drafts import DRAFTS, WORDS, accepted_steps, draft_costs, draft_steps
from tests.bench.test_measure import record


def filled(ax: Any, colour: str) -> int:
    return sum(p.get_facecolor()[:3] == to_rgb(colour) for p in ax.patches)


def test_the_steps_give_the_same_words():
    fig = draft_steps()
    plain, ahead = fig.axes
    said = [[t.get_text()[2:] for t in ax.texts if "→" in t.get_text()] for ax in fig.axes]
    assert all(" ".join(words).split() == [*WORDS[1:]] for words in said)
    assert len(said[0]) == len(WORDS) - 1 and len(said[1]) == len(DRAFTS)
    assert filled(plain, SKY) == len(said[0]) and filled(plain, ORANGE) == 0
    refused = [p for p in ahead.patches if p.get_hatch()]
    assert filled(ahead, SKY) == 3 and filled(ahead, ORANGE) == 2 and len(refused) == 1
    first = [p for p in ahead.patches if p.get_facecolor()[:3] == to_rgb(SKY)]
    assert refused[0].get_x() == first[2].get_x(), "the next step writes over the refused draft"
    assert filled(ahead, LIGHT) == sum(p.get_x() for p in first)
    assert "the draft 'a', which is refused" in fig.alt_text and fig.narrow is not None
    assert fig.narrow().png().startswith(b"\x89PNG")


def text(prompt: str, accepted: Sequence[int]) -> Generation:
    new = 1 + sum(accepted) + len(accepted)
    return Generation(prompt, "", list(range(new)), 1, 0.0, 0.0, list(accepted))


TEXTS = [text("one", [1, 0, 1, 1]), text("two", [0, 0, 1])]


def test_every_step_is_a_square():
    fig = accepted_steps(TEXTS)
    (ax,) = fig.axes
    assert filled(ax, BLUE) == 4 and sum(p.get_hatch() == "//" for p in ax.patches) == 3
    assert [line.get_xdata()[0] for line in ax.lines] == [7, 4]
    assert ax.get_title(loc="left") == "1.57 tokens a step"
    assert "one: 7 tokens in 4 steps, 3 drafts accepted" in fig.alt_text
    assert fig.narrow().png().startswith(b"\x89PNG")
    with pytest.raises(PortError, match="without drafts"):
        accepted_steps([text("one", [])])


def work(verify: int, draft: int) -> dict[str, Any]:
    parts = {"decode": 100, "verify": verify, "draft": draft}
    return {name: SimpleNamespace(nbytes=n) for name, n in parts.items()}


def times(**fields: Any) -> Results:
    noise, found = random.Random(0), []
    for name, cost in ((ONE, 1.0), (PAIR, 1.25), (WHOLE, 1.5)):
        samples, again = (
            [1e-3 * cost * noise.uniform(0.999, 1.001) for _ in range(7)] for _ in range(2)
        )
        found.append(
            record(
                name, samples, phase="step", run="r", again=again if name == ONE else [], **fields
            )
        )
    return Results(found)


def test_costs_are_ratios_of_the_run():
    fig = draft_costs(times(), {1: work(150, 5), 8: work(170, 4)}, TEXTS)
    timed, counted = fig.axes
    said = [t.get_text() for ax in fig.axes for t in ax.texts]
    assert [x for x in said if x.replace(".", "").isdigit()] == ["1.25", "1.50", "1.55", "1.74"]
    widths = [p.get_width() for p in counted.patches]
    assert widths == pytest.approx([1.5, 0.05, 1.7, 0.04])
    for ax in (timed, counted):
        assert [round(line.get_xdata()[0], 2) for line in ax.lines[-2:]] == [1, 1.57]
    assert "batch 8: 1.74 times the bytes" in fig.alt_text and "1.57 tokens here" in fig.alt_text
    assert fig.narrow().png().startswith(b"\x89PNG")


def test_a_busy_machine_gets_no_number():
    fig = draft_costs(times(busy=True, busy_share=0.5), {1: work(150, 5)}, TEXTS)
    timed = fig.axes[0]
    assert {p.get_hatch() for p in timed.patches} == {".."} and filled(timed, GREY) == 2
    assert not [t for t in timed.texts if t.get_text().replace(".", "").isdigit()]
    assert "busy" in timed.get_title(loc="left") and "1.25" not in fig.alt_text
