"""GMM_PROVIDER: the same experts through torch_npu's grouped matmul, MindSpeed's, and the
reference."""

from __future__ import annotations

import dataclasses
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port.config import DeepseekV3Config
from dsv3_port.engine import job, loading
from dsv3_port.engine.settings import TABLE, Settings
from dsv3_port.errors import PortError
from dsv3_port.model.decoder import build
from dsv3_port.ops import mindspeed, providers, table
from dsv3_port.parallel import SINGLE
from dsv3_port.paths import tiny
from dsv3_port.plan import PortPlan

from .meanings import reference
from .mindspeed_stand_in import Gmm, install

EXPERTS, K, N = 4, 6, 5


@pytest.fixture
def gmm(monkeypatch: pytest.MonkeyPatch) -> Gmm:
    """MindSpeed installed, CPU tensors taken for NPU ones, torch_npu absent."""
    monkeypatch.setattr(mindspeed, "_module", None)
    monkeypatch.setattr(table, "_torch_npu", None)
    monkeypatch.setattr(table, "on_npu", lambda tensor: True)
    return install(monkeypatch)


def arguments(counts: list[int], kind: int) -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor(counts)
    groups = {0: sizes.cumsum(0), 1: sizes, 2: torch.stack((torch.arange(len(counts)), sizes), 1)}[
        kind
    ]
    stored = torch.randn(
        len(counts), N, K, generator=generator
    )  # [E, N, K], as a checkpoint has it
    return (
        [torch.randn(sum(counts), K, generator=generator)],
        [stored.transpose(1, 2)],
        {"group_list": groups, "group_type": 0, "group_list_type": kind, "split_item": 3},
    )


def by_mindspeed(
    x: list[Tensor], weight: list[Tensor], *, group_list: Tensor, **keywords: Any
) -> Tensor:
    """npu_grouped_matmul's arguments handed to the provider."""
    multiply: Any = providers.provider("mindspeed")
    result: Tensor = multiply(x[0], weight[0], group_list, **keywords)
    return result


@pytest.mark.parametrize("counts", [[2, 1, 2, 1], [0, 3, 0, 3], [6, 0, 0, 0]])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_mindspeed_computes_what_the_reference_does(gmm: Gmm, counts: list[int], kind: int) -> None:
    if kind == 2 and 0 in counts:
        counts = [2, 1, 2, 1]  # pairs end at the first empty one
    x, weight, keywords = arguments(counts, kind)
    y = by_mindspeed(x, weight, **keywords)
    (want,) = reference.npu_grouped_matmul(x, weight, **keywords)
    torch.testing.assert_close(y, want)
    ends = torch.tensor(counts).cumsum(0).tolist()
    assert gmm.calls == [("npu_gmm_v2", counts) if kind == 1 else ("npu_gmm", ends)]


def test_mindspeed_gets_pairs_that_skip_a_group_as_cumulative_rows(gmm: Gmm) -> None:
    x, weight, keywords = arguments([2, 0, 3, 1], 1)
    pairs = torch.tensor([[0, 2], [2, 3], [3, 1], [0, 0]])
    y = by_mindspeed(x, weight, **{**keywords, "group_list": pairs, "group_list_type": 2})
    (want,) = reference.npu_grouped_matmul(x, weight, **keywords)
    torch.testing.assert_close(y, want)
    assert gmm.calls == [("npu_gmm", [2, 2, 5, 6])]


def test_what_mindspeed_cannot_is_refused_before_it_is_called(gmm: Gmm) -> None:
    x, weight, keywords = arguments([6], 0)
    with pytest.raises(PortError, match="GMM_PROVIDER=torch_npu"):
        by_mindspeed(x, weight, **keywords)
    x, weight, keywords = arguments([2, 1, 2, 1], 0)
    for matrices, other in (
        (weight, {"bias": [torch.zeros(EXPERTS, N)]}),
        (weight, {"act_type": 5}),
        (list(weight[0]), {"split_item": 0}),
    ):
        with pytest.raises(NotImplementedError, match="by MindSpeed"):
            by_mindspeed(x, matrices, **{**keywords, **other})
    assert gmm.calls == []


def test_the_stand_in_checks_as_mindspeed_does(gmm: Gmm) -> None:
    """Otherwise the tests above would show little."""
    (x,), (weight,), _ = arguments([2, 1, 2, 1], 0)
    wrong: list[tuple[type[Exception], Any, dict[str, Any]]] = [
        (TypeError, gmm.npu_gmm, {"group_list": torch.tensor([2, 3, 5, 6], dtype=torch.int32)}),
        (TypeError, gmm.npu_gmm_v2, {"group_list": [2, 1, 2, 1]}),
        (ValueError, gmm.npu_gmm, {"group_list": [6]}),
        (ValueError, gmm.npu_gmm, {"group_list": torch.tensor([[2, 3, 5, 6]])}),
        (
            ValueError,
            gmm.npu_gmm,
            {"group_list": torch.tensor([2, 1, 2, 1])},
        ),  # counts, taken for row numbers
        (ValueError, gmm.npu_gmm_v2, {"group_list": torch.tensor([2, 3, 5, 6])}),
        (ValueError, gmm.npu_gmm, {"group_list": torch.tensor([2, 3, 5, 6]), "group_type": 2}),
    ]
    for kind, function, keywords in wrong:
        with pytest.raises(kind):
            function(x, weight, **keywords)
    with pytest.raises(TypeError):
        gmm.npu_gmm([x], [weight], group_list=[2, 3, 5, 6])


@pytest.mark.parametrize(
    "plan",
    [
        PortPlan.full(),
        PortPlan.full().replace(npu_routing_kernel=False),
        PortPlan.full().replace(mlp="split"),
    ],
)
def test_a_model_says_the_same_through_mindspeed(
    monkeypatch: pytest.MonkeyPatch, plan: PortPlan
) -> None:
    """The whole model, every operator by its reference but the grouped matmul, which goes through
    MindSpeed."""
    config = DeepseekV3Config.preset("tiny")
    model = build(config, plan)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    ids = torch.randint(model.config.vocab_size, (2, 9), generator=generator)
    want = model(ids)
    gmm = install(monkeypatch)
    monkeypatch.setattr(mindspeed, "_module", None)
    monkeypatch.setattr(
        table,
        "_torch_npu",
        SimpleNamespace(
            **{
                n: getattr(reference, n)
                for n in vars(reference)
                if n.startswith(("npu_", "scatter_"))
            }
        ),
    )
    monkeypatch.setattr(table, "on_npu", lambda tensor: True)
    ported = build(config, plan, gmm=providers.provider("mindspeed"))
    ported.load_state_dict(model.state_dict())
    torch.testing.assert_close(ported(ids), want, rtol=1e-5, atol=1e-5)
    layers = model.config.num_hidden_layers - model.config.first_k_dense_replace
    assert [name for name, _ in gmm.calls] == ["npu_gmm"] * layers * (
        2 if plan.mlp == "merged" else 3
    )


@pytest.mark.parametrize(("device", "want"), [("npu", "reference"), ("cpu", "auto")])
def test_a_model_for_the_npu_is_loaded_with_the_provider_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, device: str, want: str
) -> None:
    class Stop(Exception):
        pass

    def build(*args: Any) -> None:
        raise Stop(args[-1])

    monkeypatch.setenv("GMM_PROVIDER", "reference")
    monkeypatch.setattr(loading, "pick_device", lambda name: SimpleNamespace(type=device))
    monkeypatch.setattr(loading, "build", build)
    with pytest.raises(Stop) as stopped:
        loading.load_model(tiny(), device=device)
    assert stopped.value.args == (providers.provider(want),)


def test_a_provider_that_is_handed_in_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, gmm: Gmm
) -> None:
    monkeypatch.setenv("GMM_PROVIDER", "reference")
    monkeypatch.setattr(loading, "pick_device", lambda name: SimpleNamespace(type="npu"))
    monkeypatch.setattr(
        loading, "build", lambda config, *args: SimpleNamespace(config=config, gmm=args[-1])
    )
    monkeypatch.setattr(loading, "load_weights", lambda *args: None)
    monkeypatch.setattr(loading, "cast_weights", lambda model: model)
    monkeypatch.setattr(loading, "compile_steps", lambda model, graph: model)
    model = loading.load_model(tiny(), device="npu", gmm="mindspeed")
    assert model.gmm is providers.by_mindspeed


def test_a_flag_reaches_every_rank_with_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank gets the job, and hands its setting to load_model; the environment is left alone."""

    class Stop(Exception):
        pass

    def load_model(*args: Any, **keywords: Any) -> None:
        raise Stop(keywords["gmm"])

    monkeypatch.setenv("GMM_PROVIDER", "auto")
    settings = Settings.from_env_and_flags({"gmm_provider": "mindspeed", "model_dir": str(tiny())})
    settings.export()
    assert os.environ["GMM_PROVIDER"] == "auto"
    monkeypatch.setattr(job, "load_model", load_model)
    with pytest.raises(Stop) as stopped:
        job.run_rank(SINGLE, job.Job(settings, ("a",), PortPlan.full(), "cpu"))
    assert stopped.value.args == ("mindspeed",)


def test_the_setting_knows_the_same_providers() -> None:
    (row,) = [row for row in TABLE if row.variable == "GMM_PROVIDER"]
    assert row.choices == providers.GMM_PROVIDERS and row.default == "auto"
    assert (
        Settings.from_env_and_flags({}, {"GMM_PROVIDER": "mindspeed"}).gmm_provider == "mindspeed"
    )
    with pytest.raises(PortError, match="GMM_PROVIDER is 'cutlass'"):
        dataclasses.replace(Settings(), gmm_provider="cutlass")
