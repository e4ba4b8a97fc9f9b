"""torch_npu's HCCL process group over the stand-in: ranks in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .processes import needs_torch_npu, output

pytestmark = needs_torch_npu

RANKS = """
import dsv3_port.hostnpu as h
from dsv3_port.engine.launch import run_ranks
from dsv3_port.errors import PortError
from tests.hostnpu import ranks
h.enable()
try: print('ended:', run_ranks(ranks.everything, 2, {folder!r}, device='npu'))
except PortError as error: print(error)
print(ranks.one())
"""


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[dict[str, Any]], list[int], str]:
    """What two ranks did one after the other (starting them takes longer than most of it), the tokens
    of the model on one, and what was said of the two when the second failed at the end."""
    folder = tmp_path_factory.mktemp("ranks")
    said, one = output(RANKS.format(folder=str(folder))).splitlines()
    found = [json.loads(Path(folder, f"{rank}.json").read_text("utf-8")) for rank in range(2)]
    return found, json.loads(one), said


def test_two_ranks(ran) -> None:
    first, second = (rank["collectives"] for rank in ran[0])
    for rank, got in enumerate((first, second)):
        assert got["device"] == f"npu:{rank}" and got["backend"] == "hccl"
        assert got["all_reduce"] == [3.0, 3.0] and got["maximum"] == [2.0, 2.0]
        assert got["all_gather_last"] == [[1.0, 1.0, 2.0, 2.0]]
        assert got["all_gather"] == [[1.0, 1.0], [2.0, 2.0]]
        assert got["broadcast"] == [2.0, 2.0]
        assert got["reduce_scatter"] == [3.0 * rank] and got["int64"] == [3]
        assert got["all_to_all"] == [float(rank), 10.0 + rank]


def test_the_collectives_beyond_the_ports(ran) -> None:
    """Reduce, scatter, point to point, and all-to-all of unequal sizes."""
    first, second = (rank["others"] for rank in ran[0])
    assert second["reduce"] == [10.0, 12.0, 14.0, 16.0]
    assert first["scatter"] == [5.0, 5.0] and second["scatter"] == [6.0, 6.0]
    assert second["recv"] == [0.0, 1.0, 2.0, 3.0]
    assert first["batch"] == [10.0, 11.0, 12.0, 13.0] and second["batch"] == [0.0, 1.0, 2.0, 3.0]
    assert first["uneven"] == [0.0, 10.0, 11.0] and second["uneven"] == [1.0, 2.0, 3.0, 12.0, 13.0]
    assert first["listed"] == [[0.0, 1.0], [10.0, 11.0]]
    assert second["listed"] == [[2.0, 3.0], [12.0, 13.0]]


def test_model_over_two_ranks_equals_the_model_on_one(ran) -> None:
    """Eagerly, and as GE graphs whose HcomAllReduce and HcomAllGather move the data."""
    parts, whole = [rank["model"] for rank in ran[0]], ran[1]
    assert len(whole) == 8 and len(parts) == 2
    for part in parts:
        assert part["eager"] == part["graph"] == whole and part["graphs"] == 2
        # after the embedding, each attention and each MLP (2 layers); the logits are gathered
        assert part["collectives"] == {"HcomAllReduce": 5, "HcomAllGather": 1}


def test_a_rank_that_fails_is_named(ran) -> None:
    said = ran[2]
    assert "rank 1 of 2" in said and "the second" in said
