"""Host NPU: the real torch_npu and torchair on a machine without NPU and CANN, by a stand-in for
CANN's C library.

    import dsv3_port.hostnpu
    dsv3_port.hostnpu.enable()          # once per process, at any time; then device="npu" works

torch_npu's Python and C++ are unmodified: schemas, shape functions, graph capture and conversion
are the real ones. Kernels run on the CPU from the meanings in ops/. Results are exact by the operators'
documents; times, memory limits and the device's own rounding are not simulated, and no time taken
here is a time of an NPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import PortError
from . import allocator_keys, cann, library
from .install import FOLDER_VARIABLE, find, wanted_version

__all__ = [
    "CARDS",
    "DEVICE_NAME",
    "FOLDER_VARIABLE",
    "Status",
    "devices",
    "enable",
    "enabled",
    "own_signals",
    "status",
    "why_not",
]

DEVICE_NAME = "host stand-in"
CARDS = 8  # as many as an Atlas 800 server has
_lock = threading.RLock()
_devices = 0  # 0: not enabled
_failure = ""  # a failure after torch_npu's import began: this process cannot try again


@dataclass(frozen=True)
class Status:
    """What `dsv3-port hostnpu status` shows. `reason`: why it cannot be enabled here, "" where it
    can."""

    enabled: bool
    reason: str
    folder: str  # of torch_npu; "" where there is none
    torch_npu: str  # its version
    compiled: bool


def enabled() -> bool:
    return _devices > 0


def devices() -> int:
    """How many npu devices this process sees; 0 before `enable`."""
    return _devices


def status() -> Status:
    reason = why_not()
    try:
        folder = find()
    except PortError:
        folder = None
    return Status(
        enabled(),
        reason,
        str(folder or ""),
        wanted_version() if folder else "",
        folder is not None and library.is_built(folder / "torch_npu"),
    )


def why_not() -> str:
    """Why `enable` would fail in this process, in one sentence with what to do; "" if it would not."""
    if enabled():
        return ""
    try:
        _folder()
    except PortError as error:
        return str(error)
    return _failure


def _folder() -> Path:
    """torch_npu's folder, after every check that needs no import."""
    reason = library.supported_platform()
    if reason:
        raise PortError(reason)
    place = cann.installed()
    if place:
        raise PortError(
            f"CANN is installed ({place}): device npu is a real NPU here, and the stand-in is never loaded "
            "beside it; install torch_npu as its documentation says"
        )
    if "torch_npu" in sys.modules or importlib.util.find_spec("torch_npu") is not None:
        raise PortError(
            "torch_npu is installed in this environment, where it breaks `import torch` without CANN: pip "
            "uninstall torch-npu, then `dsv3-port hostnpu install` puts it into a folder of its own"
        )
    folder = find()
    if folder is None:
        raise PortError(
            f"torch_npu {wanted_version()} is not there: `dsv3-port hostnpu install` downloads it into a "
            f"folder of its own (150 MB); {FOLDER_VARIABLE} may name a folder that has it"
        )
    if not library.is_built(folder / "torch_npu") and library.compiler() is None:
        raise PortError(
            "no C compiler (CC, cc, gcc or clang), which the stand-in for CANN is built with: install gcc "
            "(Debian, Ubuntu: apt install gcc)"
        )
    reason = allocator_keys.why_not(folder / "torch_npu")
    if reason:
        raise PortError(reason)
    return folder


def enable(devices: int = CARDS) -> None:
    """Make device "npu" exist in this process; nothing happens where that is done already.

    devices: how many; a rank uses one of them. Compiles the stand-in once per machine (about a
    second), loads it, imports torch_npu and puts the host kernels in place. Children enable it
    themselves. PortError says why not.
    """
    global _devices, _failure
    if devices < 1:
        raise PortError(f"hostnpu.enable: devices must be 1 or more, not {devices}")
    with _lock:
        if _devices:
            if devices > _devices:
                raise PortError(
                    f"the host NPU is enabled with {_devices} device(s), which cannot become {devices}: "
                    "ask for them in the first enable() of the process"
                )
            return
        if _failure:
            raise PortError(_failure)
        folder = _folder()
        os.environ.setdefault(
            "TASK_QUEUE_ENABLE", "0"
        )  # no launch thread: kernels run in the caller
        import torch  # before torch_npu can be found, or torch would load it itself

        if torch.cuda.is_available():
            raise PortError(
                "this torch sees a GPU, and torch_npu refuses a second kind of accelerator: start the "
                "process with CUDA_VISIBLE_DEVICES= (empty) to use the host NPU"
            )
        beside_torch = allocator_keys.prepare(folder / "torch_npu")
        library.preload(folder / "torch_npu").hostcann_set_devices(devices)
        try:
            _import(folder, beside_torch)
        except BaseException as error:
            _failure = (
                f"torch_npu in {folder} could not be enabled ({type(error).__name__}: {error}); start a new "
                "process to try again"
            )
            if isinstance(error, Exception):
                raise PortError(_failure) from error
            raise
        _devices = devices


def _import(folder: Path, beside_torch: contextlib.AbstractContextManager[object]) -> None:
    # The folder is on the path during the import only: multiprocessing and inductor hand the path
    # to their children, where `import torch` would find torch_npu without the stand-in and fail.
    sys.path.append(str(folder))
    try:
        # it prints that ASCEND_HOME_PATH is not set, and warns in a notebook of the
        # TASK_QUEUE_ENABLE that enable() set
        with own_signals(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TASK_QUEUE_ENABLE")
            with beside_torch:
                import torch_npu  # noqa: F401
    finally:
        sys.path.remove(str(folder))
    from . import aten, collectives, kernels, launched, on_import, operators, tape

    aten.install()
    operators.install()
    launched.install()
    collectives.install()
    kernels.set_recorder(tape.install())
    on_import.after_import("torch_npu.dynamo.torchair", own_signals, _engine)


def _engine() -> None:
    """torchair is there: what reads and runs GE graphs is imported for it, and not before."""
    from . import graphs

    graphs.install()


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Keep this process's SIGINT and SIGTERM handlers: importing torchair sets some that finalise
    and then ignore the signal, and a notebook could not be interrupted any more."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
