"""A sample of the campaign, two faults a kind with a seed of its own; the whole is run by hand
(`python -m tests.faults.campaign`)."""

from __future__ import annotations

from .campaign import WRONG, campaign, outcome, table
from .inject import KINDS, Fault, infer


def test_a_sample():
    found = campaign(2 * len(KINDS), seed=20)
    assert len(found) == 2 * len(KINDS)
    assert not [f for f in found if f[2] in WRONG], table(found)


def test_the_campaign_can_fail(monkeypatch, tmp_path):
    """Another text, an acceptance and a defect are told apart from what is right."""
    from dsv3_port.cli import plan
    from dsv3_port.paths import tiny

    assert outcome(Fault("", infer(tiny())), "another text\n\n")[0] == "another text"
    assert outcome(Fault("", infer(tiny()), "refused"), "")[0] == "accepted"
    monkeypatch.setattr(plan, "run", lambda args: 1 / 0)
    monkeypatch.setattr("dsv3_port.files.user_log_path", lambda name: tmp_path)
    assert outcome(Fault("", ["plan"]), "")[0] == "not foreseen"
    monkeypatch.setattr(plan, "run", lambda args: 3)
    assert outcome(Fault("", ["plan"]), "")[0] == "odd exit"
