"""One MLP by itself."""

from __future__ import annotations

import pytest
import torch

from dsv3_port.bench import mlp
from dsv3_port.bench.mlp import measure_mlp, mlp_pair
from dsv3_port.errors import PortError


def test_both_forms_share_their_weights_and_agree():
    split, merged = mlp_pair(24, 10)
    assert split.gate_proj.weight.data_ptr() == merged.merge_up_gate_proj.weight.data_ptr()
    x = torch.randn(3, 24)
    torch.testing.assert_close(split(x), merged(x))


def test_records():
    results = measure_mlp(24, 10, torch.bfloat16, tokens=(1, 4), rounds=1)
    assert [(r.name, r.tokens, r.phase, r.dtype) for r in results] == [
        (f"{form}, bfloat16", n, "MLP", "bfloat16") for n in (1, 4) for form in ("split", "merged")
    ]


def test_nothing_is_timed_where_the_forms_differ(monkeypatch):
    split, merged = mlp_pair(24, 10)
    merged.merge_up_gate_proj.weight.data = merged.merge_up_gate_proj.weight.data.roll(10, 0)
    monkeypatch.setattr(mlp, "mlp_pair", lambda *args: (split, merged))
    with pytest.raises(PortError, match="nothing was timed"):
        measure_mlp(24, 10, tokens=(2,), rounds=1)
