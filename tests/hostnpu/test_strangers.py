"""A program as others write it, unchanged but for `hostnpu run`: accelerate and peft train on npu:0 what
they train on the CPU, to the last bit."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from .processes import ROOT, needs_torch_npu

MISSING = [n for n in ("accelerate", "peft", "transformers") if not importlib.util.find_spec(n)]
PROGRAM = """
import torch, torch_npu
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)


def losses(cpu):
    torch.manual_seed(0)
    accelerator = None if cpu else Accelerator()
    config = LlamaConfig(**SIZES, vocab_size=128, attn_implementation="eager")
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(LlamaForCausalLM(config), lora)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.arange(24).view(2, 12)
    if accelerator is not None:
        model, optimizer = accelerator.prepare(model, optimizer)
        ids = ids.to(accelerator.device)
        assert ids.device.type == "npu"
    found = []
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids).loss
        found.append(loss.item())
        accelerator.backward(loss) if accelerator is not None else loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return found


npu, cpu = losses(False), losses(True)
assert npu == cpu and npu[2] < npu[0], (npu, cpu)
print("equal")
"""


@needs_torch_npu
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (extra programs)")
def test_lora_training_is_the_cpus(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "dsv3_port", "hostnpu", "run", str(tmp_path / "train.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr[-2000:]
