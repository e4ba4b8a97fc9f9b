"""The splitter's benchmark: its ratios are paired within a round, and every kind moves the bytes
that it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "ci" / "bench"))

import bench_shard
from bench_shard_kinds import BYTES, BYTES8, KINDS, RANKS

from dsv3_port import DeepseekV3Config
from dsv3_port.weights import synthetic


def turns(seconds: dict[str, float], **more: int) -> dict:
    return {
        "source_bytes": 1000,
        "codes": 800,
        **more,
        **{
            kind: {"seconds": s, "bytes": 4000, "rss_anon": 100 if "split" in kind else 1000}
            for kind, s in seconds.items()
        },
    }


def test_ratios():
    eight = {"write8": 2, "kernel8": 20, "split8": 8}
    disk = turns({"read": 1, "write": 3, "kernel": 1, "split": 5, "ordinary": 20} | eight)
    kernel = turns({"read": 1, "write": 1, "kernel": 15, "split": 4, "ordinary": 12})
    found = bench_shard.summary([disk, kernel, turns({"cp": 3, "split": 4})])
    (size,) = found["sizes"]
    assert size["bound_seconds"] == {"median": 3.5, "low": 3, "high": 4, "n": 2}, (
        "the slower of disk and processor"
    )
    assert (size["share_of_bound"]["low"], size["share_of_bound"]["high"]) == (0.75, 0.8)
    (size,) = found["int8"]
    assert (size["bound_seconds"]["median"], size["share_of_bound"]["median"]) == (4, 0.5)
    assert (size["times_bf16"]["median"], size["bytes_a_second"]["median"]) == (1.6, 500)
    assert (
        found["ordinary"]["times_faster"]["low"],
        found["ordinary"]["times_faster"]["high"],
    ) == (3, 4)
    assert found["ordinary"]["share_of_memory"]["median"] == 0.1
    assert found["without_dequantising"]["share_of_cp"]["median"] == 0.75


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"kernel", "kernel8"}))
def test_every_kind_on_a_small_checkpoint(kind, tmp_path, monkeypatch):
    config = DeepseekV3Config.preset("small").replace(num_hidden_layers=1)
    monkeypatch.setattr(synthetic, "real_size_config", lambda experts: config)
    source = bench_shard.prepare(tmp_path, 16, True)
    size = sum(f.stat().st_size for f in source.glob("*.safetensors"))
    moved = KINDS[kind](source, tmp_path / "target")
    written = int((source / (BYTES8 if kind.endswith("8") else BYTES)).read_text())
    if kind in ("read", "cp"):
        assert moved == size
    elif kind.startswith("split"):
        assert written < moved < written + size
    else:
        assert written - RANKS < moved <= written


def test_the_kernels_are_what_the_splits_do(monkeypatch):
    """Small, for their turns are gigabytes."""
    import bench_shard_kinds as kinds

    seen = []
    monkeypatch.setattr(kinds, "_on_every_core", lambda make: seen.append(make) or 0)
    kinds.kernel(Path(), Path())
    kinds.kernel8(Path(), Path())
    import torch

    from dsv3_port.weights.fp8 import dequantize_blocks, quantize_blocks
    from dsv3_port.weights.int8 import quantize_rows

    codes, scale = quantize_blocks(torch.randn(130, 200))
    assert torch.equal(seen[0](codes, scale)(), dequantize_blocks(codes, scale, torch.bfloat16))
    want = quantize_rows(dequantize_blocks(codes, scale))
    assert all(torch.equal(a, b) for a, b in zip(seen[1](codes, scale)(), want, strict=True))
