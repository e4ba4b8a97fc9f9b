"""What the ranks of test_collectives.py do."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dsv3_port import PortPlan, load_model
from dsv3_port.count.captured import first_layers
from dsv3_port.engine.graph import compile_steps, converted_graphs
from dsv3_port.errors import PortError
from dsv3_port.parallel import SINGLE, TensorParallel, all_gather

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"


def collectives(parallel: TensorParallel) -> dict[str, Any]:
    rank, size = parallel.rank, parallel.world_size
    x = torch.full((2,), float(rank + 1), device="npu")
    maximum, root, number = x.clone(), x.clone(), torch.tensor([rank + 1], device="npu")
    dist.all_reduce(maximum, dist.ReduceOp.MAX)
    dist.all_reduce(number)
    dist.broadcast(root, 1)
    listed = [torch.empty_like(x) for _ in range(size)]
    dist.all_gather(listed, x)
    gathered = x.new_empty(2 * size)
    all_gather(gathered, x)
    assert gathered.tolist() == torch.cat(listed).tolist()
    part, sent = x.new_empty(1), x.new_empty(2)
    scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
    scatter(part, torch.arange(2.0, device="npu") * (rank + 1))
    dist.all_to_all_single(sent, torch.arange(2.0, device="npu") + 10 * rank)
    dist.barrier()
    return {
        "device": str(x.device),
        "backend": dist.get_backend(),
        "all_reduce": parallel.all_reduce(x.clone()).tolist(),
        "maximum": maximum.tolist(),
        "all_gather_last": parallel.all_gather_last(x.view(1, 2)).tolist(),
        "all_gather": [t.tolist() for t in listed],
        "broadcast": root.tolist(),
        "int64": number.tolist(),
        "reduce_scatter": part.tolist(),
        "all_to_all": sent.tolist(),
    }


def others(parallel: TensorParallel) -> dict[str, Any]:
    """The collectives beyond those of the port: two ranks."""
    rank, peer = parallel.rank, 1 - parallel.rank
    mine = torch.arange(4.0, device="npu") + 10 * rank
    reduced, part, received = (
        mine.clone(),
        torch.empty(2, device="npu"),
        torch.empty(4, device="npu"),
    )
    dist.reduce(reduced, 1, dist.ReduceOp.SUM)
    parts = [torch.full((2,), float(n), device="npu") for n in (5, 6)]
    dist.scatter(part, parts if rank == 0 else None, 0)
    if rank == 0:
        dist.send(mine, 1)
    else:
        dist.recv(received, 0)
    swapped = torch.empty(4, device="npu")
    operations = [dist.P2POp(dist.isend, mine, peer), dist.P2POp(dist.irecv, swapped, peer)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    counts = [[1, 3], [2, 2]]  # from each rank to each rank
    uneven = torch.empty(sum(row[rank] for row in counts), device="npu")
    dist.all_to_all_single(uneven, mine, [row[rank] for row in counts], counts[rank])
    listed = [torch.empty(2, device="npu") for _ in range(2)]
    dist.all_to_all(listed, [mine[:2].clone(), mine[2:].clone()])
    return {
        "reduce": reduced.tolist(),
        "scatter": part.tolist(),
        "recv": received.tolist() if rank else [],
        "batch": swapped.tolist(),
        "uneven": uneven.tolist(),
        "listed": [t.tolist() for t in listed],
    }


def tokens(parallel: TensorParallel, mode: str = "eager") -> list[int]:
    """Eight greedy tokens of the embedded model's first two layers, a dense one and one of experts."""
    plan = PortPlan.full().replace(graph="eager")
    model = compile_steps(first_layers(load_model(TINY, plan, "npu", "float32", parallel), 2), mode)
    ids = torch.arange(3, 12, device="npu")[None]
    cache = model.new_cache(1, 32)
    found = []
    token = model(ids, torch.ones_like(ids), cache)[:, -1:].argmax(-1)
    for _ in range(8):
        found.append(int(token))
        token = model(token, cache=cache)[:, -1:].argmax(-1)
    return found


def one() -> list[int]:
    return tokens(SINGLE)


def eager_and_graph(parallel: TensorParallel) -> dict[str, Any]:
    """The same eagerly and from the converted GE graphs, interpreted; the collectives in the decode
    graph."""
    os.environ["DSV3_GE_ENGINE"] = "interpret"
    with converted_graphs() as found:
        both = {"eager": tokens(parallel), "graph": tokens(parallel, "ge")}
    kinds = Counter(op.type for op in found[-1].op if op.type.startswith("Hcom"))
    return both | {"collectives": dict(kinds), "graphs": len(found)}


def everything(parallel: TensorParallel, folder: str) -> None:
    """All of the above by the same ranks, written to folder/RANK.json; then the second one fails while
    the first waits for it."""
    found = {
        "collectives": collectives(parallel),
        "others": others(parallel),
        "model": eager_and_graph(parallel),
    }
    Path(folder, f"{parallel.rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    if parallel.rank == 1:
        raise PortError("the second rank has had enough")
    parallel.all_reduce(torch.ones(1, device="npu"))
