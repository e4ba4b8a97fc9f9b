"""A record's signature says who made it, and that nothing was changed since."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from dsv3_port import PortError
from dsv3_port.bench import signature
from dsv3_port.bench.record import load_all
from dsv3_port.cli import main

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no ssh-keygen")
RECORDED = Path(__file__).parents[2] / "data" / "recorded"


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
        )
        public = (folder / f"{name}.pub").read_text()
        (folder / f"{name}.signers").write_text(f"{name}@example.org {public}")
    return folder


@pytest.fixture
def record(tmp_path) -> Path:
    name = next(iter(load_all(RECORDED)))
    return Path(shutil.copy(RECORDED / name, tmp_path / name))


def test_signed_and_checked(record, keys, capsys):
    assert signature.sign(record, keys / "mine") == Path(f"{record}.sig")
    assert signature.signer_of(record, keys / "mine.signers") == "mine@example.org"
    assert main(["record", "--check", str(record), "--signers", str(keys / "mine.signers")]) == 0
    assert "signed by mine@example.org" in capsys.readouterr().out
    assert main(["record", "--check", str(record)]) == 0
    assert "who made it is not known" in capsys.readouterr().out


def test_of_somebody_else_changed_or_made_for_another_thing(record, keys):
    with pytest.raises(PortError, match="has no signature"):
        signature.signer_of(record, keys / "mine.signers")
    signature.sign(record, keys / "mine")
    with pytest.raises(PortError, match="of nobody in .*other.signers"):
        signature.signer_of(record, keys / "other.signers")
    record.write_text(record.read_text() + "\n")
    with pytest.raises(PortError, match="or the file was changed"):
        signature.signer_of(record, keys / "mine.signers")
    Path(f"{record}.sig").unlink()
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", str(keys / "mine"), str(record)],
        check=True,
    )
    with pytest.raises(PortError, match="of nobody"):
        signature.signer_of(record, keys / "mine.signers")


def test_bad_words(record, keys, tmp_path, capsys, monkeypatch):
    for key in ("nowhere", record):
        with pytest.raises(PortError, match="cannot be (read|signed)"):
            signature.sign(record, tmp_path / key)
    assert main(["record", "--signers", str(keys / "mine.signers")]) == 2
    record.write_text(json.dumps({"records": []}))
    assert main(["record", "--check", str(record)]) == 2
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PortError, match="ssh-keygen is not here"):
        signature.sign(record, keys / "mine")
    assert capsys.readouterr().err.count("\n") == 2
