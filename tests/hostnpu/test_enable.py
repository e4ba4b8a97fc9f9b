"""enable() in a process: when it may be called, what it leaves alone, how the process ends."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from .processes import forked, needs_torch_npu, output, start

pytestmark = needs_torch_npu
ENABLE = (
    "import dsv3_port.hostnpu as h; h.enable(); import torch; x = torch.ones(3, device='npu')\n"
)


def test_after_torch_and_transformers() -> None:
    code = (
        "import torch\nfrom transformers import DeepseekV3ForCausalLM\n"
        + ENABLE
        + """
import sys
print((x + 1).sum().item(), torch.npu.device_count(), h.status().folder in sys.path, 'torchair.core' in sys.modules)
"""
    )
    assert (
        output(code) == "6.0 8 False False"
    )  # its folder does not stay on the path, torchair is imported when needed


def test_what_enable_leaves_for_later() -> None:
    """What reads configurations, what runs GE graphs, the Python objects of several thousand operators:
    a program that uses none of them does not wait for them."""
    code = """
import sys
import dsv3_port.hostnpu as h
from dsv3_port.hostnpu import registry
asked, real = [], registry.overload_of
registry.overload_of = lambda name: asked.append(name) or real(name)
h.enable()
later = ("pydantic", "dsv3_port.config", "dsv3_port.hostnpu.graphs", "dsv3_port.hostnpu.ge", "torchair.core")
print(len(asked) < 10, [name for name in later if name in sys.modules])
import torch
torch.ones(3, device="npu").cosh().cpu()
print("aten::cosh" in asked, len(asked) < 20)
"""
    assert output(code).splitlines() == ["True []", "True True"]


def test_twice_is_once_and_more_devices_are_refused() -> None:
    code = (
        ENABLE
        + """
from dsv3_port.errors import PortError
h.enable(); h.enable(1)
try: h.enable(9)
except PortError as error: print(error)
try: h.enable(0)
except PortError as error: print(error)
print(h.enabled(), h.devices(), repr(h.why_not()))
"""
    )
    lines = forked(code).splitlines()
    assert "cannot become 9" in lines[0] and "1 or more" in lines[1] and lines[2] == "True 8 ''"


def test_compatible_implementations_do_not_end_the_process() -> None:
    """torch_npu then looks up aclrtGetPrimaryCtxState by name; where it is missing the process aborts."""
    code = (
        "import dsv3_port.hostnpu as h; h.enable()\nimport torch, torch_npu\n"
        "torch_npu.npu.use_compatible_impl(True)\n"
        "print((torch.ones(2, device='npu:1') + 1).sum().item(), torch.npu.current_device())"
    )
    assert forked(code) == "4.0 0"


def test_as_many_devices_as_asked_for() -> None:
    code = """
import dsv3_port.hostnpu as h; h.enable(2); import torch
y = torch.ones(2, device='npu:1') * 3
print(torch.npu.device_count(), y.device, y.to('npu:0').device, y.to('npu:0').cpu().tolist())
try: torch.ones(1, device='npu:2')
except RuntimeError as error: print('refused')
"""
    assert forked(code).splitlines() == ["2 npu:1 npu:0 [3.0, 3.0]", "refused"]


def test_transformers_does_not_take_the_machine_for_an_npu() -> None:
    assert (
        forked("from transformers.utils import is_torch_npu_available as a\nprint(a())") == "False"
    )


def test_children_are_clean() -> None:
    """A spawned child inherits the path: torch must not find torch_npu there, which fails without
    the stand-in."""
    code = (
        ENABLE
        + """
import multiprocessing, subprocess, sys
if __name__ == '__main__':
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        print(pool.apply(eval, ("hasattr(__import__('torch'), 'npu')",)))
    print(subprocess.run([sys.executable, '-c', "import torch; print(hasattr(torch, 'npu'))"], capture_output=True,
                         text=True).stdout.strip())
"""
    )
    assert output(code).splitlines() == ["False", "False"]


def test_data_loader_workers() -> None:
    code = (
        ENABLE
        + """
from torch.utils.data import DataLoader
print(sorted(b.npu().sum().item() for b in DataLoader(torch.arange(8.).view(4, 2), batch_size=2, num_workers=2)))
"""
    )
    assert forked(code) == "[6.0, 22.0]"


def test_exit_codes() -> None:
    ends = {"": 0, "raise ValueError('x')": 1, "torch.ops.npu.npu_geglu(x)": 1}
    children = [start(ENABLE + f"y = (x @ x).item()\n{end}") for end in ends]
    for child, code in zip(children, ends.values(), strict=True):
        err = child.communicate(timeout=300)[1]
        assert child.returncode == code, err


TORCHAIR = "import torchair; torchair.CompilerConfig()\n"  # its import sets handlers of its own


def test_interrupt_still_interrupts() -> None:
    # a shell that starts the tests in the background lets them ignore it
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        + ENABLE
        + TORCHAIR
        + """
try:
    print('ready', flush=True)
    while True: x = x * 1
except KeyboardInterrupt:
    print('interrupted', x.sum().item())
"""
    )
    child = ready(start(code))
    child.send_signal(signal.SIGINT)
    try:
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 0 and out.strip() == "interrupted 3.0", err


def test_sigterm_ends_the_process() -> None:
    child = ready(
        start(ENABLE + TORCHAIR + "import time; print('ready', flush=True); time.sleep(600)")
    )
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGTERM


def ready(child: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """The child, once it has printed the word."""
    assert child.stdout is not None
    while "ready" not in child.stdout.readline():
        assert child.poll() is None
    return child


def test_enabled_in_a_thread() -> None:
    code = """
import threading, dsv3_port.hostnpu as h
thread = threading.Thread(target=h.enable); thread.start(); thread.join()
import torch; print(torch.ones(2).npu().sum().item())
"""
    assert forked(code) == "2.0"


def test_two_processes_at_once_with_an_empty_cache(tmp_path: Path) -> None:
    code = ENABLE + "print(x.sum().item())"
    children = [start(code, DSV3_HOSTNPU_CACHE=str(tmp_path)) for _ in range(2)]
    for child in children:
        out, err = child.communicate(timeout=300)
        assert child.returncode == 0 and out.strip() == "3.0", err
    built = [p.name.split("-")[0] for p in tmp_path.iterdir()]  # the stand-in, and maybe keys-...
    assert len(built) == len(set(built)) and "building" not in built


def test_device_host_npu_needs_no_call() -> None:
    code = """
from dsv3_port import load_model
m = load_model('data/tiny-dsv3', device='host-npu')
from dsv3_port.bench.machine import device_info
info = device_info(m.device)
print(m.device.type, info['device_name'], info['tier'])
"""
    assert forked(code) == "npu host stand-in host-npu"
