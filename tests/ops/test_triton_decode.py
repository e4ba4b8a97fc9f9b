"""The split decode attention as far as a CPU can show it: its kernels by Triton's interpreter, compiled
for GPUs that are not there, and the sizes of a launch. On a GPU: the end of this file."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from dsv3_port.errors import PortError
from dsv3_port.ops import require_split_attention
from dsv3_port.ops import split_attention as split
from dsv3_port.paths import repo_root

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="no Triton: torch's CUDA build brings it, its CPU build does not",
)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
BOUND = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 1e-2}
KIB = 1024
# compute capability -> multiprocessors, KiB of shared memory for one block: CUDA C++ Programming Guide,
# table of technical specifications
DEVICES = {
    80: split.Device(108, 163 * KIB, 8),
    89: split.Device(128, 99 * KIB, 8),
    90: split.Device(132, 227 * KIB, 9),
    100: split.Device(148, 227 * KIB, 10),
}


# ---- the sizes of a launch -----------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES.values(), ids=map(str, DEVICES))
@pytest.mark.parametrize("heads", [1, 4, 16, 32, 128])
@pytest.mark.parametrize(("widths", "itemsize"), [((512, 64), 2), ((512, 64), 4), ((20, 6), 4)])
def test_blocks_fit_and_splits_fill_the_device(
    device: split.Device, heads: int, widths: tuple[int, int], itemsize: int
) -> None:
    blocks = split.blocks_for(heads, *widths, itemsize, device)
    assert blocks.shared(itemsize, device.major) <= device.shared
    assert blocks.latent >= widths[0] and blocks.rope >= widths[1]
    for batch, length in ((1, 4096), (1, 7), (8, 16384), (512, 1000)):
        grid = split.grid_for(batch, heads, length, 1, widths, blocks, device)
        assert grid.head_blocks * blocks.queries >= heads > (grid.head_blocks - 1) * blocks.queries
        programs = batch * grid.head_blocks * grid.splits
        assert grid.splits == 1 or programs <= device.multiprocessors
        assert (grid.splits - 1) * grid.least < length  # none is too many for a full buffer
        assert grid.least >= blocks.keys


def test_what_a_gpu_gets_of_the_published_widths() -> None:
    def chosen(heads: int, capability: int) -> tuple[int, ...]:
        found = split.blocks_for(heads, 512, 64, 2, DEVICES[capability])
        return found.queries, found.keys, found.stages

    assert [chosen(4, c) for c in DEVICES] == [(16, 32, 4), (16, 32, 3), (16, 32, 4), (16, 32, 4)]
    assert [chosen(128, c) for c in DEVICES] == [(64, 64, 2), (16, 32, 3), (64, 64, 2), (32, 64, 3)]


def test_what_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    small = split.Device(40, 48 * KIB, 8)
    with pytest.raises(
        PortError, match="rows of 512 . 64 numbers of 4 bytes .* 48 KiB .*'products'"
    ):
        split.blocks_for(4, 512, 64, 4, small)
    with pytest.raises(PortError, match="no numbers of 8 bytes"):
        split.blocks_for(4, 16, 16, 8, DEVICES[90])
    monkeypatch.setattr(split, "device_of", lambda index: small)
    gpu_device, bf16 = torch.device("cuda"), torch.bfloat16
    with mock.patch.object(importlib.util, "find_spec", lambda name: name != "triton" or None):
        with pytest.raises(PortError, match="written in Triton on cuda, and this Python has none"):
            require_split_attention(gpu_device, bf16, 512, 64)
        require_split_attention(torch.device("cpu"), bf16, 512, 64)
    with mock.patch.object(importlib.util, "find_spec", lambda name: True):
        require_split_attention(gpu_device, bf16, 512, 64)
        with pytest.raises(PortError, match="of 4 bytes need more than this GPU's 48 KiB"):
            require_split_attention(gpu_device, torch.float32, 512, 64)


def test_the_operator_is_what_torch_asks_of_one() -> None:
    """Schema, fake and meaning agree; nothing is differentiated."""
    q, rows = torch.randn(2, 3, 2, 20), torch.randn(2, 9, 20)
    inputs = (q, rows, torch.tensor([0, 2]), torch.tensor([7, 4]), 0.3, 16)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(split.decode_attention_op, inputs, test_utils=tests)


# ---- the kernels, without a GPU ------------------------------------------------------------------


@needs_triton
def test_the_kernels_are_the_definition_and_read_what_is_filled() -> None:
    """Interpreted. Buffers hold NaN before the pad and infinity behind the end, and results that no
    kernel wrote are NaN."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.interpreted_decode"],
        cwd=repo_root(),
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    far = [f for f in found if not f["error"] <= BOUND[f["dtype"]] or f["hidden"]]
    assert not far
    assert {f["queries"] for f in found} == {16, 32, 64}
    assert min(f["splits"] for f in found) == 1 and max(f["splits"] for f in found) > 32


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """REG, STACK, LOCAL of a kernel, by the program that Triton brings; {} where it brings none."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not program.is_file():
        return {}
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    words = [str(program), "--dump-resource-usage", str(file)]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], **options: Any) -> Any:
    """A kernel for a GPU that is not here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    capability = options.pop("capability")
    signature = types | dict.fromkeys(constants, "constexpr")
    # as a launch finds them: addresses, and the strides of the published rows
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(types.items())
        if "*" in kind or name in ("rows_b", "rows_l")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    return tmp_path


@needs_triton
@pytest.mark.parametrize(("capability", "heads"), [(80, 4), (89, 4), (90, 128), (100, 4)])
def test_they_compile_into_what_the_gpu_has(capability: int, heads: int, fresh_cache: Path) -> None:
    """The published widths in bfloat16: assembled, in the shared memory that `Blocks.shared` says, and
    without spilled registers."""
    from dsv3_port.ops import triton_decode

    device = DEVICES[capability]
    blocks = split.blocks_for(heads, 512, 64, 2, device)
    grid = split.grid_for(1, heads, 4096, 1, (512, 64), blocks, device)
    types = {
        **dict.fromkeys(("queries", "rows"), "*bf16"),
        **dict.fromkeys(("pads", "slots"), "*i64"),
        **dict.fromkeys(("partial", "weights"), "*fp32"),
        **dict.fromkeys(("count", "length", "rows_b", "rows_l"), "i32"),
        "scale": "fp32",
    }
    constants = triton_decode.constants(grid, blocks, torch.bfloat16)
    found = compiled(
        triton_decode.split_kernel,
        types,
        constants,
        capability=capability,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    said = blocks.shared(2, device.major)
    assert 0.9 * said <= found.metadata.shared <= said <= device.shared
    used = resources(found.asm["cubin"], fresh_cache)
    assert not used or used["REG"] > 0 and used["STACK"] == used["LOCAL"] == 0, used


@needs_triton
def test_the_join_compiles(fresh_cache: Path) -> None:
    from dsv3_port.ops import triton_decode

    grid = split.Grid(132, 64, 1, 1, 512, 64)
    types = {"partial": "*fp32", "weights": "*fp32", "joined": "*bf16"}
    constants = triton_decode.join_constants(grid)
    found = compiled(triton_decode.join_kernel, types, constants, capability=90)
    assert found.asm["cubin"] and found.metadata.shared <= 48 * KIB


# ---- on a GPU ------------------------------------------------------------------------------------


@gpu
@needs_triton
def test_the_kernels_on_a_gpu() -> None:
    from .interpreted_decode import CASES, error

    found = [error(case, "cuda") for case in CASES]
    assert not [f for f in found if not f["error"] <= BOUND[f["dtype"]] or f["hidden"]]


@gpu
@needs_triton
def test_a_capture_follows_what_is_filled() -> None:
    """The replay reads the new end, and the host waits for nothing."""
    q = torch.randn(1, 4, 1, 576, device="cuda", dtype=torch.bfloat16)
    rows = torch.randn(1, 2048, 576, device="cuda", dtype=torch.bfloat16)
    pad, slot = (torch.zeros(1, dtype=torch.int64, device="cuda") for _ in range(2))

    def step() -> torch.Tensor:
        return split.decode_attention_op(q, rows, pad, slot, 0.07, 512)

    wanted = [split.plain.decode_attention(q, rows, pad, slot + n, 0.07, 512) for n in (0, 1500)]
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    for n, want in zip((0, 1500), wanted, strict=True):
        slot.fill_(n)
        graph.replay()
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)
