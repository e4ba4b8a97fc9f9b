"""W8A8 over two ranks of the host NPU: matrices in FRACTAL_NZ give the bits that those in ND give."""

from __future__ import annotations

from .nz_ranks import MODES
from .processes import needs_torch_npu, output

RANKS = """
import dsv3_port.hostnpu as h
from dsv3_port.engine.launch import run_ranks
from tests.hostnpu import nz_ranks
h.enable()
print(run_ranks(nz_ranks.formats, 2, device='npu'))
"""


@needs_torch_npu
def test_two_ranks() -> None:
    assert eval(output(RANKS).splitlines()[-1]) == [dict.fromkeys(MODES, True)] * 2
