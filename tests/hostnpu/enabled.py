"""A pytest plugin: enable the host NPU before anything is collected. Not a conftest.py, which
pytest would also load into the ordinary process when it looks through this folder.

    pytest -p tests.hostnpu.enabled tests/hostnpu/inside/check_aten.py
"""

from __future__ import annotations

import os

from dsv3_port import hostnpu

os.environ.setdefault(
    "DSV3_GE_ENGINE", "interpret"
)  # the converted graph itself, wherever a test runs a GE graph
hostnpu.enable()
