"""Devices and dtypes by name, and the card that belongs to a process."""

from __future__ import annotations

import torch

from .. import hostnpu
from ..errors import PortError

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """`auto`: npu where torch_npu sees one, else cuda, else cpu. A device that is not there is an
    error.

    `host-npu` enables the package's stand-in for CANN in this process and is device npu from then
    on.
    """
    if isinstance(name, torch.device):
        return name
    if name == "host-npu":
        hostnpu.enable()
        return torch.device("npu")
    has_npu = hasattr(torch, "npu") and torch.npu.is_available()
    if (
        str(name).split(":")[0] == "npu" and not has_npu
    ):  # torch itself does not even know the word without torch_npu
        raise PortError(
            "device 'npu': torch_npu is not loaded or sees no NPU; `dsv3-port doctor` says why. Device "
            "'host-npu' is the real torch_npu on a stand-in for CANN, for machines without an NPU"
        )
    if name == "auto":
        return torch.device("npu" if has_npu else "cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PortError(f"unknown device {name!r}; use auto, cpu, cuda, npu or host-npu") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise PortError("device 'cuda': this torch sees no GPU; use --device cpu")
    if device.type not in ("cpu", "cuda", "npu"):
        raise PortError(f"device {name!r} is not supported; use auto, cpu, cuda, npu or host-npu")
    return device


def pick_dtype(name: str | torch.dtype | None, default: torch.dtype = torch.float32) -> torch.dtype:
    if name is None:
        return default
    if isinstance(name, torch.dtype):
        if name in DTYPES.values():
            return name
    elif name in DTYPES:
        return DTYPES[name]
    raise PortError(f"dtype {name!r} is not supported; use {', '.join(DTYPES)}")


def device_kind(device: str | torch.device) -> str:
    return str(device).split(":")[0]


def synchronize(device: str | torch.device = "cpu") -> None:
    """Wait until the device has finished what was launched; nothing to do on a CPU."""
    kind = device_kind(device)
    if kind in ("cuda", "npu"):
        torch.get_device_module(kind).synchronize()


def use_card(kind: str, index: int, host_npus: int = 0) -> str:
    """Make card `index` this process's own; returns its name for torch. The stand-in belongs to a
    process: `host_npus` is how many it has here, 0 where it is not wanted."""
    if host_npus:
        hostnpu.enable(host_npus)
    if kind == "cpu":
        return kind
    torch.get_device_module(kind).set_device(index)
    return f"{kind}:{index}"


def rank_device(device: str, world_size: int) -> str:
    """Where `world_size` ranks run: `device` if it has a card for each of them, else the CPU."""
    kind = device_kind(device)
    if kind == "cpu" or torch.get_device_module(kind).device_count() < world_size:
        return "cpu"
    return kind


def device_for(name: str, here: int) -> str:
    """The kind of device `name` with a card for each of the `here` ranks of this machine; "auto"
    falls back to the CPU."""
    kind = pick_device(name).type
    if kind == "cpu" or here <= torch.get_device_module(kind).device_count():
        return kind
    if name == "auto":
        return "cpu"
    cards = torch.get_device_module(kind).device_count()
    raise PortError(
        f"{here} ranks on this machine and {cards} {kind} devices: one for each rank is needed"
    )
