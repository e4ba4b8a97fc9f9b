"""The layout of FRACTAL_NZ that the host NPU gives its tensors, by the definition."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from dsv3_port.hostnpu import formats
from tests.nz_definition import stored

SHAPES = [
    (16, 32),
    (48, 64),
    (1, 1),
    (3, 20),
    (17, 33),
    (31, 100),
    (2, 5, 40),
    (3, 2, 18, 7),
    (1, 576),
]
TYPES = {torch.int8: 32, torch.float16: 16, torch.bfloat16: 16, torch.float32: 16}


def values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """No two neighbours alike, none zero."""
    count = torch.Size(shape).numel()
    return (torch.arange(count) % 125 + 1).view(shape).to(dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_element_lies_where_the_definition_says(shape, dtype) -> None:
    x, c0 = values(shape, dtype), TYPES[dtype]
    found = formats.to_nz(x, c0)
    assert found.is_contiguous() and tuple(found.shape) == formats.stored_shape(shape, c0)
    assert np.array_equal(found.double().numpy(), stored(x.double().numpy(), c0))
    assert torch.equal(formats.from_nz(found, shape), x)


def test_the_sizes_of_the_document() -> None:
    """npu_format_cast's own: int8 (16384, 7168); and a matrix of two bytes with both sizes odd."""
    assert formats.stored_shape((16384, 7168), 32) == (224, 1024, 16, 32)
    found = formats.to_nz(values((3, 20), torch.float16), 16)
    assert found.shape == (2, 1, 16, 16) and found[1, 0, 2, 1] == 2 * 20 + 17 + 1
    assert formats.to_nz(torch.empty(0, 5), 16).shape == (1, 0, 16, 16)


WRONG = {
    "blocks row by row": lambda x, c0: formats.to_nz(x, c0).transpose(-4, -3),
    "fractals column by column": lambda x, c0: formats.to_nz(x, c0).transpose(-2, -1),
    "the matrix not turned": lambda x, c0: formats.to_nz(x.mT, c0),
    "C0 of two bytes for int8": lambda x, c0: formats.to_nz(x, 16),
    "plain order with a tag": lambda x, c0: torch.cat((x.flatten(), x.new_zeros(99999))),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_mutations(name) -> None:
    x = values((48, 70), torch.int8)
    want = stored(x.numpy(), 32).tobytes()
    assert WRONG[name](x, 32).contiguous().flatten()[: len(want)].numpy().tobytes() != want


def test_who_reads_it_is_an_operator_of_ours() -> None:
    """The accepted inputs are those of the schemas, and the refusal names operator and argument."""
    import json
    from pathlib import Path

    schemas = json.loads((Path(__file__).parents[1] / "ops" / "schemas.json").read_text())
    for name, inputs in formats.INPUTS.items():
        if name in schemas:
            assert all(re.search(rf"Tensor(\[\])? {i}\b", schemas[name]) for i in inputs), name
