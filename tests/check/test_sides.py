"""Comparisons across ranks, folders and dtypes; ranks that disagree with each other are told apart."""

from __future__ import annotations

import pytest
import torch

from dsv3_port import PortError, PortPlan
from dsv3_port.check.sides import Side, compare_sides
from dsv3_port.weights.sharding import shard_checkpoint
from dsv3_port.weights.write import write_checkpoint
from tests.random_models import CONFIG, random_sources

IDS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[1, :4] = 0


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sides")
    write_checkpoint(folder / "published", CONFIG, random_sources().items())
    shard_checkpoint(folder / "published", folder / "tp2", 2, dtype="fp32")
    return folder


def test_two_ranks_of_a_folder_against_transformers(published):
    a, b = (
        Side(str(published / "tp2"), PortPlan.full()),
        Side(str(published / "published"), PortPlan.full(), peer=True),
    )
    assert (a.ranks, b.ranks) == (2, 1)
    (report,) = compare_sides(a, b, IDS, MASK)
    assert report.ok and len(report.rows) == 8, str(report)


def test_a_rank_that_disagrees_with_its_neighbour_is_named(published, monkeypatch):
    """Two ranks whose routers differ, which each holds whole: the report among ranks comes first."""
    side = Side(str(published / "published"), PortPlan.full())
    stages = side.record(IDS)[0]
    other = stages | {"model.layers.1.mlp.gate": stages["model.layers.1.mlp.gate"].flip(0)}
    recorded = {side.path: [stages, other], "y": [stages]}
    monkeypatch.setattr(Side, "record", lambda self, *_: recorded[self.path])
    among, against = compare_sides(side, Side("y", side.plan), IDS, names=("x", "y"))
    assert among.names == ("x, rank 0", "x, rank 1") and against.ok
    assert among.first_divergence.stage == "model.layers.1.mlp.gate"


def test_dtypes_are_held_to_the_coarser_tolerance(published):
    folder = str(published / "published")
    exact, coarse = (Side(folder, PortPlan.full(), dtype=d) for d in ("fp32", "bf16"))
    first = compare_sides(exact, coarse, IDS)[0].rows[1]
    assert (first.stage, first.status) == ("model.layers.0", "OK") and 1e-6 < first.max_rel
    assert (
        compare_sides(exact, coarse, IDS, rtol=1e-6)[0].first_divergence.stage == "model.layers.0"
    )


def test_what_cannot_be_compared_is_refused(published):
    with pytest.raises(PortError, match="split for 2 ranks, not 4"):
        _ = Side(str(published / "tp2"), PortPlan.full(), world_size=4).ranks
    with pytest.raises(PortError, match="one rank, from a published checkpoint"):
        _ = Side(str(published / "tp2"), PortPlan.full(), peer=True).ranks
