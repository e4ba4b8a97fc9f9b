"""Requests that share a batch against each of them alone: the same tokens, in any order of arrival."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import torch

from ..count.rows import RowLog, row_log
from ..engine.continuous import Request, Result
from ..errors import PortError
from ..model.decoder import DeepseekV3


def greedy_alone(model: DeepseekV3, request: Request, stop: Collection[int] = ()) -> list[int]:
    """The request's greedy tokens in a cache of its own, by a loop that knows of no rows."""
    cache = model.new_cache(1, request.positions)
    ids, found = torch.tensor([request.ids], device=model.device), list[int]()
    while True:
        found.append(int(model(ids, cache=cache)[0, -1].argmax()))
        if len(found) == request.max_new_tokens or found[-1] in stop:
            return found
        ids = torch.tensor([found[-1:]], device=model.device)


def require_alone(
    want: Sequence[Sequence[int]], results: Sequence[Result], says: str = "alone"
) -> None:
    """PortError at the first request whose tokens are others than those of it alone."""
    for tokens, result in zip(want, results, strict=True):
        if list(tokens) != result.token_ids:
            pairs = zip(tokens, result.token_ids, strict=False)
            shared = min(len(tokens), len(result.token_ids))
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), shared)
            raise PortError(
                f"request {result.number} in row {result.row}: its token {at} is another one than {says}"
            )


def check_alone(
    alone: DeepseekV3,
    shared: DeepseekV3,
    requests: Sequence[Request],
    slots: int,
    stop: Collection[int] = (),
    orders: int = 4,
    seed: int = 0,
) -> list[RowLog]:
    """Requests through `slots` rows of `shared`, as they are, then in other orders of arrival; what was
    logged of each. PortError at the first that is not what `alone` makes of it."""
    want = {request: greedy_alone(alone, request, stop) for request in requests}
    order, logs = list(requests), []
    for turn in range(orders):
        if turn:
            random.Random(seed + turn).shuffle(order)
        log = row_log(shared, order, slots, stop)
        require_alone([want[r] for r in order], log.results, f"alone (order {turn + 1})")
        logs.append(log)
    return logs
