"""No check without a test: each statement that refuses an operator's argument is in refusals.json with
the test that makes it refuse, and it does (ci/tools/contracts.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dsv3_port import ops
from dsv3_port.ops.checks import ContractError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def contracts() -> ModuleType:
    sys.path.insert(0, str(ROOT / "ci" / "tools"))
    try:
        import contracts
    finally:
        sys.path.remove(str(ROOT / "ci" / "tools"))
    return contracts


def test_every_check_refuses_in_its_test() -> None:
    """In a process of its own: the tests are run there again."""
    done = subprocess.run(
        [sys.executable, "ci/tools/contracts.py"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_a_check_that_no_test_knows_is_found(contracts: ModuleType) -> None:
    known, data = contracts.checks(), contracts.stored()
    assert len(known) > 250 and {c.name for c in known} == set(data)
    gone = dict(data)
    del gone[known[3].name]
    assert contracts.findings(known, gone) == [f"{known[3].name}: no test makes it refuse"]
    more = data | {"ops/norm.py:check:x:1": {}}
    assert contracts.findings(known, more) == [
        "ops/norm.py:check:x:1: there is no such check any more"
    ]


def test_without_a_check_its_argument_is_taken(contracts: ModuleType) -> None:
    """What --mutate does to each: the check is gone, and back afterwards."""
    check = next(c for c in contracts.checks() if c.name == "ops/norm.py:_trailing:gamma:1")
    x, gamma = torch.ones(2, 8), torch.ones(1)
    with pytest.raises(ContractError, match="gamma is"):
        ops.npu_rms_norm(x, gamma)
    with contracts.without(check):
        assert ops.npu_rms_norm(x, gamma)[0].shape == (2, 8)
    with pytest.raises(ContractError, match="gamma is"):
        ops.npu_rms_norm(x, gamma)
