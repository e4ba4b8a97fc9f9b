"""The word that a measurement allows, and the sentences made of it."""

from __future__ import annotations

import dataclasses

import pytest

from dsv3_port.bench.outcome import BUSY, FASTER, NEITHER, SLOWER, outcome, say
from dsv3_port.bench.records import Results
from dsv3_port.errors import PortError
from dsv3_port.messages import using
from tests.bench.test_measure import record


def run_of(ratio, again=1.0, tier="cuda", **fields) -> Results:
    """A base of 1 s and a variant whose paired ratios are `ratio` (a number or one a round)."""
    fields["tier"] = tier
    ratios = ratio if isinstance(ratio, list) else [ratio] * 4
    twice = again if isinstance(again, list) else [again] * 4
    base = record("a", [1.0] * 4, again=[1 / x for x in twice], **fields)
    return Results([base, record("b", [1 / x for x in ratios], **fields)])


@pytest.mark.parametrize(
    ("results", "word"),
    [
        (run_of(1.5), FASTER),
        (run_of(1.019), NEITHER),  # 2 % at least
        (run_of(0.5), SLOWER),
        (run_of(1.06, again=[0.92, 1.0, 1.08, 1.0]), FASTER),
        (run_of(1.03, again=[0.88, 1.0, 1.12, 1.0]), NEITHER),
        (run_of([0.9, 1.2, 1.2, 1.2]), FASTER),  # the nearer quartile is 1.125
        (run_of([0.9, 0.9, 1.2, 1.2]), NEITHER),
        (run_of(1 / 1.019), NEITHER),
        (run_of(3.0, busy=True, busy_share=0.4), BUSY),
        (run_of(1.1, tier="cpu"), NEITHER),  # two starts of a process differ by as much there
        (run_of(1 / 1.1, tier="cpu"), NEITHER),
        (run_of(1.2, tier="cpu"), FASTER),
        (
            run_of(1.2, again=[0.75, 0.75, 1.25, 1.25], tier="cpu"),
            NEITHER,
        ),  # its own floor is wider
    ],
)
def test_a_word_needs_median_and_nearer_quartile_beyond_the_floor(results, word):
    found = outcome(results, "a", "b")
    assert found.word == word and found.before == "a"


def test_a_notebook_asks_for_the_verdict_not_for_its_words():
    with using("zh"):
        fast, slow = say(run_of(1.5)), say(run_of([0.5, 2.0, 0.5, 0.5]))
        busy = say(run_of(3.0, busy=True, busy_share=0.4))
        assert str(fast) == "b 对比 a：快 1.50× [1.50–1.50]"
        assert "不作判断：机器忙：40% 被其他程序占用" in str(busy)
    assert (fast.faster, fast.busy) == (True, False) and not slow.faster
    assert (busy.faster, busy.busy) == (False, True)


def test_a_pair_without_the_twice_timed_variant_gives_the_reason_of_its_run():
    results = run_of(3.0, again=1.3, busy=True, busy_share=0.01)
    results.records.append(dataclasses.replace(results.records[1], name="c"))
    for pair in (("a", "b"), ("b", "c")):
        assert outcome(results, *pair).busy == "busy: the same code twice differs by 30%"


def test_sentences_come_from_the_run_and_name_its_floor():
    results = Results(
        [
            record("upstream", [1.0] * 4, again=[1.0] * 4, phase="decode"),
            record("gmm_routing", [0.5] * 4, phase="decode"),
            record("upstream", [1.0] * 4, again=[1.0] * 4, phase="prefill"),
            record("gmm_routing", [1 / 1.01] * 4, phase="prefill"),
        ]
    )
    prefill, decode = str(say(results)).splitlines()
    assert decode == (
        "decode: 3 Grouped matmul (GMM) routing against upstream: 2.00× faster [2.00–2.00]"
    )
    assert "no difference that this run can show" in prefill and "counts from 15% on" in prefill
    assert say(results)._repr_markdown_().startswith("- prefill: ")
    busy = Results([dataclasses.replace(r, busy=True, busy_share=0.5) for r in results])
    assert "×" not in str(say(busy)) and "no verdict, busy: 50% used by others" in str(say(busy))
    assert say(busy).busy and not say(busy).faster
    busy.records.append(dataclasses.replace(busy.records[1], name="full"))
    decode = str(say(busy)).splitlines()[-1]  # one line for two
    assert decode == "decode: 2 against upstream: no verdict, busy: 50% used by others"
    assert "| busy |" in busy.table() and "×" not in busy.table()
    with pytest.raises(PortError, match="measure first"):
        say(Results())
    with pytest.raises(PortError, match="nothing was measured beside"):
        say(Results([record("a")]))
