"""Train the embedded model and write it in the published checkpoint format (--help).

transformers' DeepseekV3ForCausalLM is trained on the grammar's text, with the report's
auxiliary-loss-free balancing (section 2.1.2: the correction bias moves against each expert's load)
and one multi-token prediction layer (section 2.2) trained beside it. The result is quantised to FP8
blocks, and measured before and after.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from head_start import initialise
from text import answers, batches, make_tokenizer, save_tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AttentionInterface, DeepseekV3ForCausalLM, PreTrainedTokenizerFast
from transformers import DeepseekV3Config as HFConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3DecoderLayer,
    DeepseekV3RMSNorm,
)

from dsv3_port.config import PRESETS, DeepseekV3Config
from dsv3_port.weights.checkpoint import Checkpoint
from dsv3_port.weights.write import write_checkpoint

LENGTH, BATCH = 512, 4
WARM_UP, LAST_RATE, WEIGHT_DECAY, MTP_WEIGHT, BIAS_RATE = 40, 0.05, 0.05, 0.1, 2e-3
TRAIN_SEED, HELD_OUT_SEED = 1, 2


def padded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention, values padded to the width of the keys: torch's fused CPU kernel wants one
    width for all."""
    value_padded = F.pad(value, (0, query.shape[-1] - value.shape[-1]))
    out = F.scaled_dot_product_attention(query, key, value_padded, is_causal=True, scale=scaling)
    return out[..., : value.shape[-1]].transpose(1, 2).contiguous(), None


class Mtp(nn.Module):
    """Predicts the token after next: norm(hidden of t), norm(embedding of t+1) -> projection -> one
    decoder layer."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.enorm = DeepseekV3RMSNorm(config.hidden_size)
        self.hnorm = DeepseekV3RMSNorm(config.hidden_size)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layer = DeepseekV3DecoderLayer(config, config.num_hidden_layers - 1)
        self.norm = DeepseekV3RMSNorm(config.hidden_size)

    def forward(self, model: DeepseekV3ForCausalLM, hidden: Tensor, ids: Tensor) -> Tensor:
        """hidden [B, S, H] of tokens 0..S-1, ids [B, S] -> logits [B, S-1, V] for tokens 2..S."""
        x = torch.cat(
            (self.enorm(model.model.embed_tokens(ids[:, 1:])), self.hnorm(hidden[:, :-1])), -1
        )
        x = self.eh_proj(x)
        positions = torch.arange(x.shape[1]).unsqueeze(0)
        x = self.layer(
            x,
            attention_mask=None,
            position_ids=positions,
            position_embeddings=model.model.rotary_emb(x, positions),
        )
        return model.lm_head(self.norm(x))


class Balance:
    """The correction bias of each gate, moved against the load of its experts after every step."""

    def __init__(self, *modules: nn.Module) -> None:
        self.gates = [
            m for root in modules for m in root.modules() if hasattr(m, "e_score_correction_bias")
        ]
        self.chosen: dict[int, Tensor] = {}
        self.load = 0.0
        for gate in self.gates:
            gate.register_forward_hook(lambda g, _i, out: self.chosen.__setitem__(id(g), out[2]))

    @torch.no_grad()
    def step(self) -> None:
        """Each bias one step up where the load is below its mean, down where above; keeps load
        max/mean."""
        loads = []
        for gate in self.gates:
            bias = gate.e_score_correction_bias
            count = torch.bincount(self.chosen[id(gate)].flatten(), minlength=len(bias)).float()
            bias += BIAS_RATE * torch.sign(count.mean() - count)
            loads.append(float(count.max() / count.mean()))
        self.load = max(loads)


def make_optimizer(parameters: list[nn.Parameter], rate: float, steps: int) -> tuple[Any, Any]:
    """AdamW (no decay of the norms), warm-up, cosine down to a twentieth."""
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))

    def factor(i: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * i / steps))
        return min((i + 1) / WARM_UP, LAST_RATE + (1 - LAST_RATE) * cosine)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train(
    model: DeepseekV3ForCausalLM, mtp: Mtp, data: Iterator[Tensor], steps: int, rate: float
) -> list[dict[str, Any]]:
    """Returns a few points of the curve: nats a token of the next token, of the one after; the
    experts' load."""
    parameters = [*model.parameters(), *mtp.parameters()]
    optimizer, schedule = make_optimizer(parameters, rate, steps)
    balance, curve = Balance(model, mtp), []
    bar = tqdm(range(steps), desc="train", unit="step")
    for i in bar:
        ids = next(data)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(ids, use_cache=False).last_hidden_state
            logits, logits_ahead = model.lm_head(hidden[:, :-1]), mtp(model, hidden, ids)[:, :-1]
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        ahead = F.cross_entropy(logits_ahead.float().flatten(0, 1), ids[:, 2:].flatten())
        optimizer.zero_grad(set_to_none=True)
        (loss + MTP_WEIGHT * ahead).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        balance.step()
        if i % max(1, steps // 20) == 0 or i == steps - 1:
            curve.append(
                {
                    "step": i,
                    "loss": round(loss.item(), 4),
                    "mtp_loss": round(ahead.item(), 4),
                    "load_max_over_mean": round(balance.load, 2),
                }
            )
            bar.set_postfix(
                loss=f"{loss.item():.3f}", mtp=f"{ahead.item():.3f}", load=f"{balance.load:.2f}"
            )
    return curve


@torch.no_grad()
def measure(
    model: DeepseekV3ForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> tuple[float, float]:
    """On held-out text: perplexity a token, and the share of answers of which every token is the
    likeliest one."""
    model.eval()
    losses = [
        F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
        for ids in islice(batches(tokenizer, HELD_OUT_SEED, BATCH, LENGTH), 8)
    ]
    right = []
    for ids, start, end in answers(tokenizer, HELD_OUT_SEED, 100):
        likeliest = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        right.append(likeliest[start - 1 : end - 1] == ids[start:end])
    return math.exp(sum(losses) / len(losses)), sum(right) / len(right)


def published(
    model: DeepseekV3ForCausalLM, mtp: Mtp, config: DeepseekV3Config
) -> Iterator[tuple[str, Tensor]]:
    """Names of the published checkpoint: experts one by one, the MTP layer with its copies of
    embedding and head."""
    for name, value in model.state_dict().items():
        yield from unfused(name, value)
    at = f"model.layers.{config.num_hidden_layers}"
    yield f"{at}.embed_tokens.weight", model.model.embed_tokens.weight.data
    for name in ("enorm.weight", "hnorm.weight", "eh_proj.weight"):
        yield f"{at}.{name}", mtp.state_dict()[name]
    for name, value in mtp.layer.state_dict().items():
        yield from unfused(f"{at}.{name}", value)
    yield f"{at}.shared_head.norm.weight", mtp.norm.weight.data
    yield f"{at}.shared_head.head.weight", model.lm_head.weight.data


def unfused(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """transformers stacks the experts of a layer; the published file has three matrices for each."""
    head, _, last = name.rpartition(".")
    if last == "gate_up_proj":
        for e, both in enumerate(value):
            gate, up = both.chunk(2)
            yield f"{head}.{e}.gate_proj.weight", gate
            yield f"{head}.{e}.up_proj.weight", up
    elif last == "down_proj":
        for e, down in enumerate(value):
            yield f"{head}.{e}.down_proj.weight", down
    else:
        yield name, value


def reload(model: DeepseekV3ForCausalLM, folder: Path) -> None:
    """Put the stored values, dequantised, back into the model."""
    stored = Checkpoint.open(folder)
    for name, target in model.state_dict().items():
        parts = [stored.read(n) for n, _ in unfused(name, target)]
        if name.endswith("gate_up_proj"):
            parts = [torch.stack([torch.cat(parts[i : i + 2]) for i in range(0, len(parts), 2)])]
        elif name.endswith("experts.down_proj"):
            parts = [torch.stack(parts)]
        target.copy_(parts[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument(
        "--threads", type=int, default=1, help="the sums' order, and so the last bits, depend on it"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).resolve().parents[1] / "tiny-dsv3"
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)

    config = PRESETS["tiny"]
    tokenizer = make_tokenizer(config.vocab_size, config.max_position_embeddings)
    AttentionInterface.register("padded", padded_attention)
    values = config.replace(fp8=False).to_dict() | {
        "torch_dtype": None,
        "attn_implementation": "padded",
    }
    model = DeepseekV3ForCausalLM(HFConfig(**values)).float()
    model.set_experts_implementation("grouped_mm")
    mtp = Mtp(model.config)
    initialise(model, mtp)
    start, start_cpu = time.time(), time.process_time()
    curve = train(model, mtp, batches(tokenizer, TRAIN_SEED, BATCH, LENGTH), args.steps, args.rate)
    minutes, cpu_minutes = (time.time() - start) / 60, (time.process_time() - start_cpu) / 60
    perplexity, right = measure(model, tokenizer)

    folder = args.output.with_name(args.output.name + ".new")
    shutil.rmtree(folder, ignore_errors=True)
    write_checkpoint(folder, config, published(model, mtp, config), fp8=True, shard_bytes=3 << 20)
    reload(model, folder)
    perplexity_fp8, right_fp8 = measure(model, tokenizer)
    save_tokenizer(tokenizer, folder)
    generation = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "do_sample": False,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    report = {
        "seed": args.seed,
        "steps": args.steps,
        "tokens": args.steps * BATCH * LENGTH,
        "threads": args.threads,
        "minutes": round(minutes, 1),
        "cpu_minutes": round(cpu_minutes, 1),
        "perplexity_per_token": round(perplexity, 4),
        "perplexity_per_token_fp8": round(perplexity_fp8, 4),
        "answers_right": right,
        "answers_right_fp8": right_fp8,
        "curve": curve,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (folder / "TRAINING.json").write_text(json.dumps(report, indent=1) + "\n")
    shutil.rmtree(args.output, ignore_errors=True)
    folder.rename(args.output)
    print(
        f"{args.output}: perplexity {perplexity:.3f} a token, {perplexity_fp8:.3f} after FP8; "
        f"{right:.0%} of the answers right, {right_fp8:.0%} after FP8; {minutes:.1f} minutes, "
        f"{cpu_minutes:.1f} of one core"
    )


if __name__ == "__main__":
    main()
