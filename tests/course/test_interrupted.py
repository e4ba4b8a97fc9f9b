"""A split killed half-way leaves journals and no rank; what cannot be killed half-way is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3_port import DeepseekV3Config, PortError
from dsv3_port.course.interrupted import killed_split
from dsv3_port.weights.sharding import is_sharded, shard_checkpoint
from dsv3_port.weights.synthetic import synthetic_checkpoint


def test_what_a_kill_leaves_can_be_gone_on_with(tmp_path):
    source = synthetic_checkpoint(DeepseekV3Config.preset("small"), cache_dir=tmp_path)
    left = killed_split(source, tmp_path / "out", 2)
    assert left == [".shard", "rank-00000-of-00002.partial", "rank-00001-of-00002.partial"]
    assert is_sharded(tmp_path / "out")
    report = shard_checkpoint(source, tmp_path / "out", 2, verify=True)
    assert 0 < report.tensors_resumed < report.tensors_read and report.complete


def test_a_split_that_does_not_begin(tmp_path):
    with pytest.raises(PortError, match="ended before it could be killed: .*config.json"):
        killed_split(Path(tmp_path / "nothing"), tmp_path / "out", 2)
