"""The signatures that the package relies on, against those of the installed torch_npu."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dsv3_port import ops
from dsv3_port.hostnpu import operators

TABLE: dict[str, str] = json.loads(
    (Path(__file__).parents[2] / "ops" / "schemas.json").read_text(encoding="utf-8")
)
OF_TORCH_NPU = sorted(
    name for name, schema in TABLE.items() if "Tensor" in schema
)  # the others are MindSpeed's


def test_table_holds_every_operator_that_dispatch_calls() -> None:
    called = {name for name in vars(ops) if name.startswith(("npu_", "scatter_update"))}
    assert len(called) > 15 and called <= set(TABLE)


@pytest.mark.parametrize("name", OF_TORCH_NPU)
def test_schema_is_the_installed_one(name: str) -> None:
    wanted, installed = (
        torch._C.parse_schema(TABLE[name]),
        getattr(torch.ops.npu, name).default._schema,
    )
    assert (
        str(wanted).split(" -> ")[0].split("::")[-1]
        == str(installed).split(" -> ")[0].split("::")[-1]
    )
    assert [str(r.type) for r in wanted.returns] == [
        str(r.type) for r in installed.returns
    ]  # some have names as well


@pytest.mark.parametrize("name", OF_TORCH_NPU)
def test_operator_has_a_host_kernel(name: str) -> None:
    assert operators.host_kernel(name) is not None or name == "npu_format_cast"


def test_every_name_of_the_stand_in_exists() -> None:
    for name in (*OF_TORCH_NPU, *operators.ADAPTED):
        packet, _, overload = name.partition(".")
        assert hasattr(getattr(torch.ops.npu, packet), overload or "default"), name
