"""RowCache: rows begin and end on their own, blocks balance whatever the order, and a row's logits are
those of its sequence alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from dsv3_port import PortPlan
from dsv3_port.errors import PortError
from dsv3_port.model.decoder import DeepseekV3
from dsv3_port.model.paged_cache import NOBODY, Paging
from dsv3_port.model.row_cache import RowCache
from tests.random_models import CONFIG, random_model

PAGED = PortPlan.production()
NAN = Paging(16, poison=math.nan)


def rows_of(model: DeepseekV3, batch: int, length: int) -> RowCache:
    cache = model.new_cache(batch, length, RowCache)
    assert isinstance(cache, RowCache)
    return cache


@pytest.fixture(scope="module")
def model() -> DeepseekV3:
    made = random_model(PAGED)
    made.paging = NAN
    return made


def text(length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, CONFIG.vocab_size, (1, length), generator=generator)


def alone(model: DeepseekV3, ids: Tensor, prompt: int) -> Tensor:
    """Logits after the prompt and after each later token [1, steps, V]."""
    cache = model.new_cache(1, ids.shape[1])
    found = [model(ids[:, :prompt], cache=cache)[:, -1:]]
    found += [model(ids[:, at : at + 1], cache=cache) for at in range(prompt, ids.shape[1])]
    return torch.cat(found, 1)


class Rows(RuleBasedStateMachine):
    """Any sequence of operations, with a plain account of it beside: positions and limit by row."""

    def __init__(self) -> None:
        super().__init__()
        paging = Paging(16, blocks=7, poison=math.nan)
        self.cache = RowCache(1, [(1, 2), (1, 4)], 3, 64, "cpu", torch.float32, paging)
        self.account: dict[int, tuple[int, int]] = {}  # row: (length, limit)

    def promised(self) -> int:
        return sum(-(-limit // 16) for _, limit in self.account.values())

    @rule(row=st.integers(0, 2), prompt=st.integers(1, 66), more=st.integers(0, 40))
    def begin(self, row: int, prompt: int, more: int) -> None:
        limit = prompt + more
        can = row not in self.account and limit <= 64 and self.promised() + -(-limit // 16) <= 7
        before = (self.cache.in_use, list(self.cache.free))
        if not can:
            with pytest.raises(PortError):
                self.cache.begin(row, limit)
            assert before == (self.cache.in_use, self.cache.free), "nothing is taken"
            return
        one = self.cache.begin(row, limit)
        one.require_capacity(prompt)
        one.expect(prompt)
        assert one.kv_lengths == [prompt] and one.step(torch.arange(prompt)[None], True)
        one.slot.add_(prompt)  # as the model's step does
        one.advance(prompt)
        self.account[row] = (prompt, limit)

    @rule(row=st.integers(0, 2))
    def end(self, row: int) -> None:
        self.cache.end(row)
        self.account.pop(row, None)

    @precondition(lambda self: self.account)
    @rule()
    def step(self) -> None:
        full = [row for row, (length, limit) in self.account.items() if length == limit]
        if full:
            with pytest.raises(PortError, match=f"row {min(full)} of the cache was begun for"):
                self.cache.require_capacity(1)
            return
        self.cache.require_capacity(1)
        self.cache.expect(1)
        self.cache.slot.add_(1)
        self.cache.advance(1)
        self.account = {row: (n + 1, limit) for row, (n, limit) in self.account.items()}

    @precondition(lambda self: self.account)
    @rule(data=st.data())
    def cut(self, data: Any) -> None:
        """A row gives its last positions back, as refused drafts do."""
        row = data.draw(st.sampled_from(sorted(self.account)))
        length, limit = self.account[row]
        keep = data.draw(st.integers(1, length))
        if data.draw(st.booleans()):
            self.cache.rows[row].rewind(keep)
        else:
            self.cache.retract([length - keep if r == row else 0 for r in range(3)])
        self.account[row] = (keep, limit)

    @rule()
    def reset(self) -> None:
        self.cache.reset()
        self.account.clear()

    @invariant()
    def every_block_is_free_or_one_row_s(self) -> None:
        held = [block for own in self.cache.owned for block in own]
        assert sorted(held + self.cache.free) == list(range(1, 8))
        for row, own in enumerate(self.cache.owned):
            length, _ = self.account.get(row, (0, 0))
            assert len(own) == -(-length // 16), row
            assert self.cache.table[row].tolist() == own + [NOBODY] * (4 - len(own))

    @invariant()
    def what_is_promised_is_there(self) -> None:
        assert self.cache.available == 7 - self.promised() >= 0
        missing = self.promised() - self.cache.in_use
        assert len(self.cache.free) >= missing

    @invariant()
    def positions_are_the_rows_own(self) -> None:
        for row in range(3):
            length, _ = self.account.get(row, (0, 0))
            assert self.cache.lengths[row] == length
            assert self.cache.running[row] == (row in self.account)
            position = int(self.cache.slot[row] - self.cache.pad[row])
            assert position == length if row in self.account else position < -(1 << 30)

    @invariant()
    def the_block_of_zeros_is_zero(self) -> None:
        assert not any(bool(buffer[NOBODY].any()) for buffer in self.cache.buffers[0])


TestRows = Rows.TestCase
TestRows.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)


def test_rows_are_their_sequences_alone(model) -> None:
    """Three rows that begin at different times, over block boundaries, chunked and not; the middle one
    ends early and its row takes another text. Catches lengths or positions that rows share."""
    cache = rows_of(model, 3, 48)
    # (row, first step, prompt, tokens in all, chunk); the last one takes the first one's row
    plan = [(1, 0, 15, 21, 0), (0, 2, 33, 44, 16), (2, 3, 1, 18, 0), (1, 9, 16, 30, 5)]
    texts = [text(total, n) for n, (*_, total, _) in enumerate(plan)]
    got: list[list[Tensor]] = [[] for _ in plan]
    in_row: dict[int, int] = {}
    for step in range(24):
        for row, n in list(in_row.items()):
            if cache.lengths[row] == texts[n].shape[1]:
                cache.end(row)
                del in_row[row]
        for n, (row, first, prompt, total, chunk) in enumerate(plan):
            if step == first:
                one = cache.begin(row, total)
                got[n].append(model.prefill(texts[n][:, :prompt], None, one, chunk)[:, -1:])
                in_row[row] = n
        ids = torch.zeros(3, 1, dtype=torch.int64)
        for row, n in in_row.items():
            ids[row] = texts[n][0, cache.lengths[row]]
        logits = model(ids, cache=cache)
        for row, n in in_row.items():
            got[n].append(logits[row][None])
    assert not in_row and cache.in_use == 0
    worst = 0.0
    for n, (_, _, prompt, total, _) in enumerate(plan):
        want, found = alone(model, texts[n], prompt), torch.cat(got[n], 1)
        assert found.shape == want.shape == (1, total - prompt + 1, CONFIG.vocab_size)
        worst = max(worst, float((found - want).abs().max() / want.abs().max()))
    print(f"worst difference {worst:.1e}")
    assert worst <= 1e-5


@pytest.mark.parametrize("on_device", [False, True])
def test_idle_rows_are_finite_and_write_nothing(model, on_device, monkeypatch) -> None:
    """Among NaN in every block that is not in use: catches a slot that is not -1, and a row that counts
    on while it is idle."""
    monkeypatch.setattr(model, "device_lengths", on_device)
    cache = rows_of(model, 2, 32)
    one = cache.begin(1, 32)
    for buffers in cache.buffers:
        for buffer in buffers:
            buffer[1:] = math.nan
    model(text(14, 0), cache=one)
    before = [b.clone() for b in cache.buffers[0]]
    logits = [model(torch.full((2, 1), 5), cache=cache) for _ in range(18)]
    assert all(bool(x.isfinite().all()) for x in logits)
    own = cache.owned[1]
    for old, new in zip(before, cache.buffers[0], strict=True):
        others = [b for b in range(cache.blocks + 1) if b not in own]
        assert torch.equal(old[others].nan_to_num(7.0), new[others].nan_to_num(7.0))
        assert bool(new[own].isfinite().sum() >= 32)
    assert cache.kv_lengths == [0, 32] and cache.lengths == [0, 32]
    for later in logits[1:]:  # whatever position it would be at, if it counted on
        torch.testing.assert_close(later[0], logits[0][0], rtol=1e-5, atol=1e-5)


def test_a_sequence_prefilled_elsewhere_is_adopted(model) -> None:
    ids = text(24, 3)
    want = alone(model, ids, 19)
    one = model.new_cache(1, 20)
    mask = torch.ones(1, 20, dtype=torch.int64)
    mask[0, 0] = 0
    padded = torch.cat((torch.zeros(1, 1, dtype=torch.int64), ids[:, :19]), 1)
    model(padded, mask, one)
    cache = rows_of(model, 2, 25)
    cache.begin(1, 25)
    cache.adopt(one, 1)
    for at in range(19, 24):
        step = torch.cat((torch.zeros_like(ids[:, :1]), ids[:, at : at + 1]))
        got = model(step, cache=cache)[1]
        torch.testing.assert_close(got, want[0, at - 18][None], rtol=1e-4, atol=1e-4)


def test_random_rows_for_timing(model) -> None:
    cache = rows_of(model, 2, 40)
    cache.fill_random(33)
    assert cache.lengths == [33, 33] and cache.in_use == 6
    model(torch.ones(2, 1, dtype=torch.int64), cache=cache)
    assert cache.kv_lengths == [34, 34]


def test_bad_input_is_named(model) -> None:
    cache = rows_of(model, 2, 40)
    cache.begin(0, 33)
    for row, limit, words in (
        (0, 8, "row 0 of the cache runs a sequence: end it first"),
        (1, 41, "41 positions in row 1: each row of the cache holds 1 to 40"),
        (1, 0, "0 positions in row 1"),
    ):
        with pytest.raises(PortError, match=words):
            cache.begin(row, limit)
    with pytest.raises(PortError, match="rewind to 3: each row .* has a length of its own"):
        cache.rewind(3)
    short = RowCache(1, [(1, 2), (1, 4)], 2, 40, "cpu", torch.float32, Paging(16, blocks=4))
    short.begin(0, 33)
    with pytest.raises(PortError, match="1 of the cache's 4 blocks are not promised.*may take 2"):
        short.begin(1, 17)
