"""The splitter's benchmark: its ratios are paired within a round, and every kind moves the bytes
that it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "ci" / "bench"))

import bench_shard
from bench_shard_kinds import KINDS, RANKS

from dsv3_port import DeepseekV3Config
from dsv3_port.weights import synthetic


def turns(seconds: dict[str, float], **more: int) -> dict:
    return {
        "source_bytes": 1000,
        "codes": 800,
        **more,
        **{
            kind: {"seconds": s, "bytes": 4000, "rss_anon": 100 if kind == "split" else 1000}
            for kind, s in seconds.items()
        },
    }


def test_ratios():
    disk = turns({"read": 1, "write": 3, "kernel": 1, "split": 5, "ordinary": 20})
    kernel = turns({"read": 1, "write": 1, "kernel": 15, "split": 4, "ordinary": 12})
    found = bench_shard.summary([disk, kernel, turns({"cp": 3, "split": 4})])
    (size,) = found["sizes"]
    assert size["bound_seconds"] == {"median": 3.5, "low": 3, "high": 4, "n": 2}, (
        "the slower of disk and processor"
    )
    assert (size["share_of_bound"]["low"], size["share_of_bound"]["high"]) == (0.75, 0.8)
    assert (
        found["ordinary"]["times_faster"]["low"],
        found["ordinary"]["times_faster"]["high"],
    ) == (3, 4)
    assert found["ordinary"]["share_of_memory"]["median"] == 0.1
    assert found["without_dequantising"]["share_of_cp"]["median"] == 0.75


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"kernel"}))
def test_every_kind_on_a_small_checkpoint(kind, tmp_path, monkeypatch):
    config = DeepseekV3Config.preset("small").replace(num_hidden_layers=1)
    monkeypatch.setattr(synthetic, "real_size_config", lambda experts: config)
    source = bench_shard.prepare(tmp_path, 16, True)
    size = sum(f.stat().st_size for f in source.glob("*.safetensors"))
    moved = KINDS[kind](source, tmp_path / "target")
    written = int((source / "bytes.txt").read_text())
    if kind in ("read", "cp"):
        assert moved == size
    elif kind == "split":
        assert written < moved < written + size
    else:
        assert written - RANKS < moved <= written
