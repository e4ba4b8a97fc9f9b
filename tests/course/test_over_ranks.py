"""A learner's function on real ranks: sent as text, named by its line, and shown beside the whole model."""

from __future__ import annotations

import functools
import pickle
from dataclasses import replace

import pytest
import torch

from dsv3_port import PortError, PortPlan, load_model
from dsv3_port.course import over_ranks as rooms
from dsv3_port.course.over_ranks import over_ranks
from dsv3_port.course.slots.shard_weights import SOLUTION, cut_pieces, make
from dsv3_port.course.trial import twin_of
from dsv3_port.course.written import Sent, Written, load_function, place_of
from dsv3_port.course.yours import fit, read, slots
from dsv3_port.paths import tiny
from tests.random_models import random_model


@functools.cache
def base():
    return load_model(tiny(), PortPlan.full(), "cpu", "float32")


def test_a_function_travels_as_text_and_keeps_its_lines():
    """The cell's own line, where the function begins on the third."""
    mine = Written(print, "def f(x):\n    return 1 / 0\n", "<a cell>", 3)
    sent = pickle.loads(pickle.dumps(Sent(mine.placed, "f", mine.file)))
    with pytest.raises(ZeroDivisionError) as found:
        sent(1)
    place = place_of(found.value, sent.file, sent.text)
    assert (place.line, place.text) == (4, "return 1 / 0")


def test_the_whole_model_from_the_parts_of_two_ranks():
    """Every element of every matrix exactly once, bit for bit."""
    twin = make(base(), load_function(SOLUTION, "cut"))
    for (name, a), (_, b) in zip(twin.named_parameters(), base().named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert {p.dim for p in cut_pieces(twin)} == {0, 1}


@pytest.mark.parametrize("slot_id", ["01.cut", "09.arrange"])
def test_another_model_is_refused(slot_id):
    place = slots()[slot_id]
    function = load_function(place.solution, place.name)
    with pytest.raises(PortError, match=f"{slot_id} is judged on the embedded model"):
        twin_of(place, random_model(PortPlan.full()), function)


def test_what_fails_only_on_a_rank_is_told_with_its_line():
    """Right in one process, and on ranks it stops: the verdict names rank, line and error."""
    body = "    if torch.distributed.is_initialized():\n        return weight @ weight[:1, :1]\n"
    text = SOLUTION.replace("    units =", body + "    units =", 1)
    fitted = fit(read("01.cut", text, "cell.py"), base())
    assert fitted.state == "wrong" and fitted.sent is None and not fitted.timed
    said = str(fitted)
    line = text.splitlines().index("        return weight @ weight[:1, :1]") + 1
    assert f"rank 0 of 2 stopped, line {line}, `return weight @ weight[:1, :1]`" in said


def test_another_part_on_ranks_only_is_told():
    """Rank 1 takes rank 0's part where there are processes: the loader's own cut is the measure."""
    text = SOLUTION.replace(
        "    return weight", "    rank *= not torch.distributed.is_initialized()\n    return weight"
    )
    fitted = fit(read("01.cut", text, "cell.py"), base())
    assert fitted.state == "wrong"
    assert "rank 1 of 2 loads another model.embed_tokens.weight" in str(fitted)


def test_two_processes_are_the_whole_model(monkeypatch):
    """Of a right function the judge's processes are the proof's: they are started once."""
    rooms._asked.cache_clear()
    fitted = fit(read("01.cut", SOLUTION, "cell.py"), base())
    assert fitted.state == "right" and "2 real processes" in str(fitted)
    monkeypatch.setattr(rooms, "run_ranks", None)
    proof = over_ranks(fitted)
    assert proof and proof.same and proof.tokens and "with your code" in proof.summary()
    assert "with the solution" in over_ranks(replace(fitted, filled="the solution")).summary()
    assert 'role="status"' in proof._repr_html_() and "✔" in proof._repr_html_()


def test_the_proofs_processes_run_a_wrong_gather_too():
    """Two sequences' parts in one row, on real ranks as in one process."""
    fitted = fit(read("09.arrange", slots()["09.arrange"].stub, "cell.py"), base())
    proof = over_ranks(fitted, wrong=["reshape alone"])
    assert proof and "with finished code" in proof.summary()
    right, mixed = (
        r.moments["prompt"]["logits"].squeeze(1)
        for r in (proof.whole, proof.wrong["reshape alone"][0])
    )
    half = right.shape[-1] // 2
    row0 = torch.cat((right[0, :half], right[1, :half]))
    assert torch.allclose(mixed[0], row0, atol=1e-4 * float(right.abs().max()))
    twin = twin_of(
        fitted.slot, base(), rooms.Sent(fitted.slot.wrong["reshape alone"].source, "arrange", "<w>")
    )
    alone = rooms.record_gate(twin).moments["prompt"]["logits"].squeeze(1)
    assert torch.allclose(mixed, alone, atol=1e-4 * float(right.abs().max()))
