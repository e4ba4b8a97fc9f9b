"""What a capture may and may not do, task updates, export, and the errors of what cannot work here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchair
from torch import Tensor

from dsv3_port import PortPlan, load_model, ops
from dsv3_port.engine import graph as modes
from dsv3_port.engine.graph import compile_steps, export_graph
from dsv3_port.engine.torchair import OPTIONS, backend_options, compiler_config
from dsv3_port.errors import PortError
from dsv3_port.hostnpu import ge, tape
from dsv3_port.ops.table import torch_npu as import_torch_npu
from tests.hostnpu.inside import short
from tests.hostnpu.inside.short import TINY
from tests.ops.meanings import reference


def test_nothing_is_computed_while_capturing() -> None:
    x, total, index = torch.ones(4).npu(), torch.zeros(4).npu(), torch.full((2,), 10**9).npu()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        total.add_(x)
        picked = x[index]  # far out of range: it would fail if it were computed now
        y = total * 2
    assert total.tolist() == [0.0] * 4
    index.copy_(torch.tensor([3, 0]))
    x.copy_(torch.arange(4.0))
    for n in (1, 2):
        graph.replay()
        assert total.tolist() == [0.0, n, 2.0 * n, 3.0 * n] and picked.tolist() == [3.0, 0.0]
        assert torch.equal(y.cpu(), 2 * total.cpu())


def test_a_replay_that_fails_says_why() -> None:
    x, index = torch.ones(4).npu(), torch.zeros(2, dtype=torch.long).npu()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        x[index]
    index.fill_(99)
    with pytest.raises(RuntimeError, match=r"host stand-in: \w+Error: index 99 is out of bounds"):
        graph.replay()
    index.fill_(0)
    graph.replay()


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t.sum().item(),
        lambda t: t.tolist(),
        lambda t: t.cpu(),
        lambda t: bool((t > 0).all()),
    ],
    ids=["item", "tolist", "cpu", "bool"],
)
def test_a_hidden_synchronisation_fails(read: Callable[[Tensor], Any]) -> None:
    x = torch.ones(4).npu()
    with pytest.raises(
        RuntimeError, match="the host waits for the device while a graph is captured"
    ):
        with torch.npu.graph(torch.npu.NPUGraph()):
            read(x + 1)
    assert tape.tapes is not None and not tape.tapes.capturing()
    assert (x + 1).tolist() == [2.0] * 4  # the process goes on


@pytest.mark.parametrize("mode", ["reduce-overhead", "npugraph_ex"])
def test_key_lengths_are_updated_in_the_captured_attention(mode: str) -> None:
    """Host numbers: torchair replays first, then updates the recorded operator's arguments (task
    update)."""
    torch._dynamo.reset()
    import_torch_npu()
    q, k = torch.randn(1, 2, 1, 64).half(), torch.randn(1, 1, 8, 64).half()
    settings: dict[str, Any] = {
        "num_heads": 2,
        "num_key_value_heads": 1,
        "scale": 0.2,
        "input_layout": "BNSD",
    }

    def attend(x: Tensor, keys: Tensor, lengths: list[int]) -> Tensor:
        result: Tensor = (
            ops.npu_fused_infer_attention_score(
                x, keys, keys, actual_seq_lengths_kv=lengths, **settings
            )[0]
            + 1
        )
        return result

    config = compiler_config("reduce-overhead", {})
    backend: Any = (
        mode if mode == "npugraph_ex" else torchair.get_npu_backend(compiler_config=config)
    )
    step = torch.compile(attend, backend=backend, fullgraph=True, dynamic=True)
    assert tape.tapes is not None
    before, captured = 0, []
    for length in (3, 5, 8, 2):
        want = (
            reference.npu_fused_infer_attention_score(
                q, k, k, actual_seq_lengths_kv=[length], **settings
            )[0]
            + 1
        )
        assert torch.equal(step(q.npu(), k.npu(), [length]).cpu(), want)
        captured.append(tape.tapes.captured - before)
        before = tape.tapes.captured
    assert captured[1:] == [0, 0, 0]


def test_export_of_prefill(tmp_path: Path) -> None:  # of decode: check_npu_graphs.py
    model = short.load(PortPlan.full(), dtype="float16")
    files = export_graph(model, tmp_path / "out", length=8, batch=2, max_length=12, first=True)
    assert set(files) == {"step.air", "graph.pbtxt", "graph.py", "options.json"}
    counted = ge.read(files["step.air"].read_bytes()).count()
    assert counted["GroupedMatmul"] == 2 and counted["AddRmsNorm"] > 0
    text = files["graph.pbtxt"].read_text(encoding="utf-8")
    assert text.count('op: "GroupedMatmul"') == 2
    assert files["graph.py"].read_text(encoding="utf-8").count("ge.GroupedMatmul(") == 2


def test_export_says_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="the model is on cpu"):
        export_graph(load_model(TINY, PortPlan.full(), "cpu"), tmp_path)
    with pytest.raises(PortError, match="expert loop.*growing cache"):
        export_graph(load_model(TINY, PortPlan.upstream(), "npu"), tmp_path)
    with pytest.raises(PortError, match="no room for 4 more"):
        export_graph(load_model(TINY, PortPlan.full(), "npu"), tmp_path, length=4, max_length=4)


def test_options_reach_torchair() -> None:
    for backend in ("ge", "reduce-overhead"):
        config = compiler_config(backend, backend_options(backend))
        assert config.mode.value == ("max-autotune" if backend == "ge" else backend)
        assert bool(config.experimental_config.frozen_parameter)
    assert all(o.ge or o.npugraph_ex for o in OPTIONS)
    with pytest.raises(PortError, match="no_such.*in mode ge"):
        compiler_config("ge", {"experimental_config.no_such": 1})
    with pytest.raises(PortError, match="frozen_parameter = 'maybe'"):
        compiler_config("ge", {"experimental_config.frozen_parameter": "maybe"})
    with pytest.raises(PortError, match="graph mode 'inductor'; on npu it can be aclgraph, ge"):
        compile_steps(load_model(TINY, PortPlan.full(), "npu"), "inductor")


def test_a_cached_ge_graph_needs_the_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchair's cache holds the GE graph and no FX graph."""

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cached = torchair.inference.cache_compile(
                self.step, config=torchair.CompilerConfig(), dynamic=False, cache_dir=str(tmp_path)
            )

        def step(self, x: Tensor) -> Tensor:
            return x * 2

    with torch.no_grad():
        with modes.converted_graphs() as found:
            for n in (1.0, 3.0):  # compiled, then from the cache
                assert Twice().cached(torch.full((2,), n).npu()).tolist() == [2 * n, 2 * n]
        assert len(found) == 2 and len(list(tmp_path.rglob("compiled_module"))) == 1
        monkeypatch.setenv("DSV3_GE_ENGINE", "fx")
        with pytest.raises(PortError, match="DSV3_GE_ENGINE=interpret.*npugraph_ex"):
            Twice().cached(torch.ones(2).npu())


def test_a_float_argument_of_a_dynamic_capture_is_refused_with_the_reason() -> None:
    """torchair rebuilds it as a tensor that says cpu and is dispatched to npu: without the refusal the
    kernel called itself without end."""
    import torchair

    config = torchair.CompilerConfig()
    config.mode = "reduce-overhead"
    backend = torchair.get_npu_backend(compiler_config=config)
    torch._dynamo.reset()
    scaled = torch.compile(lambda x, s: x * s + x.shape[0], backend=backend, dynamic=True)
    with pytest.raises(RuntimeError, match="pass tensors, or use dynamic=False"):
        for factor in (0.5, 0.7):
            scaled(torch.ones(3, device="npu"), factor)
