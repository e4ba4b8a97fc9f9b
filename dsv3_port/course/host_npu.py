"""The host NPU in a notebook: its banner, or why that part of the page is left out."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..bench.profiler import no_stderr
from ..errors import PortError
from ..messages import tr
from .show import Shown, banner


@dataclass(frozen=True)
class HostNpu(Shown):
    """What `host_npu` shows; true where the host NPU is there."""

    ready: bool = False

    def __bool__(self) -> bool:
        return self.ready


def host_npu() -> HostNpu:
    """Enable the host NPU for a notebook: its banner, or one sentence why that part is left out
    here."""
    from .. import hostnpu

    try:
        hostnpu.enable()
        with no_stderr():  # the allocator's first call writes a line about padding, past Python
            torch.empty(1, device="npu")
        _hide_torchairs_warnings()
    except PortError as error:
        left_out = tr("The part of this page that runs on the host NPU is left out here: {why}.")
        return HostNpu("", left_out.format(why=error))
    shown = banner("host-npu")
    return HostNpu(shown.html, shown.markdown, True)


def _hide_torchairs_warnings() -> None:
    """At every compilation: that weights must keep their address, which they do. torchair puts a
    filter of its own in front of everybody's, so a filter does not keep them off the page."""
    show = warnings.showwarning

    @functools.wraps(show)
    def others(message: Any, category: Any, filename: str, *args: Any, **kwargs: Any) -> None:
        if "torch_npu" not in Path(filename).parts:
            show(message, category, filename, *args, **kwargs)

    if not hasattr(show, "__wrapped__"):
        warnings.showwarning = others
