"""torch_npu beside a torch whose other device has registered the same allocator settings: for real
with a small library that registers them, as libc10_cuda does in a CUDA build, in a process of its
own."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from dsv3_port import hostnpu
from dsv3_port.errors import PortError
from dsv3_port.hostnpu import allocator_keys, library

from .processes import forked, needs_torch_npu, output, start

needs_compiler = pytest.mark.skipif(
    allocator_keys.compiler() is None or library.compiler() is None, reason="no C++ compiler here"
)
# of a CUDA build: the first two are torch_npu's too
REGISTERED = ("pinned_reserve_segment_size_mb", "per_process_memory_fraction", "backend")
DEVICE_LIBRARY = """
#include <string>
#include <unordered_set>
namespace c10::CachingAllocator {
struct AcceleratorAllocatorConfig { static std::unordered_set<std::string> &getMutableKeys(); };
}
static bool registered = [] {
  for (auto key : {%s}) c10::CachingAllocator::AcceleratorAllocatorConfig::getMutableKeys().insert(key);
  return true;
}();
"""
NAMES = """
import ctypes
from dsv3_port.hostnpu import allocator_keys as a
c10 = ctypes.CDLL(str(a.torch_libraries() / 'libc10.so'))
function = ctypes.cast(getattr(c10, a.FUNCTION), ctypes.c_void_p)
names = lambda: a.names(ctypes.CDLL(str(a.build())), function)
"""
ENABLE = "import dsv3_port.hostnpu as h; h.enable()\nx = torch.ones(3, device='npu') + 1\n"


@pytest.fixture(scope="module")
def device_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that registers these settings while it is loaded."""
    folder, torch = tmp_path_factory.mktemp("device"), allocator_keys.torch_libraries()
    assert torch is not None
    source = folder / "device.cpp"
    source.write_text(DEVICE_LIBRARY % ", ".join(f'"{key}"' for key in REGISTERED))
    library.compile_shared(
        [*str(allocator_keys.compiler()).split(), "-std=c++17"],
        source,
        folder / "libdevice.so",
        f"-L{torch}",
        "-lc10",
        f"-Wl,-rpath,{torch}",
    )
    return folder / "libdevice.so"


@needs_torch_npu
@needs_compiler
def test_torch_npu_beside_another_device(device_library: Path) -> None:
    code = (
        f"import ctypes, torch; ctypes.CDLL({str(device_library)!r})\n{NAMES}before = names()\n{ENABLE}"
        f"print(x.sum().item(), set({REGISTERED!r}) <= before <= names(), "
        "'pin_memory_expandable_segments' in names() - before)"
    )
    assert forked(code) == "6.0 True True"


@needs_torch_npu
@needs_compiler
def test_without_it_the_process_aborts(device_library: Path) -> None:
    """What the test above is worth: the very same, with the names left where they are."""
    code = (
        f"import contextlib, ctypes, torch; ctypes.CDLL({str(device_library)!r})\n{NAMES}"
        f"a.prepare = lambda torch_npu: contextlib.nullcontext()\n{ENABLE}print('alive')"
    )
    child = start(code)
    out, err = child.communicate(timeout=300)
    assert child.returncode == -signal.SIGABRT and "alive" not in out
    assert f"Duplicated key '{REGISTERED[0]}'" in err or f"Duplicated key '{REGISTERED[1]}'" in err


@needs_torch_npu
@needs_compiler
@pytest.mark.parametrize(
    "before",
    [
        pytest.param(
            "ctypes.CDLL(path)\nimport torch",
            marks=pytest.mark.skipif(
                bool(allocator_keys.other_device()),
                reason="torch's own library would clash with it",
            ),
        ),
        "import dsv3_port.hostnpu, torch\nctypes.CDLL(path)\nfrom transformers import DeepseekV3ForCausalLM",
    ],
    ids=["before torch", "after torch"],
)
def test_any_order_of_imports(device_library: Path, before: str) -> None:
    code = f"import ctypes; path = {str(device_library)!r}\n{before}\n{ENABLE}print(x.sum().item())"
    assert output(code) == "6.0"


@needs_torch_npu
@needs_compiler
def test_spawned_processes(device_library: Path, tmp_path: Path) -> None:
    """Two at once with an empty cache, started by a process in which the host NPU is enabled."""
    rank = tmp_path / "rank.py"
    rank.write_text(
        f"import ctypes, multiprocessing, torch; ctypes.CDLL({str(device_library)!r})\n"
        f"def run(rank):\n    import dsv3_port.hostnpu as h; h.enable()\n"
        "    return (torch.ones(2, device='npu') * rank).sum().item()\n"
        "if __name__ == '__main__':\n    run(0)\n"
        "    with multiprocessing.get_context('spawn').Pool(2) as pool: print(pool.map(run, [1, 2]))\n"
    )
    code = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, {str(rank)!r}]))"
    assert output(code, DSV3_HOSTNPU_CACHE=str(tmp_path / "cache")) == "[2.0, 4.0]"


@needs_compiler
def test_names_are_put_back_when_the_import_fails(device_library: Path) -> None:
    code = f"""
import torch
{NAMES}
ctypes.CDLL({str(device_library)!r}); before = names()
try:
    with a.prepare(a.torch_libraries()):
        print(sorted(names()) == sorted(a.OWN & before))
        raise ImportError
except ImportError: print(names() == before > a.OWN)
"""
    assert forked(code).split() == ["True", "True"]


# ---- where it cannot work: a sentence, and nothing is loaded -------------------------------------


@pytest.fixture
def cuda_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A torch for CUDA and a torch_npu that registers names, as far as their files are looked at;
    returns torch_npu's folder. No compiler; nothing compiled."""
    torch, torch_npu = tmp_path / "torch", tmp_path / "torch_npu"
    (torch_npu / "lib").mkdir(parents=True)
    torch.mkdir()
    (torch / "libc10.so").write_text(f"...{allocator_keys.FUNCTION}...")
    (torch / "libc10_cuda.so").touch()
    (torch_npu / "lib" / "libtorch_npu.so").touch()
    monkeypatch.setattr(allocator_keys, "torch_libraries", lambda: torch)
    wanted = {allocator_keys.FUNCTION}
    monkeypatch.setattr(library, "undefined_symbols", lambda path: wanted)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("DSV3_HOSTNPU_CACHE", str(tmp_path / "cache"))
    return torch_npu


def test_no_compiler(cuda_build: Path) -> None:
    reason = allocator_keys.why_not(cuda_build)
    assert reason.startswith("this torch is a build for cuda, which registers allocator settings")
    assert "install g++" in reason
    assert "--index-url https://download.pytorch.org/whl/cpu torch==" in reason
    with pytest.raises(PortError, match="needs a C\\+\\+ compiler"):
        allocator_keys.prepare(cuda_build)


def test_with_a_compiler_nothing_is_in_the_way(
    cuda_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "true")
    assert allocator_keys.why_not(cuda_build) == "" and allocator_keys.clash(cuda_build)


def test_a_libc10_without_the_function(cuda_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "true")
    (cuda_build.parent / "torch" / "libc10.so").write_text("another C++ library's strings")
    reason = allocator_keys.why_not(cuda_build)
    assert f"has no {allocator_keys.FUNCTION}" in reason and "whl/cpu torch==" in reason
    with pytest.raises(PortError, match="use the CPU build"):
        allocator_keys.prepare(cuda_build)


def test_a_torch_npu_that_registers_nothing(
    cuda_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "undefined_symbols", lambda path: {"aclInit"})
    allocator_keys._registers.cache_clear()
    assert allocator_keys.clash(cuda_build) == allocator_keys.why_not(cuda_build) == ""


@pytest.mark.parametrize("content", [b"", b"\x7fELF\x02\x01", None])
def test_a_broken_torch_npu_is_no_clash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    """Its import fails by itself, and says why; the doctor goes on."""
    monkeypatch.setattr(allocator_keys, "other_device", lambda: "cuda")
    (tmp_path / "lib").mkdir()
    if content is not None:
        (tmp_path / "lib" / "libtorch_npu.so").write_bytes(content)
    assert allocator_keys.clash(tmp_path) == allocator_keys.why_not(tmp_path) == ""


@pytest.mark.parametrize("device", ["cuda", ""])
def test_a_compiler_that_fails(
    cuda_build: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Fatal where the names clash; a CPU build of torch does without."""
    monkeypatch.undo()  # the real torch
    monkeypatch.setenv("DSV3_HOSTNPU_CACHE", str(cuda_build.parent / "cache"))
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setattr(allocator_keys, "clash", lambda torch_npu: device and "they clash")
    if device:
        with pytest.raises(
            PortError, match="they clash, and they cannot be kept apart .*not compile"
        ):
            allocator_keys.prepare(cuda_build)
    else:
        with allocator_keys.prepare(cuda_build):
            pass
    assert list((cuda_build.parent / "cache").iterdir()) == []


def test_status_says_it_before_anything_is_loaded(
    cuda_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hostnpu.enabled():
        pytest.skip("enabled in this process already")
    monkeypatch.setattr(library, "supported_platform", lambda: "")
    monkeypatch.setattr(hostnpu.cann, "installed", lambda: None)
    monkeypatch.setattr(library, "is_built", lambda torch_npu: True)
    monkeypatch.setattr(hostnpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(hostnpu, "find", lambda: cuda_build.parent)
    assert "needs a C++ compiler" in hostnpu.why_not() == hostnpu.status().reason
    with pytest.raises(PortError, match="whl/cpu"):
        hostnpu.enable()
    assert library._loaded is None and hostnpu._failure == ""


@needs_compiler
def test_todays_torch_has_these_names(tmp_path: Path) -> None:
    """OWN is what libc10 puts in itself: none of them may stand aside."""
    code = f"import torch\n{NAMES}print(*sorted(names()))"
    found = set(forked(code).split())
    assert found >= allocator_keys.OWN
    if not allocator_keys.other_device():
        assert found == allocator_keys.OWN


def test_two_folders_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """conda-forge keeps torch's libraries in the environment's lib."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libc10.so").touch()
    (tmp_path / "lib" / "libc10_hip.so").touch()
    spec = type("Spec", (), {"origin": str(tmp_path / "site-packages" / "torch" / "__init__.py")})
    monkeypatch.setattr(allocator_keys.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(allocator_keys.sys, "prefix", str(tmp_path))
    assert allocator_keys.torch_libraries() == tmp_path / "lib"
    assert allocator_keys.other_device() == "hip"
    monkeypatch.setattr(allocator_keys.importlib.util, "find_spec", lambda name: None)
    assert allocator_keys.torch_libraries() is None and allocator_keys.other_device() == ""


def test_the_compiled_functions_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSV3_HOSTNPU_CACHE", str(tmp_path))
    if allocator_keys.compiler() is None:
        pytest.skip("no C++ compiler here")
    first = allocator_keys.build()
    monkeypatch.setattr(subprocess, "run", None)  # nothing is compiled again
    assert allocator_keys.build() == first and first.is_file()
