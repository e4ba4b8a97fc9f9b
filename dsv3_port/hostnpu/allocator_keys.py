"""torch_npu beside a CUDA build of torch: both register allocator settings of the same names.

libc10 keeps the names of all allocator settings in one set, to which each device's library adds its
own while it is loaded. A name that is there already is a C++ exception, from a place where nobody
catches it: the process aborts ("Duplicated key 'pinned_reserve_segment_size_mb'"). Seen with
torch_npu 2.12, 2.13 and 2.14 beside libc10_cuda. So while torch_npu is imported, what other devices
have added stands aside; afterwards the set holds the names of both.

Why in C++, with the set's own functions: the other way tried, a stand-in that defines the function
itself and hands torch_npu a set of its own, depends on which library the dynamic linker finds first
and on which calls it has bound already (torch's own look-ups go through the same function), and the
names of torch_npu would be missing from torch's set. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from ..errors import PortError
from . import library

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# c10::CachingAllocator::AcceleratorAllocatorConfig::getMutableKeys[abi:cxx11](), the set itself. The
# tag says which std::string it holds; with another one this name is not found, and nothing is called.
FUNCTION = "_ZN3c1016CachingAllocator26AcceleratorAllocatorConfig14getMutableKeysB5cxx11Ev"
# What libc10 puts in itself. No device may register these, so they cannot clash, and they stay: a
# setting of PYTORCH_ALLOC_CONF is looked up among them.
OWN = frozenset(
    """
    expandable_segments garbage_collection_threshold large_segment_size_mb max_non_split_rounding_mb
    max_split_size_mb pinned_max_cached_size_mb pinned_max_round_threshold_mb pinned_use_background_threads
    roundup_power2_divisions
    """.split()
)
SOURCE = """
#undef _GLIBCXX_DEBUG
#define _GLIBCXX_USE_CXX11_ABI 1
#include <string>
#include <unordered_set>
#if !defined(__GLIBCXX__) || !_GLIBCXX_USE_CXX11_ABI
#error torch uses libstdc++ with its C++11 strings, and this is another C++ library
#endif
using Keys = std::unordered_set<std::string>;
using Function = Keys &(*)();
using Each = void (*)(const char *);
extern "C" void keys(Function f, Each each) { for (const auto &key : f()) each(key.c_str()); }
extern "C" void erase(Function f, const char *key) { f().erase(key); }
extern "C" void insert(Function f, const char *key) { f().insert(key); }
"""
_EACH = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


def torch_libraries() -> Path | None:
    """The folder of the installed torch's libraries, found without importing it; None without one."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return None
    places = (Path(spec.origin).parent / "lib", Path(sys.prefix) / "lib")  # pip's, conda-forge's
    return next((p for p in places if (p / "libc10.so").is_file()), None)


def other_device() -> str:
    """The device for which this torch is built beside the CPU: "cuda", "hip", "xpu", or ""."""
    folder = torch_libraries()
    found = sorted(folder.glob("libc10_*.so")) if folder else []
    return found[0].stem.removeprefix("libc10_") if found else ""


def cpu_build() -> str:
    """The command that puts the CPU build of the same torch in place of this one."""
    try:
        version = "==" + metadata.version("torch").split("+")[0]
    except metadata.PackageNotFoundError:
        version = ""
    return f"pip install --force-reinstall --no-deps --index-url {CPU_INDEX} torch{version}"


@functools.lru_cache(maxsize=8)
def _registers(torch_npu: Path) -> bool:
    try:
        return FUNCTION in library.undefined_symbols(torch_npu / "lib" / "libtorch_npu.so")
    except (PortError, OSError, ValueError, struct.error):
        return False  # no library, or a broken one: loading it fails before anything is registered


def clash(torch_npu: Path) -> str:
    """Why `import torch_npu` (the package in this folder) aborts beside this torch, unless `prepare`
    keeps the names apart; "" where nothing clashes."""
    device = other_device()
    if not device or not _registers(torch_npu):
        return ""
    return (
        f"this torch is a build for {device}, which registers allocator settings of the same names as "
        "torch_npu: the process aborts when torch_npu is loaded (Duplicated key ...)"
    )


def why_not(torch_npu: Path) -> str:
    """Why `prepare` cannot keep the names apart here, with what to do; "" where it can, or need not."""
    problem, folder = clash(torch_npu), torch_libraries()
    if not problem or folder is None:
        return ""
    if FUNCTION.encode() not in (folder / "libc10.so").read_bytes():
        return (
            f"{problem}, and {folder / 'libc10.so'} has no {FUNCTION} to keep them apart: use the CPU "
            f"build, {cpu_build()}"
        )
    if not _target().is_dir() and compiler() is None:
        return (
            f"{problem}, and keeping them apart needs a C++ compiler (CXX, g++, clang++ or c++): install "
            f"g++ (Debian, Ubuntu: apt install g++), or use the CPU build, {cpu_build()}"
        )
    return ""


def compiler() -> str | None:
    """The C++ compiler: CXX, or the first of g++, clang++ and c++ on the path."""
    named = os.environ.get("CXX")
    if named:
        return named if shutil.which(named.split()[0]) else None
    return next((c for c in ("g++", "clang++", "c++") if shutil.which(c)), None)


def _target() -> Path:
    return library.cache() / f"allocator-keys-{hashlib.sha256(SOURCE.encode()).hexdigest()[:16]}"


def build() -> Path:
    """The compiled functions, from the cache or made now (a second)."""

    def make(folder: Path) -> None:
        found = compiler()
        if found is None:
            raise PortError("no C++ compiler (CXX, g++, clang++ or c++)")
        (folder / "keys.cpp").write_text(SOURCE, encoding="utf-8")
        library.compile_shared(
            [*found.split(), "-std=c++17"], folder / "keys.cpp", folder / "keys.so"
        )

    return library.once(_target(), make) / "keys.so"


def prepare(torch_npu: Path) -> contextlib.AbstractContextManager[object]:
    """Everything that can fail, before anything is changed: returns the context in which torch_npu
    may be imported beside this torch. PortError says why that is impossible."""
    reason, folder = why_not(torch_npu), torch_libraries()
    if reason:
        raise PortError(reason)
    function = getattr(ctypes.CDLL(str(folder / "libc10.so")), FUNCTION, None) if folder else None
    if function is None:  # a torch of before these names
        return contextlib.nullcontext()
    try:
        helper = ctypes.CDLL(str(build()))
    except (PortError, OSError) as error:
        if problem := clash(torch_npu):
            raise PortError(
                f"{problem}, and they cannot be kept apart ({error}): use the CPU build, {cpu_build()}"
            ) from error
        return contextlib.nullcontext()  # a CPU build: nobody has registered anything
    return _apart(helper, ctypes.cast(function, ctypes.c_void_p))


def names(helper: ctypes.CDLL, function: ctypes.c_void_p) -> set[str]:
    """What is registered in this process."""
    found: list[bytes] = []
    helper.keys(function, _EACH(found.append))
    return {key.decode() for key in found}


@contextlib.contextmanager
def _apart(helper: ctypes.CDLL, function: ctypes.c_void_p) -> Iterator[None]:
    """Inside, the names that other devices have registered are not in the set.

    Which of them clash is known to libtorch_npu alone, until it aborts: so all of them stand aside,
    also for a torch_npu that has other names than today's. Nothing looks a name up meanwhile (seen
    in a debugger: one call, the registration). They are put back, whether the import fails or not;
    one that torch_npu has registered too is then there once, for both.
    """
    aside = sorted(names(helper, function) - OWN)
    for key in aside:
        helper.erase(function, key.encode())
    try:
        yield
    finally:
        for key in aside:
            helper.insert(function, key.encode())
