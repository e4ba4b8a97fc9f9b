"""doctor --room: what it tries works here, and what does not work is a finding with a remedy."""

from __future__ import annotations

import json
import socket

import pytest

from dsv3_port.cli import main
from dsv3_port.doctor import classroom as room
from dsv3_port.doctor.findings import FAIL, OK, WARN, Check
from dsv3_port.errors import PortError


def test_text_and_kernel_work_here():
    said = room.text()
    assert (
        said.status == OK
        and said.detail.startswith("Once upon a time ")
        and said.detail.endswith(".")
    )
    assert room.kernel().status == OK


def test_a_check_that_raises_is_a_finding(monkeypatch):
    def broken():
        raise OSError("no\nsuch luck")

    def refused():
        raise PortError("data/tiny-dsv3 was not found")

    monkeypatch.setattr(
        room, "CHECKS", (("a", broken), ("b", refused), ("c", lambda: Check("c", OK, "fine")))
    )
    found = room.checks()
    assert [(c.name, c.status, c.detail) for c in found] == [
        ("a", FAIL, "OSError: no"),
        ("b", FAIL, "data/tiny-dsv3 was not found"),
        ("c", OK, "fine"),
    ]
    assert found[0].remedy and found[1].remedy


@pytest.mark.parametrize(
    ("kept", "status"), [("", WARN), ("example.org, 127.0.0.1", OK), ("*", OK)]
)
def test_a_proxy_must_leave_loopback_alone(monkeypatch, kept, status):
    values = {"https_proxy": "http://proxy:3128", "no_proxy": kept}
    monkeypatch.setattr(room, "environment", values.get)
    assert room.proxies().status == status
    monkeypatch.setattr(room, "environment", {}.get)
    assert room.proxies().status == OK


def test_a_port_in_use_is_told():
    with socket.socket() as holder:
        try:
            holder.bind(("127.0.0.1", 8888))
            holder.listen()
        except OSError:  # another server of this machine has it: as good
            pass
        assert room.ports().status == WARN


def test_the_command_adds_the_room_to_the_doctor(monkeypatch, capsys):
    monkeypatch.setattr(
        room, "CHECKS", (("room", lambda: Check("room", FAIL, "too small", "a larger one")),)
    )
    assert main(["doctor", "--room", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[-1] == {
        "name": "room",
        "status": FAIL,
        "detail": "too small",
        "remedy": "a larger one",
    }
