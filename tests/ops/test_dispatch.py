"""Signatures against torch_npu's schemas, and who is called for which device."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import dsv3_port
from dsv3_port import ops
from dsv3_port.errors import PortError
from dsv3_port.ops import mindspeed, providers, table
from tests.ops.meanings import contracts, reference

SCHEMAS: dict[str, str] = json.loads(
    (Path(__file__).parent / "schemas.json").read_text(encoding="utf-8")
)
OPERATORS = sorted(name for name in vars(ops) if name.startswith(("npu_", "scatter_")))


def from_schema(schema: str) -> list[tuple[str, bool, Any]]:
    """(name, keyword-only, default or inspect's empty) of each argument."""
    empty = inspect.Parameter.empty
    if "Tensor" in schema:
        arguments = torch._C.parse_schema(schema).arguments
        return [
            (a.name, a.kwarg_only, a.default_value if a.has_default_value() else empty)
            for a in arguments
        ]
    definition = ast.parse(f"def {schema}: ...").body[0]  # MindSpeed's are Python functions
    assert isinstance(definition, ast.FunctionDef)
    pairs = zip(definition.args.kwonlyargs, definition.args.kw_defaults, strict=True)
    return [(a.arg, False, empty) for a in definition.args.args] + [
        (a.arg, True, ast.literal_eval(default) if default else empty) for a, default in pairs
    ]


@pytest.mark.parametrize("name", OPERATORS)
def test_signature_is_the_schema(name: str) -> None:
    signature = inspect.signature(getattr(ops, name))
    got = [
        (
            p.name,
            p.kind is p.KEYWORD_ONLY,
            list(p.default) if isinstance(p.default, tuple) else p.default,
        )
        for p in signature.parameters.values()
    ]
    assert got == from_schema(SCHEMAS[name])


def test_every_schema_has_an_operator_a_meaning_a_contract_and_a_docstring() -> None:
    assert sorted(SCHEMAS) == OPERATORS
    for name in OPERATORS:
        assert callable(getattr(reference, name)) and callable(getattr(contracts, name))
        assert getattr(ops, name).__doc__


def test_contracts_name_their_arguments_as_the_schema_does() -> None:
    for name in OPERATORS:
        wanted = [argument for argument, _, _ in from_schema(SCHEMAS[name])]
        parameters = inspect.signature(getattr(contracts, name)).parameters.values()
        named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "operator"]
        assert [n for n in wanted if n in named] == named, name


def test_torch_npu_and_mindspeed_are_imported_in_one_place() -> None:
    """torch_npu in ops/table.py, MindSpeed in ops/mindspeed.py, torchair in engine/torchair.py; hostnpu
    stands in for CANN and is apart."""
    root = Path(dsv3_port.__file__).parent
    allowed = {"ops/table.py", "ops/mindspeed.py", "engine/torchair.py"}
    for file in sorted(root.rglob("*.py")):
        place = file.relative_to(root).as_posix()
        if place in allowed or place.startswith("hostnpu/"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (
                ([] if node.level else [node.module or ""])
                if isinstance(node, ast.ImportFrom)
                else ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
            )
            assert not any(
                n.split(".")[0] in ("torch_npu", "mindspeed", "torchair") for n in names
            ), place


class Recorder:
    """Stands in for a module of device operators: notes calls, returns a marker."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> str:
            self.calls.append((name, args, kwargs))
            return f"device {name}"

        return call


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """CPU tensors taken for NPU ones, torch_npu and MindSpeed recorded."""
    modules = SimpleNamespace(torch_npu=Recorder(), mindspeed=Recorder())
    monkeypatch.setattr(table, "_torch_npu", modules.torch_npu)
    monkeypatch.setattr(mindspeed, "_module", modules.mindspeed)
    monkeypatch.setattr(table, "on_npu", lambda tensor: True)
    return modules


def gmm_arguments() -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
    return (
        [torch.randn(6, 2)],
        [torch.randn(3, 2, 5)],
        {
            "group_list": torch.tensor([2, 2, 2]),
            "group_type": 0,
            "split_item": 3,
            "group_list_type": 1,
        },
    )


def test_npu_tensors_go_to_torch_npu_with_the_same_arguments(device: SimpleNamespace) -> None:
    x, gamma = torch.randn(2, 8), torch.randn(8)
    assert ops.npu_rms_norm(x, gamma, 1e-5) == "device npu_rms_norm"
    assert ops.npu_swiglu(x, dim=-1) == "device npu_swiglu"
    cache, updates = torch.zeros(2, 1, 4, 3), torch.zeros(2, 1, 1, 3)
    assert ops.scatter_update_(cache, torch.tensor([0, 1]), updates, -2) == "device scatter_update_"
    (first, second, third) = device.torch_npu.calls
    assert first == ("npu_rms_norm", (x, gamma, 1e-5), {}) and second == (
        "npu_swiglu",
        (x,),
        {"dim": -1},
    )
    assert third[0] == "scatter_update_" and not cache.any()


def test_contracts_hold_on_the_device_too(device: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="x2"):
        ops.npu_add_rms_norm(torch.zeros(2, 8), torch.zeros(1, 8), torch.zeros(8))
    assert device.torch_npu.calls == []


@pytest.mark.parametrize("provider", ["auto", "torch_npu"])
def test_grouped_matmul_by_torch_npu(device: SimpleNamespace, provider: str) -> None:
    x, weight, keywords = gmm_arguments()
    assert ops.npu_grouped_matmul(x, weight, **keywords) == "device npu_grouped_matmul"
    assert device.torch_npu.calls == [("npu_grouped_matmul", (x, weight), keywords)]
    device.torch_npu.calls.clear()
    ends = keywords["group_list"].cumsum(0)
    y = providers.provider(provider)(x[0], weight[0], ends)
    assert y == "device npu_grouped_matmul"[0]  # of the list that the operator returns
    ((_, (rows, experts), given),) = device.torch_npu.calls
    assert rows[0] is x[0] and experts[0] is weight[0]
    assert given == keywords | {"group_list": ends, "group_list_type": 0}


def test_grouped_matmul_by_the_reference_on_the_device(device: SimpleNamespace) -> None:
    x, weight, keywords = gmm_arguments()
    y = providers.provider("reference")(x[0], weight[0], keywords["group_list"].cumsum(0))
    torch.testing.assert_close(y[2:4], x[0][2:4] @ weight[0][1])
    assert device.torch_npu.calls == []


def test_mindspeed_operators_on_the_device(device: SimpleNamespace) -> None:
    x, weight = torch.randn(6, 2), torch.randn(3, 2, 5)
    assert ops.npu_gmm(x, weight, group_list=[2, 4, 6]) == "device npu_gmm"
    assert ops.npu_gmm_v2(x, weight, group_list=torch.tensor([2, 2, 2])) == "device npu_gmm_v2"


def test_other_devices_use_the_reference_whatever_the_provider() -> None:
    x, weight, keywords = gmm_arguments()
    for multiply in providers.PROVIDERS.values():
        y = multiply(x[0], weight[0], keywords["group_list"].cumsum(0))
        assert y.shape == (6, 5) and not table.on_npu(y)


def test_unknown_provider_and_missing_mindspeed_are_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(PortError, match="GMM_PROVIDER is 'cutlass'; it can be auto, torch_npu"):
        providers.provider("cutlass")
    monkeypatch.setattr(mindspeed, "_module", None)
    monkeypatch.setitem(__import__("sys").modules, "mindspeed", None)
    with pytest.raises(
        PortError, match="GMM_PROVIDER is mindspeed, and mindspeed.ops.gmm cannot be imported"
    ):
        mindspeed.mindspeed_gmm()


def test_torch_npu_is_imported_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = SimpleNamespace()
    monkeypatch.setattr(table, "_torch_npu", None)
    monkeypatch.setitem(__import__("sys").modules, "torch_npu", stand_in)
    assert table.torch_npu() is stand_in
    assert table._torch_npu is stand_in


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 16), (3, 1, 16), (8, 16), (2, 30, 16)])
def test_linear(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(5, 16, dtype=dtype)
    y = ops.linear(x, weight)
    assert y.is_contiguous() and y.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(
        y.double(), x.double() @ weight.double().t(), rtol=tolerance, atol=tolerance
    )
