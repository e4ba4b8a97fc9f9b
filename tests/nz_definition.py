"""FRACTAL_NZ by its definition, with nothing of `dsv3_port`: element by element."""

from __future__ import annotations

import numpy as np


def stored(x: np.ndarray, c0: int) -> np.ndarray:
    """[..., K, N] -> [..., ceil(N / c0), ceil(K / 16), 16, c0], zeros behind K and N; element (r, c) is at
    [c // c0, r // 16, r % 16, c % c0]."""
    *outer, k, n = x.shape
    found = np.zeros((*outer, (n + c0 - 1) // c0, (k + 15) // 16, 16, c0), x.dtype)
    for at in np.ndindex(*outer):
        for r in range(k):
            for c in range(n):
                found[(*at, c // c0, r // 16, r % 16, c % c0)] = x[(*at, r, c)]
    return found
