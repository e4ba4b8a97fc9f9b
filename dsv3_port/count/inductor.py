"""What inductor made of a graph: the source it generated, and the kernels that one call of it runs."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from unittest import mock

_CALL = re.compile(
    r"^\s+(?:\w+ = )?"
    r"(?:((?:cpp|triton)_\w+)(?:\.run)?|extern_kernels\.(\w+)|torch\.ops\.(\S+?))\(",
    re.M,
)


def generated_kernels(code: str) -> dict[str, int]:
    """Kernel launches in one call of inductor's generated code: its own fused loops, and calls into
    libraries."""
    found: Counter[str] = Counter()
    for own, extern, op in _CALL.findall(code):
        found["fused kernel" if own else extern or op.removesuffix(".default")] += 1
    return dict(found.most_common())


@contextlib.contextmanager
def generated_code() -> Iterator[list[str]]:
    """Collects the source that inductor generates (or finds in its cache) within it: one text for
    every graph."""
    from torch._inductor.graph import GraphLowering

    texts: list[str] = []
    with mock.patch.object(GraphLowering, "save_output_code", texts.append):
        yield texts
