"""What an NVIDIA GPU was doing while it was timed: clocks, power and their limits, by nvidia-smi."""

from __future__ import annotations

import shutil
import subprocess

import torch

# nvidia-smi's names; each is kept under its own, with its unit
QUERY = (
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "clocks.max.mem",
    "power.draw",
    "power.limit",
    "power.default_limit",
    "temperature.gpu",
    "pstate",
)


def gpu_state(device: str) -> dict[str, str]:
    """nvidia-smi's name -> value with unit; one entry "unknown" where it cannot be asked."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {"unknown": "no nvidia-smi on the path"}
    words = [
        tool,
        f"--query-gpu={','.join(QUERY)}",
        "--format=csv,noheader",
        "-i",
        _identity(device),
    ]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"unknown": f"nvidia-smi: {type(error).__name__}"}
    values = [v.strip() for v in done.stdout.strip().split(",")]
    if len(values) != len(QUERY):
        return {"unknown": "nvidia-smi answered in another form"}
    return dict(zip(QUERY, values, strict=True))


def _identity(device: str) -> str:
    """The card's UUID, as torch's numbers need not be nvidia-smi's (CUDA_VISIBLE_DEVICES)."""
    index = torch.device(device).index or 0
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    return f"GPU-{uuid}" if uuid else str(index)
