"""Equal greedy text, or the first token that differs."""

from __future__ import annotations

import pytest

from dsv3_port import PortPlan, load_model, load_tokenizer
from dsv3_port.check.broken import up_before_gate
from dsv3_port.check.greedy import check_greedy
from dsv3_port.check.peer import peer_model
from dsv3_port.errors import PortError
from dsv3_port.paths import tiny

TINY = tiny()
PROMPTS = ["Once upon a time Mira lived near the river.", "7 plus 5 is"]


def test_every_form_and_transformers_say_the_same():
    upstream = load_model(TINY, PortPlan.upstream(), "cpu")
    models = {
        "port": load_model(TINY, PortPlan.full(), "cpu"),
        "upstream": upstream,
        "transformers": peer_model(upstream),
    }
    found = check_greedy(models, load_tokenizer(TINY), PROMPTS, 12)
    assert [g.prompt for g in found] == PROMPTS and all(g.token_ids for g in found)


def test_the_first_other_token_is_named():
    upstream, port = (
        load_model(TINY, PortPlan.upstream(), "cpu"),
        load_model(TINY, PortPlan.full(), "cpu"),
    )
    with (
        up_before_gate(port),
        pytest.raises(PortError, match=r"'upstream' and 'port' part at token \d+"),
    ):
        check_greedy({"upstream": upstream, "port": port}, load_tokenizer(TINY), PROMPTS, 24)
