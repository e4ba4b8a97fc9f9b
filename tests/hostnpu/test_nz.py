"""W8A8 over two ranks of the host NPU: matrices in FRACTAL_NZ give the bits that those in ND give, in every
mode, and from a folder of int8 in either format."""

from __future__ import annotations

import json
from pathlib import Path

from dsv3_port import PortPlan
from dsv3_port.weights.int8_formats import FORMATS
from dsv3_port.weights.sharding import shard_checkpoint

from .nz_ranks import MODES, TINY
from .processes import needs_torch_npu, output

RANKS = """
import json
import dsv3_port.hostnpu as h
from dsv3_port.engine.launch import run_ranks
from tests.hostnpu import nz_ranks
h.enable()
print(json.dumps(run_ranks(nz_ranks.formats, 2, {folders!r}, device='npu')))
"""


@needs_torch_npu
def test_two_ranks(tmp_path: Path) -> None:
    folders = {form: str(tmp_path / form) for form in FORMATS}
    for form, folder in folders.items():
        plan = PortPlan.full().replace(quant="w8a8")
        shard_checkpoint(TINY, folder, 2, plan=plan, quant_format=form)
    found = json.loads(output(RANKS.format(folders=folders)).splitlines()[-1])
    assert found == [dict.fromkeys((*MODES, *FORMATS), True)] * 2
