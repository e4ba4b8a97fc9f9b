"""pytest on the host NPU: `pytest -p dsv3_port.hostnpu.pytest_plugin`, before any test or conftest
is imported."""

from __future__ import annotations

import os
from typing import Any

import pytest

from ..errors import PortError
from . import CARDS, DEVICE_NAME, devices, enable
from .program import environment


def pytest_addoption(parser: Any) -> None:
    group = parser.getgroup("host NPU", "torch_npu without an NPU")
    group.addoption("--hostnpu-soc", metavar="CHIP", help="what torch_npu is told, such as 910B4")
    group.addoption("--hostnpu-devices", type=int, default=CARDS, metavar="N", help="cards to see")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: Any) -> None:
    options = early_config.known_args_namespace
    try:
        os.environ.update(environment(options.hostnpu_soc, options.hostnpu_devices))
        enable(options.hostnpu_devices)
    except PortError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_report_header() -> str:
    import torch_npu

    return (
        f"host NPU: torch_npu {torch_npu.__version__} on the {DEVICE_NAME}, {devices()} x "
        f"{torch_npu.npu.get_device_name(0)}; no time taken here is a time of an NPU"
    )
