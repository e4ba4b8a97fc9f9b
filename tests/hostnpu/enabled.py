"""A pytest plugin: enable the host NPU before anything is collected. Not a conftest.py, which pytest would also load
into the ordinary process when it looks through this folder.

    pytest -p tests.hostnpu.enabled tests/hostnpu/inside/check_aten.py
"""

from __future__ import annotations

from dsv3_port import hostnpu

hostnpu.enable()
