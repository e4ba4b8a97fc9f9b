"""Whose blocks are whose while texts are generated."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dsv3_port import PortError, PortPlan, generate, load_model, load_tokenizer
from dsv3_port.count.blocks import block_log
from dsv3_port.model.paged_cache import Paging

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
PROMPTS = ("Once upon a time Mira lived near the river.", "7 plus 5 is", "Once")


def test_the_log_is_what_the_allocator_did():
    """Every block has one owner at most, a row holds its tokens rounded up to blocks, one that has
    ended nothing; and the texts are those of a run without a log."""
    model, tokenizer = load_model(TINY, PortPlan.upto("9"), "cpu", "float32"), load_tokenizer(TINY)
    model.paging = Paging(16, poison=math.nan)
    want = [g.token_ids for g in generate(model, tokenizer, PROMPTS, 24)]
    log = block_log(model, tokenizer, PROMPTS, 24)
    assert [g.token_ids for g in log.texts] == want
    assert model.run_step == model.forward_step  # nothing is left on the model
    assert len(log.owned) == max(map(len, want)) - 1 and log.fixed == 3 * (11 + 24)
    for step, (owned, filled) in enumerate(zip(log.owned, log.filled, strict=True)):
        held = [block for row in owned for block in row]
        assert len(set(held)) == len(held) and set(held) <= set(range(1, log.blocks + 1))
        for g, blocks, n in zip(log.texts, owned, filled, strict=True):
            going = step < len(g.token_ids) - 1 or len(g.token_ids) == 24
            assert n == (g.prompt_tokens + 1 + step) * going
            assert len(blocks) == -(-n // 16)
    assert log.held[-1] - log.used[-1] < 16 * 2  # "7 plus 5 is" has ended


def test_a_cache_without_blocks_is_refused():
    model = load_model(TINY, PortPlan.full(), "cpu", "float32")
    with pytest.raises(PortError, match="cache 'fixed' has no blocks"):
        block_log(model, load_tokenizer(TINY), PROMPTS, 4)
