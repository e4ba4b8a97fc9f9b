"""Part II, slots: every request equals itself alone, whatever else runs, in any order of arrival, in
any number of slots. `test_the_mutations` holds wrong schedulers and shows that they are caught."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3_port import PortPlan, load_model, load_tokenizer
from dsv3_port.count.batching import in_batches, in_slots
from dsv3_port.engine import continuous
from dsv3_port.engine.continuous import (
    ContinuousBatch,
    Request,
    Result,
    in_order,
    run_requests,
    when_all_idle,
)
from dsv3_port.engine.graph import compile_steps
from dsv3_port.engine.sampler import Sampler, Sampling
from dsv3_port.engine.tokenizer import encode
from dsv3_port.errors import PortError
from dsv3_port.model import row_cache
from dsv3_port.model.decoder import DeepseekV3
from dsv3_port.model.paged_cache import NOBODY, PagedCache, Paging
from dsv3_port.model.row_cache import RowCache
from tests.oracle import hf_model
from tests.random_models import CONFIG, SHORT, random_model

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
PAGED = PortPlan.upto("paged_cache")
STOP = {3, 17, 40}
DRAWN = Sampling(temperature=0.8, top_k=20)


@pytest.fixture(scope="module")
def model() -> DeepseekV3:
    made = random_model(PAGED)
    made.paging = Paging(16, poison=math.nan)
    return made


@pytest.fixture(scope="module")
def fixed() -> DeepseekV3:
    return random_model(PortPlan.full())


def requests_of(seed: int, count: int = 8) -> list[Request]:
    """Prompts of 1 to 40 tokens, many at a block's boundary, and 1 to 24 new tokens."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        length = rng.choice((1, 2, 15, 16, 17, 31, 32, 33, rng.randint(1, 40)))
        ids = tuple(rng.randrange(3, CONFIG.vocab_size) for _ in range(length))
        made.append(Request(ids, rng.choice((1, 2, 8, 17, rng.randint(1, 24))), seed=100 + number))
    return made


@functools.cache
def alone(fixed: DeepseekV3, request: Request, sampling: Sampling, ends: bool = True) -> list[int]:
    """The fixed cache's text of one request, by a loop that knows no slots. ends: at a token of STOP."""
    stop = STOP if ends else ()
    sample = Sampler(sampling, [request.seed], str)
    cache = fixed.new_cache(1, len(request.ids) + request.max_new_tokens)
    found: list[int] = []
    ids = torch.tensor([request.ids])
    while len(found) < request.max_new_tokens and not (found and found[-1] in stop):
        found += sample(fixed(ids, cache=cache)[:, -1]).tolist()
        ids = torch.tensor([found[-1:]])
    return found


def longest(requests: Sequence[Request]) -> int:
    return max(r.positions for r in requests)


def served(
    model: DeepseekV3, requests: Sequence[Request], slots: int, **options: Any
) -> tuple[list[Result], ContinuousBatch]:
    batch = ContinuousBatch(model, slots, longest(requests), STOP, **options)
    return run_requests(batch, requests), batch


def require_balanced(batch: ContinuousBatch) -> None:
    cache = batch.cache
    assert cache.in_use == 0 and sorted(cache.free) == list(range(1, cache.blocks + 1))
    assert cache.available == cache.blocks and not any(cache.running)
    assert not cache.table.any()
    for buffers in cache.buffers:
        assert not any(bool(b[NOBODY].any()) for b in buffers), "something wrote the block of zeros"


def require_alone(
    model: DeepseekV3,
    fixed: DeepseekV3,
    requests: Sequence[Request],
    slots: int,
    sampling: Sampling | None = None,
    **options: Any,
) -> ContinuousBatch:
    sampling = sampling or Sampling()
    results, batch = served(model, requests, slots, sampling=sampling, **options)
    assert [r.number for r in results] == list(range(len(requests)))
    for request, result in zip(requests, results, strict=True):
        want = alone(fixed, request, sampling)
        assert result.token_ids == want, result.number
        assert result.ended_by == ("eos" if want[-1] in STOP else "length")
    require_balanced(batch)
    return batch


# ---- the oracle ----------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 5])
def test_each_request_is_itself_alone(model, fixed, slots) -> None:
    """Six arrival orders each, chunks or none, blocks for all or for two requests."""
    for seed in range(6):
        rng = random.Random(10 * slots + seed)
        requests = requests_of(seed)
        rng.shuffle(requests)
        blocks = rng.choice((None, 2 * -(-longest(requests) // 16)))
        model.paging = Paging(16, blocks, poison=math.nan)
        try:
            chunk = rng.choice((0, 5, 16))
            batch = require_alone(model, fixed, requests, slots, prefill_chunk=chunk)
        finally:
            model.paging = Paging(16, poison=math.nan)
        assert max(batch.occupancy) <= slots


@pytest.mark.parametrize("form", ["absorbed", "plain"])
def test_other_forms_of_prefill(fixed, form) -> None:
    model = random_model(PAGED.replace(prefill_attention=form))
    model.paging = Paging(32, poison=math.nan)
    require_alone(model, fixed, requests_of(7), 3, prefill_chunk=7)


def test_every_order_of_four_requests(model, fixed) -> None:
    """24 orders in two slots; one prompt ends a block, one begins one, one ends with its first token."""
    requests = [*requests_of(2, 3), Request((5, 9, 11), 1)]
    want = {r: alone(fixed, r, Sampling()) for r in requests}
    for order in itertools.permutations(requests):
        results, batch = served(model, order, 2)
        assert [r.token_ids for r in results] == [want[r] for r in order]
        require_balanced(batch)


@pytest.mark.parametrize("slots", [1, 3, 5])
def test_drawn_tokens_do_not_depend_on_the_order(model, fixed, slots) -> None:
    for seed in range(3):
        requests = requests_of(seed)
        random.Random(slots).shuffle(requests)
        require_alone(model, fixed, requests, slots, sampling=DRAWN)


def test_text_of_transformers() -> None:
    """The embedded model's prompts, eight tokens past a block's boundary; in two orders."""
    tokenizer, hf = load_tokenizer(TINY), hf_model(TINY)
    model = load_model(TINY, PAGED, "cpu", "float32")
    model.paging = Paging(16, poison=math.nan)
    rows = encode(tokenizer, ["Once upon a time", "7 plus 5 is", "In his bag was a silver bell."])
    stop = set(model.config.eos_token_ids)
    want = []
    for ids in rows:
        out: list[int] = []
        while len(out) < 24 and not (out and out[-1] in stop):
            with torch.no_grad():
                logits = hf(torch.tensor([ids + out]), use_cache=False).logits
            out.append(int(logits[0, -1].argmax()))
        want.append(out)
    for order in ((0, 1, 2), (2, 0, 1)):
        batch = ContinuousBatch(model, 2, 64, stop)
        results = run_requests(batch, [Request(tuple(rows[n]), 24) for n in order])
        assert [r.token_ids for r in results] == [want[n] for n in order]


def test_one_graph_by_inductor() -> None:
    """Made before the first request, and none after it, whatever is admitted and ends."""
    torch._dynamo.reset()
    fixed = random_model(PortPlan.full(), SHORT)
    model = compile_steps(random_model(PAGED, SHORT), "ge")
    model.paging = Paging(16, poison=math.nan)
    requests = requests_of(4)
    batch = ContinuousBatch(model, 3, longest(requests), STOP)
    batch.warm_up()
    assert batch.captures == 1
    results = run_requests(batch, requests)
    assert [r.token_ids for r in results] == [alone(fixed, r, Sampling()) for r in requests]
    assert batch.captures == 1
    require_balanced(batch)


# ---- the schedule --------------------------------------------------------------------------------


def test_a_slot_that_is_done_is_taken_at_once(model) -> None:
    requests = [Request((5, 6, 7), n) for n in (9, 3, 4, 1, 5)]
    batch = ContinuousBatch(model, 2, 12)  # no token ends a text
    results = run_requests(batch, requests)
    assert [(r.admitted, r.ended) for r in results] == [(0, 8), (0, 2), (2, 5), (5, 5), (5, 9)]
    assert tuple(batch.occupancy) == in_slots([9, 3, 4, 1, 5], 2).occupancy


def test_occupancy_is_that_of_the_count(model) -> None:
    for seed in range(5):
        requests = requests_of(seed)
        results, batch = served(model, requests, 3)
        tokens = [len(r.token_ids) for r in results]
        assert tuple(batch.occupancy) == in_slots(tokens, 3).occupancy


def test_admission_waits_for_blocks_and_overtakes_nobody(model, fixed, monkeypatch) -> None:
    """Four blocks, three slots: the second request may need all of them, and the third, which would
    fit at once, comes after it."""
    monkeypatch.setattr(model, "paging", Paging(16, blocks=4, poison=math.nan))
    requests = [Request((9,) * 16, 9), Request((8,) * 40, 24), Request((7, 5), 2)]
    batch = ContinuousBatch(model, 3, 63)
    results = run_requests(batch, requests)
    assert [r.admitted for r in results] == [0, 8, 31] and max(batch.occupancy) == 1
    assert [r.token_ids for r in results] == [alone(fixed, r, Sampling(), False) for r in requests]
    require_balanced(batch)


def test_progress_is_told_step_by_step(model) -> None:
    told: list[list[int]] = []
    requests = [Request((5, 6), n) for n in (1, 3, 2)]
    batch = ContinuousBatch(model, 2, 8)
    run_requests(batch, requests, lambda done: told.append([r.number for r in done]))
    assert told == [[0, 2], [1]]


def test_a_batch_serves_again(model, fixed) -> None:
    batch = ContinuousBatch(model, 2, 63, STOP)
    for seed in (0, 1):
        requests = requests_of(seed, 4)
        results = run_requests(batch, requests)
        assert [r.token_ids for r in results] == [alone(fixed, r, Sampling()) for r in requests]
    require_balanced(batch)


# ---- other rules ---------------------------------------------------------------------------------


def last_first(running: list[bool], waiting: list[int], blocks: int) -> list[tuple[int, int]]:
    """The newest request into the last idle row."""
    if all(running) or waiting[-1] > blocks:
        return []
    return [(len(running) - 1 - running[::-1].index(False), len(waiting) - 1)]


def test_a_rule_decides_who_begins_where(model, fixed, monkeypatch) -> None:
    """Any rule: the texts are those of the requests alone, the results in their order."""
    for rule in (in_order, when_all_idle, last_first):
        monkeypatch.setattr(model, "admission", rule)
        batch = require_alone(model, fixed, requests_of(3), 3)
        assert batch.admission is rule
    requests = [Request((5, 6, 7), n) for n in (9, 3, 4, 1, 5)]
    monkeypatch.setattr(model, "admission", last_first)
    results = run_requests(ContinuousBatch(model, 2, 12), requests)
    assert [r.number for r in results] == [0, 1, 2, 3, 4]
    assert [(r.admitted, r.row) for r in results] == [(4, 1), (3, 0), (0, 0), (0, 0), (0, 1)]


def test_static_batching_is_a_rule_of_the_same_loop(model, monkeypatch) -> None:
    monkeypatch.setattr(model, "admission", when_all_idle)
    for seed in range(4):
        results, batch = served(model, requests_of(seed), 3)
        tokens = [len(r.token_ids) for r in results]
        assert tuple(batch.occupancy) == in_batches(tokens, 3).occupancy


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda r, w, b: [(2, 0)], "request 0 of the 2 that wait was given row 2 of 2"),
        (lambda r, w, b: [(-1, 0)], "request 0 of the 2 that wait was given row -1 of 2"),
        (lambda r, w, b: [(0, 2)], "request 2 of the 2 that wait was given row 0 of 2"),
        (lambda r, w, b: [(0, 0), (1, 0)], "request 0 of the 2 that wait was given row 1"),
        (lambda r, w, b: [(0, 0), (0, 1)], "row 0 of the cache runs a sequence"),
        (lambda r, w, b: [], "all rows are idle, 2 requests wait, .* would wait for ever"),
    ],
)
def test_a_rule_that_cannot_be_is_told(model, rule, words, monkeypatch) -> None:
    monkeypatch.setattr(model, "admission", rule)
    with pytest.raises(PortError, match=words):
        run_requests(ContinuousBatch(model, 2, 8), [Request((5, 6), 3)] * 2)


def test_a_rule_that_promises_blocks_twice_is_told(model, monkeypatch) -> None:
    monkeypatch.setattr(model, "paging", Paging(16, blocks=2))
    monkeypatch.setattr(model, "admission", lambda r, w, b: [(0, 0), (1, 1)])
    with pytest.raises(PortError, match="0 of the cache's 2 blocks are not promised"):
        run_requests(ContinuousBatch(model, 2, 32), [Request((5,) * 20, 4)] * 2)


# ---- what bad input gets -------------------------------------------------------------------------


def test_what_can_never_run_is_refused_before_anything_does(model, monkeypatch) -> None:
    monkeypatch.setattr(model, "paging", Paging(16, blocks=2))
    batch = ContinuousBatch(model, 2, 63)
    monkeypatch.setattr(model, "run_step", None)  # anything that runs fails
    good = Request((5, 6), 3)
    for bad, words in (
        (
            Request((5,) * 40, 30),
            r"40 tokens with 30 new ones fills 69 positions \(5 blocks of 16\)",
        ),
        (
            Request((5,) * 30, 4),
            r"33 positions \(3 blocks of 16\).*a slot has 32 \(2 blocks are all",
        ),
        (Request((), 4), "0 prompt tokens and 4 new ones"),
        (Request((5,), 0), "1 prompt tokens and 0 new ones"),
    ):
        with pytest.raises(PortError, match=words):
            run_requests(batch, [good, bad])
    assert not batch.running and batch.cache.in_use == 0


def test_a_batch_that_cannot_be(model, fixed) -> None:
    with pytest.raises(PortError, match="slots need a paged cache, and this plan's is 'fixed'"):
        ContinuousBatch(fixed, 2, 8)
    with pytest.raises(PortError, match="0 slots"):
        ContinuousBatch(model, 0, 8)


def test_logits_that_are_not_finite_name_the_request() -> None:
    broken = random_model(PAGED)
    broken.model.layers[1].mlp.gate.weight[:] = math.nan
    batch = ContinuousBatch(broken, 2, 8)
    with pytest.raises(PortError, match=r"request 0: the logits after 2 tokens.*layers\.1"):
        run_requests(batch, [Request((5, 6), 3)])


def test_logits_of_idle_rows_may_be_anything(model, fixed, monkeypatch) -> None:
    """NaN where no request is: neither chosen from nor complained about, drawn or greedy."""
    step = model.forward_step

    def spoilt(ids: Any, pad: Any, cache: Any, first: bool) -> Any:
        logits = step(ids, pad, cache, first)
        if isinstance(cache, RowCache):
            logits[[not runs for runs in cache.running]] = math.nan
        return logits

    monkeypatch.setattr(model, "run_step", spoilt)
    for sampling in (Sampling(), DRAWN):
        require_alone(model, fixed, requests_of(5), 4, sampling=sampling)


# ---- wrong schedulers ----------------------------------------------------------------------------


def not_reset(right: Callable[..., Any]) -> Callable[..., Any]:
    """The next sequence goes on where the row's last one was."""

    def begin(self: RowCache, row: int, limit: int) -> PagedCache:
        one = self.rows[row]
        kept = one.slot.clone()
        began = right(self, row, limit)
        if kept < limit:
            one.slot.copy_(kept)
        return began

    return begin


def table_stays(right: Callable[..., Any]) -> Callable[..., Any]:
    """What a row's table says of its first sequence is never written anew."""

    def show(self: PagedCache) -> None:
        if not self.table.any():
            right(self)

    return show


def freed_early(right: Callable[..., Any]) -> Callable[..., Any]:
    """A row's blocks go back one step before its last."""

    def step(self: ContinuousBatch) -> list[Result]:
        for row, (request, result) in self.running.items():
            if request.max_new_tokens - len(result.token_ids) == 1:
                one = self.cache.rows[row]
                blocks = list(one.owned[0])
                one._give(0, 0)
                one.owned[0] += blocks
                del one.free[-len(blocks) :]
        return right(self)

    return step


def row_of_another(right: Callable[..., Any]) -> Callable[..., Any]:
    """Tokens are read from the row beside, which may be idle."""

    def drawn(self: Sampler, logits: Any, *rest: Any, **named: Any) -> Any:
        return right(self, logits.roll(1, 0), *rest, **named)

    return drawn


def shared_draws(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, row, seed: None


def counts_on(right: Any) -> int:
    """An idle row's padding has an end, and its position gets there."""
    return 4


def lengths_shared(right: Callable[..., Any]) -> Callable[..., Any]:
    def expect(self: RowCache, new: int) -> None:
        right(self, new)
        self.kv_lengths = [max(self.kv_lengths)] * self.batch

    return expect


def last_row_only(right: Callable[..., Any]) -> Callable[..., Any]:
    """A request that is admitted makes all rows begin anew."""

    def begin(self: RowCache, row: int, limit: int) -> PagedCache:
        one = right(self, row, limit)
        self.slot.zero_()
        return one

    return begin


MUTATIONS = {
    "a row that is not reset": (RowCache, "begin", not_reset),
    "a table row that is stale": (PagedCache, "_show", table_stays),
    "blocks freed too early": (ContinuousBatch, "step", freed_early),
    "an idle row is read": (Sampler, "drawn", row_of_another),
    "draws shared between requests": (Sampler, "begin", shared_draws),
    "an idle row counts on": (row_cache, "IDLE", counts_on),
    "lengths shared by rows": (RowCache, "expect", lengths_shared),
    "all rows begin anew": (RowCache, "begin", last_row_only),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_mutations(model, fixed, name, monkeypatch) -> None:
    place, attribute, wrong = MUTATIONS[name]
    require_alone(model, fixed, requests_of(6), 3, sampling=DRAWN)
    monkeypatch.setattr(place, attribute, wrong(getattr(place, attribute)))
    with pytest.raises((AssertionError, PortError, RuntimeError)):  # another text, or none
        require_alone(model, fixed, requests_of(6), 3, sampling=DRAWN)
        require_alone(model, fixed, requests_of(6), 3)


def test_a_rank_that_chooses_another_token_ends(model, monkeypatch) -> None:
    """Rank 0 schedules. Without processes: what the sum over ranks gives is another token."""

    class Two:
        rank, world_size = 1, 2

        def all_reduce(self, x: Any) -> Any:
            return x + 5

    batch = ContinuousBatch(model, 2, 8)
    monkeypatch.setattr(model, "parallel", Two())
    monkeypatch.setattr(continuous, "first_nonfinite", None)
    batch.running[0] = (Request((5,), 2), Result(4, 0))
    with pytest.raises(PortError, match="rank 1 chose token 8 for request 4, rank 0 chose 5"):
        batch._took({0: 8})
