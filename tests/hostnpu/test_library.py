"""Building the stand-in: the ELF reader, the generated library, and the sentences where it cannot
be built."""

from __future__ import annotations

import ast
import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3_port import hostnpu
from dsv3_port.errors import PortError
from dsv3_port.hostnpu import cann, library

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or library.compiler() is None, reason="no C compiler here"
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A torch_npu in miniature: one library that wants a few of CANN's functions."""
    folder = tmp_path / "torch_npu"
    (folder / "lib").mkdir(parents=True)
    (folder / "version.py").write_text("__version__ = '2.13.0'\n")
    source = tmp_path / "wants.c"
    source.write_text(
        "int aclFinalize(void); int aclrtMalloc(void**, long, int); int getenv_s(void); int own(void);\n"
        "extern int maybe(void) __attribute__((weak));\n"
        "int own(void) { return aclFinalize() + aclrtMalloc(0, 0, 0) + getenv_s() + maybe(); }\n"
    )
    subprocess.run(
        [
            str(library.compiler()),
            "-shared",
            "-fPIC",
            "-o",
            folder / "lib" / "libtorch_npu.so",
            source,
        ],
        check=True,
    )
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSV3_HOSTNPU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@needs_compiler
def test_undefined_symbols(package: Path) -> None:
    found = library.undefined_symbols(package / "lib" / "libtorch_npu.so")
    assert {"aclFinalize", "aclrtMalloc", "getenv_s"} <= found and not found & {"own", "maybe"}
    with pytest.raises(PortError, match="not a 64-bit ELF"):
        library.undefined_symbols(package / "version.py")


@needs_compiler
def test_generated_library_has_what_is_wanted(package: Path, cache: Path) -> None:
    source = library.generate(package)
    assert "API long aclFinalize()" in source and "API long aclrtMalloc()" not in source
    assert library.WANTED.match("aclFinalize") and not library.WANTED.match("getenv")
    folder = library.build(package)
    assert library.is_built(package) and folder.parent == cache
    code = (
        f"import ctypes\nfor name in {library.SONAMES!r}:\n"
        f"    lib = ctypes.CDLL({str(folder)!r} + f'/lib{{name}}.so', mode=ctypes.RTLD_GLOBAL)\n"
        "n = ctypes.c_uint32(); lib.hostcann_set_devices(5); lib.aclrtGetDeviceCount(ctypes.byref(n))\n"
        "lib.aclGetRecentErrMsg.restype = ctypes.c_char_p\n"
        "print(n.value, lib.aclFinalize(), lib.aclrtMemcpy(0, 1, 0, 2, 0), lib.aclopCompileAndExecute(b'Sort'), "
        "lib.aclGetRecentErrMsg().decode())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.startswith("5 0 107000 500002 the host stand-in has no kernel for the operator Sort")


@needs_compiler
def test_built_once_and_again_when_anything_changes(package: Path, cache: Path) -> None:
    folder = library.build(package)
    stamp = (folder / "libascendcl.so").stat().st_mtime_ns
    assert (
        library.build(package) == folder and (folder / "libascendcl.so").stat().st_mtime_ns == stamp
    )
    (package / "version.py").write_text("__version__ = '2.14.0'\n")
    assert not library.is_built(package) and library.build(package) != folder
    assert sorted(p.name for p in cache.iterdir()) == sorted(
        {folder.name, library.cache_folder(package).name}
    )


@needs_compiler
def test_a_compiler_that_fails_leaves_nothing(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(PortError, match="does not compile: false"):
        library.build(package)
    assert list(cache.iterdir()) == [] and not library.is_built(package)


@needs_compiler
def test_no_compiler(package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(PortError, match="no C compiler .* install gcc"):
        library.build(package)


@needs_compiler
def test_cache_that_cannot_be_written(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DSV3_HOSTNPU_CACHE", str(tmp_path / "file"))
    with pytest.raises(PortError, match="DSV3_HOSTNPU_CACHE may name another folder"):
        library.build(package)


def test_parts_missing_from_torch_npu(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="libtorch_npu.so: missing from torch_npu"):
        library.cache_folder(tmp_path)


# ---- why_not -------------------------------------------------------------------------------------


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supported machine without CANN, whatever this one is."""
    monkeypatch.setattr(library, "supported_platform", lambda: "")
    monkeypatch.setattr(cann, "installed", lambda: None)
    monkeypatch.setattr(hostnpu.importlib.util, "find_spec", lambda name: None)


def test_other_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.platform, "system", lambda: "Darwin")
    assert hostnpu.why_not().startswith(
        "torch_npu is built for Linux on x86_64 and aarch64 only, and this is Darwin"
    )
    with pytest.raises(PortError, match="Darwin"):
        hostnpu.enable()
    assert not hostnpu.enabled()


def test_cann_is_never_shadowed(linux: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cann, "installed", lambda: "/usr/lib/libascendcl.so")
    assert "the stand-in is never loaded" in hostnpu.why_not()
    with pytest.raises(PortError, match="CANN is installed"):
        hostnpu.enable()


def test_torch_npu_in_the_environment(linux: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        hostnpu.importlib.util, "find_spec", lambda name: object() if name == "torch_npu" else None
    )
    assert "pip uninstall torch-npu" in hostnpu.why_not()


def test_not_installed(linux: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(hostnpu.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr("dsv3_port.hostnpu.install.places", lambda version: [tmp_path])
    assert "`dsv3-port hostnpu install`" in hostnpu.why_not()
    assert hostnpu.status() == hostnpu.Status(False, hostnpu.why_not(), "", "", False)


def test_loaded_before_enable() -> None:
    if not hostnpu.enabled():
        with pytest.raises(RuntimeError, match="enable"):
            library.loaded()
    assert ctypes.sizeof(ctypes.c_void_p) == 8


def test_where_cann_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that its set_env.sh exports, or the installer's place; a folder without the
    library is CANN too."""
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME", raising=False)
    monkeypatch.setattr(cann, "on_loader_path", lambda name: None)
    monkeypatch.setattr(cann, "CANN_HOMES", (str(tmp_path / "nowhere"),))
    assert cann.installed() is None
    monkeypatch.setattr(cann, "CANN_HOMES", (str(tmp_path),))
    assert cann.installed() == str(tmp_path) and cann.ascendcl() is None
    (tmp_path / "variable" / "lib64").mkdir(parents=True)
    (tmp_path / "variable" / "lib64" / "libascendcl.so").touch()
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path / "variable"))
    assert (
        cann.installed()
        == cann.ascendcl()
        == str(tmp_path / "variable" / "lib64" / "libascendcl.so")
    )


def test_the_loader_s_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without starting anything: LD_LIBRARY_PATH, the loader's cache, its folders; what the cache
    still names and is gone does not count."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    cache = tmp_path / "ld.so.cache"
    monkeypatch.setattr(cann, "LOADER_CACHE", cache)
    monkeypatch.setattr(cann, "LOADER_FOLDERS", (str(tmp_path / "c"),))
    monkeypatch.setenv("LD_LIBRARY_PATH", f":{tmp_path / 'a'}:")
    assert cann.on_loader_path("hccl") is None
    (tmp_path / "c" / "libhccl.so").touch()
    assert cann.on_loader_path("hccl") == str(tmp_path / "c" / "libhccl.so")
    cached = tmp_path / "b" / "libhccl.so"
    cache.write_bytes(b"glibc-ld.so.cache1.1\0libhccl.so\0" + str(cached).encode() + b"\0libx.so\0")
    assert cann.on_loader_path("hccl") == str(tmp_path / "c" / "libhccl.so")
    cached.touch()
    assert cann.on_loader_path("hccl") == str(cached)
    (tmp_path / "a" / "libhccl.so").touch()
    assert cann.on_loader_path("hccl") == str(tmp_path / "a" / "libhccl.so")


def test_beside_a_gpu(linux: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch_npu refuses a second kind of accelerator; nothing is loaded before that is said."""
    if hostnpu.enabled():
        pytest.skip("enabled in this process already")
    monkeypatch.setattr(hostnpu, "_folder", lambda: tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(PortError, match="sees a GPU.*CUDA_VISIBLE_DEVICES="):
        hostnpu.enable()
    assert library._loaded is None and hostnpu._failure == ""


# ---- the rest of the suite, and the house --------------------------------------------------------


def test_elsewhere_the_tests_are_skipped_and_say_why() -> None:
    """As on macOS: what needs torch_npu is not run, and nothing fails."""
    code = (
        "import platform, sys, torch, pytest\nplatform.system = lambda: 'Darwin'\n"
        "sys.exit(pytest.main(['-q', '-rs', '-p', 'no:cacheprovider', 'tests/hostnpu/test_collectives.py', "
        "'tests/hostnpu/test_inside.py', 'tests/hostnpu/test_enable.py']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
    assert (
        "no host NPU here: torch_npu is built for Linux on x86_64 and aarch64 only, and this is Dar"
        in done.stdout
    )


def test_imports_run_downwards() -> None:
    """The house: hostnpu stands on ops and errors, and on nothing above."""
    for file in Path(library.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 2:
                assert (node.module or "").split(".")[0] in ("errors", "ops"), (
                    f"{file.name}:{node.lineno}"
                )
            assert not (
                isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dsv3_port")
            ), file.name
