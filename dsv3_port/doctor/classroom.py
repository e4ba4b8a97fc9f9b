"""Is this machine ready for a course in a room: `dsv3-port doctor --room`, on every learner's
machine, the day before.

Beyond what the doctor looks at, everything is tried that the notebooks do: text from the embedded
model, a kernel, a compiled function, two ranks that meet. Nothing asks the net, so a machine that
passes here works without one.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

from ..engine.settings import environment
from ..errors import PortError
from ..messages import N_, tr
from ..steps import TOLERANCE
from .findings import FAIL, OK, WARN, Check

MEMORY_GIB, CORES = 4.0, 2
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


def memory_and_cores() -> Check:
    """The largest notebook needs about 2 GiB beside the browser and JupyterLab."""
    import psutil

    free, cores = (
        psutil.virtual_memory().available / 2**30,
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )
    name = N_("memory and cores")
    detail = tr("{free:.1f} GiB free, {cores} cores").format(free=free, cores=cores)
    if free < MEMORY_GIB or cores < CORES:
        remedy = tr(
            "{size:g} GiB and {cores} cores are wanted: close other programs, or let two learners share a "
            "machine"
        )
        return Check(name, WARN, detail, remedy.format(size=MEMORY_GIB, cores=CORES))
    return Check(name, OK, detail)


def text() -> Check:
    """The embedded model in the full port continues a prompt; nothing of it is downloaded."""
    from ..engine.generate import generate
    from ..engine.loading import load_model
    from ..engine.tokenizer import load_tokenizer
    from ..paths import tiny
    from ..plan import PortPlan

    name, folder = N_("text"), tiny()
    model = load_model(folder, PortPlan.full(), "cpu", "float32")
    said = generate(model, load_tokenizer(folder), ["Once upon a time"], 24)[0].text
    if "." not in said:
        odd = tr("the embedded model says {text!r}").format(text=said)
        return Check(name, FAIL, odd, tr("clone again: its weights differ"))
    return Check(name, OK, f"Once upon a time{said.split('.')[0]}.")


def kernel() -> Check:
    """A Jupyter kernel of this Python starts and answers; a firewall on the loopback address stops
    exactly this."""
    from jupyter_client.manager import KernelManager

    name = N_("kernel")
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(extra_arguments=["--log-level=ERROR"])
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        reply = client.execute_interactive("import dsv3_port", timeout=60, store_history=False)
        if reply["content"]["status"] != "ok":
            raised = f"{reply['content']['ename']}: {reply['content']['evalue']}"
            remedy = tr(
                "start JupyterLab by `python3 ci/run.py lab`, which uses this environment's kernel"
            )
            return Check(name, FAIL, raised, remedy)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return Check(name, OK, tr("starts, imports dsv3_port and answers"))


def compiled() -> Check:
    """A step of the embedded model becomes a graph and gives the eager logits, as in notebooks 07,
    08 and 10."""
    import torch

    from ..engine.graph import compile_steps
    from ..engine.loading import load_model
    from ..paths import tiny
    from ..plan import PortPlan

    model = load_model(tiny(), PortPlan.full(), "cpu", "float32")
    ids, start = torch.tensor([[5]]), time.perf_counter()
    want = model(ids, cache=model.new_cache(1, 8))
    got = compile_steps(model)(ids, cache=model.new_cache(1, 8))
    off = float((got - want).abs().max() / want.abs().max())
    if off > TOLERANCE["float32"]:
        wrong = tr("logits are off by {off:.0e}").format(off=off)
        return Check("torch.compile", FAIL, wrong, tr("install the torch of ci/constraints.txt"))
    made = tr("a step as one graph, {seconds:.0f} s")
    return Check("torch.compile", OK, made.format(seconds=time.perf_counter() - start))


def ranks() -> Check:
    """Two processes meet on the loopback address, as notebooks 01 and 09 need."""
    from ..engine.launch import run_ranks

    said = run_ranks(_rank_number, 2, timeout_seconds=60)
    return Check(
        N_("two ranks"),
        OK if said == [0, 1] else FAIL,
        tr("ranks {ranks} met over gloo").format(ranks=said),
        "" if said == [0, 1] else tr("please report this"),
    )


def _rank_number(parallel: object) -> int:
    import torch.distributed as dist

    dist.barrier()
    return int(getattr(parallel, "rank"))  # noqa: B009


def proxies() -> Check:
    """A proxy that also takes loopback addresses makes JupyterLab in the browser wait for ever."""
    title = N_("proxy")
    named = [name for name in PROXIES if environment(name)]
    kept = (environment("no_proxy") or environment("NO_PROXY") or "").split(",")
    if named and not {"localhost", "127.0.0.1", "*"} & {word.strip() for word in kept}:
        set_so = tr("{variables} set, and no_proxy does not name 127.0.0.1")
        remedy = tr("export no_proxy=localhost,127.0.0.1 (and in the browser's settings)")
        return Check(title, WARN, set_so.format(variables=", ".join(named)), remedy)
    return Check(title, OK, tr("loopback addresses are not sent to one"))


def ports() -> Check:
    """JupyterLab takes the next free port from 8888 on."""
    name = N_("port 8888")
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 8888))
        except OSError:
            used = tr("is in use: JupyterLab takes another and prints its address")
            remedy = tr("end the other server, or read the address that JupyterLab prints")
            return Check(name, WARN, used, remedy)
    return Check(name, OK, tr("is free"))


def prepared() -> Check:
    """The random weights that notebooks time; 25 learners who make them at once start late, so this
    makes them."""
    from ..weights.synthetic import synthetic_checkpoint

    there = tr("random weights are in {folder}").format(folder=synthetic_checkpoint("w1"))
    return Check(N_("timing model"), OK, there)


CHECKS: tuple[tuple[str, Callable[[], Check]], ...] = (
    ("memory and cores", memory_and_cores),
    ("text", text),
    ("kernel", kernel),
    ("torch.compile", compiled),
    ("two ranks", ranks),
    ("proxy", proxies),
    ("port 8888", ports),
    ("timing model", prepared),
)


def checks() -> list[Check]:
    """All of them, in order; one that raises is a FAIL with what it said."""
    found = []
    for name, check in CHECKS:
        try:
            found.append(check())
        except PortError as error:
            found.append(Check(name, FAIL, str(error), "notebooks/workshop/troubleshooting.md"))
        except Exception as error:  # a check that falls over is a finding
            said = next(iter(str(error).splitlines()), "")[:200]
            found.append(
                Check(
                    name,
                    FAIL,
                    f"{type(error).__name__}: {said}",
                    tr("the doctor's other lines may say why"),
                )
            )
    return found
