"""The C library that stands in for CANN: generate, compile once, preload.

torch_npu links against CANN's libraries, which exist on Ascend machines only. cann_host.c has those
functions whose result somebody looks at; every other name that the installed torch_npu leaves
undefined is read from its ELF files and generated as "return 0". Nothing here imports torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path

from ..errors import PortError
from . import trusted

# one library of one translation unit, in this order
SOURCES = [Path(__file__).with_name(f"cann_{part}.c") for part in ("host", "device", "hccl")]
# libascendcl holds everything. The others are empty and depend on it: dlsym on any of them finds
# the one copy.
SONAMES = (
    "ascendcl",
    "hccl",
    "acl_op_compiler",
    "ge_runner",
    "graph",
    "acl_tdt_channel",
    "fmk_parser",
    "ascend_protobuf",
    "opapi",
    "msprofiler",
    "runtime",
)
# Looked up with dlsym only, so not among the undefined symbols; "return 0" is right for all of
# them.
BY_NAME = """
aclSetCompileopt aclmdlRICaptureThreadExchangeMode aclmdlRIDebugJsonPrint aclmdlRIDebugPrint aclprofSetConfig
aclrtCtxSetSysParamOpt aclrtDestroyStreamForce aclrtDeviceTaskAbort aclrtGetDeviceResLimit aclrtGetLastError
aclrtGetStreamOverflowSwitch aclrtGetStreamResLimit aclrtGetSysParamOpt aclrtHostRegister aclrtHostUnregister
aclrtLaunchCallback aclrtPeekAtLastError aclrtResetStreamResLimit aclrtSetDeviceResLimit aclrtSetDeviceSatMode
aclrtSetOpExecuteTimeOut aclrtSetOpExecuteTimeOutV2 aclrtSetOpWaitTimeout aclrtSetStreamAttribute
aclrtSetStreamFailureMode aclrtSetStreamOverflowSwitch aclrtSetStreamResLimit aclrtSetSysParamOpt aclrtSubscribeReport
aclrtUnSubscribeReport aclrtUnuseStreamResInCurrentThread aclrtUseStreamResInCurrentThread HcclCommWorkingDevNicSet
HcclGroupEnd HcclGroupStart
""".split()
# Not "ge" alone: that would also match getenv.
WANTED = re.compile(
    r"^(acl[A-Za-z]|rt[A-Z]|Hccl|Hcom|Msprof|GE[A-Z]|_ZNK?2ge|_ZNK?6parser|_Z\w*aclgrph|\w+_s$)"
)
ARCHITECTURES = ("x86_64", "aarch64")
_SHT_DYNSYM, _SHN_UNDEF, _STB_GLOBAL = 11, 0, 1
_loaded: ctypes.CDLL | None = None


def supported_platform() -> str:
    """Why this machine can never have the stand-in, or ""."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in ARCHITECTURES:
        return f"torch_npu is built for Linux on {' and '.join(ARCHITECTURES)} only, and this is {system} on {machine}"
    return ""


def compiler() -> str | None:
    """The C compiler: CC, or the first of cc, gcc and clang on the path."""
    named = os.environ.get("CC")
    if named:
        return named if shutil.which(named.split()[0]) else None
    return next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)


def undefined_symbols(path: Path) -> set[str]:
    """Undefined, non-weak dynamic symbols of a 64-bit little-endian ELF file."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise PortError(
            f"{path} is not a 64-bit ELF library: install torch-npu again with `dsv3-port hostnpu install`"
        )
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    # name, type, flags, address, offset, size, link, info, alignment, entry size
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    names = set()
    for section in sections:
        if section[1] != _SHT_DYNSYM:
            continue
        strings = sections[section[6]][4]
        for offset in range(section[4], section[4] + section[5], section[9]):
            name, info, _, index = struct.unpack_from("<IBBH", data, offset)
            if index == _SHN_UNDEF and info >> 4 == _STB_GLOBAL and name:
                start = strings + name
                names.add(data[start : data.index(b"\0", start)].decode())
    return names


def generate(torch_npu: Path) -> str:
    """C source of the whole library for the torch_npu package in this folder."""
    own = "\n".join(source.read_text(encoding="utf-8") for source in SOURCES)
    written = set(re.findall(r"^API [\w ]+?\*?(\w+)\(", own, re.M))
    names = set(BY_NAME)
    for library in sorted(torch_npu.rglob("*.so")):
        if "atb" not in library.name:  # loaded for ATB operators only, and needs more of CANN
            names |= {n for n in undefined_symbols(library) if WANTED.match(n)}
    stubs = [
        f'API long {n}() {{ hostcann_trace("{n}"); return 0; }}' for n in sorted(names - written)
    ]
    return (
        f"{own}\n/* ---- generated: nobody looks at what these return ---- */\n"
        + "\n".join(stubs)
        + "\n"
    )


def cache_folder(torch_npu: Path) -> Path:
    """Where the compiled library for this torch_npu belongs: the folder's name is a key of
    everything it depends on."""
    main = torch_npu / "lib" / "libtorch_npu.so"
    try:
        stamp = f"{torch_npu} {main.stat().st_mtime_ns} {(torch_npu / 'version.py').read_text(encoding='utf-8')}"
    except OSError as error:
        raise PortError(
            f"{error.filename}: missing from torch_npu; install it again with `dsv3-port hostnpu install`"
        ) from error
    digest = hashlib.sha256(stamp.encode())
    for file in (*SOURCES, Path(__file__)):
        digest.update(file.read_bytes())
    return cache() / digest.hexdigest()[:16]


def cache() -> Path:
    """The folder of everything compiled here."""
    base = os.environ.get("DSV3_HOSTNPU_CACHE")
    return Path(base) if base else user_cache_path("dsv3-port") / "hostnpu"


def is_built(torch_npu: Path) -> bool:
    return cache_folder(torch_npu).is_dir()


def build(torch_npu: Path) -> Path:
    """Compile into the cache unless that is done; returns the folder."""

    def make(folder: Path) -> None:
        cc = compiler()
        if cc is None:
            raise PortError(
                "no C compiler (CC, cc, gcc or clang), which the stand-in for CANN is built with: install gcc "
                "(Debian, Ubuntu: apt install gcc)"
            )
        _compile(cc, folder, generate(torch_npu))

    return once(cache_folder(torch_npu), make)


def once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, a folder of the cache, filled by `make` unless it is there. Safe for several
    processes at once: each works in a folder of its own, and the first one to rename it wins.
    PortError where somebody else could have put something there."""
    if target.is_dir():
        trusted.check(target)
        return target
    try:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        trusted.check_owner(target.parent)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix="building-"))
    except OSError as error:
        raise PortError(
            f"{target.parent}: cannot be written ({error.strerror}); DSV3_HOSTNPU_CACHE may name another "
            "folder for the compiled stand-in"
        ) from error
    try:
        make(work)
        trusted.seal(work)
        work.rename(target)
    except OSError:
        if not target.is_dir():  # another process was first: that is fine
            raise
        trusted.check(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def compile_shared(compiler: list[str], source: Path, target: Path, *options: str) -> None:
    """One shared library; PortError with the compiler's words where it does not compile."""
    command = [*compiler, "-shared", "-fPIC", "-O1", "-w", "-o", str(target), str(source), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        message = " ".join(done.stderr.split())[:500]
        raise PortError(
            f"{source.name} of the host NPU does not compile: {' '.join(command[:3])} ... says: {message}"
        )


def _compile(cc: str, folder: Path, source: str) -> None:
    (folder / "cann.c").write_text(source, encoding="utf-8")
    (folder / "empty.c").write_text("", encoding="utf-8")
    for name in SONAMES:
        own = name == SONAMES[0]
        depends = (
            []
            if own
            else ["-Wl,--no-as-needed", f"-L{folder}", f"-l{SONAMES[0]}", "-Wl,-rpath,$ORIGIN"]
        )
        compile_shared(
            cc.split(),
            folder / ("cann.c" if own else "empty.c"),
            folder / f"lib{name}.so",
            f"-Wl,-soname,lib{name}.so",
            *depends,
        )


def preload(torch_npu: Path) -> ctypes.CDLL:
    """Make CANN's library names known to this process's dynamic linker, which finds loaded
    libraries by their soname.

    Must come before torch_npu is imported. Returns the library that holds everything.
    """
    global _loaded
    if _loaded is None:
        folder = build(torch_npu)
        handles = [
            ctypes.CDLL(str(folder / f"lib{name}.so"), mode=ctypes.RTLD_GLOBAL) for name in SONAMES
        ]
        _loaded = handles[0]
    return _loaded


def loaded() -> ctypes.CDLL:
    """The library that `preload` has loaded; a programming error before that."""
    if _loaded is None:
        raise RuntimeError(
            "the stand-in for CANN is not loaded: call dsv3_port.hostnpu.enable() first"
        )
    return _loaded
